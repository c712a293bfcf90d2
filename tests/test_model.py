"""The model and its encoder: parameters, initialisation, invariances, errors, and a NumPy twin."""

import dataclasses
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.encoders import MLPEncoder
from mil_jax.errors import InputError
from mil_jax.model import (
    MIL,
    ModelConfig,
    apply,
    build,
    check_full,
    count_params,
    init_params,
    layer_table,
)

SEEDS = st.integers(0, 2**31 - 1)
IMAGE = (28, 28)
INIT_DEFAULT = jax.jit(lambda key: init_params(build(), key, 3, IMAGE))
SMALL, SMALL_IMAGE, K = ModelConfig(hidden=(7, 5), attention_units=6), (2, 3), 4


def small(**changes: Any) -> ModelConfig:
    return dataclasses.replace(SMALL, **changes)


def shapes_of(config: ModelConfig, bag_size: int) -> Any:
    model = build(config)
    return jax.eval_shape(lambda key: init_params(model, key, bag_size, SMALL_IMAGE), jax.random.key(0))


@cache
def small_params(config: ModelConfig) -> Any:
    """Parameters as training may leave them, with biases that are not zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes_of(config, K))


@cache
def default_params(seed: int = 0) -> Any:
    return INIT_DEFAULT(jax.random.key(seed))


@cache
def compiled(config: ModelConfig) -> Any:
    """One compiled model for each choice, shared by all examples."""
    model = build(config)
    return jax.jit(lambda params, instances, mask: apply(model, params, instances, mask))


def draw_instances(seed: int, count: int = K) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SMALL_IMAGE)).astype(np.float32)


def numpy_forward(params: Any, x: np.ndarray, mask: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logits of one bag in float64, layer by layer; padded instances enter with weight 0."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
    h = x.reshape(len(x), -1).astype(float)
    for layer in range(len(config.hidden)):
        dense = p["encoder"][f"Dense_{layer}"]
        h = np.maximum(h @ dense["kernel"] + dense["bias"], 0)
    inner = np.tanh(h @ p["pooling"]["V"]["kernel"])
    if config.pooling == "gated_attention":
        inner = inner / (1 + np.exp(-h @ p["pooling"]["U"]["kernel"]))
    exponentials = np.exp(inner @ p["pooling"]["w"]["kernel"])[:, 0] * mask
    weighted = (exponentials / exponentials.sum())[:, None] * h
    bag = weighted.ravel() if config.head == "concat" else weighted.sum(axis=0)
    return bag @ p["head"]["kernel"] + p["head"]["bias"]


# Parameters


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # 784 * 128 + 128, 128 * 64 + 64, twice 64 * 256, 256, and the head of 3 * 64 * 2 + 2.
        (ModelConfig(), 142_146),
        # The head of 64 * 2 + 2 is 256 smaller.
        (ModelConfig(head="sum"), 141_890),
        # U is 64 * 256 = 16,384.
        (ModelConfig(pooling="attention"), 125_762),
        (ModelConfig(pooling="attention", head="sum"), 125_506),
    ],
)
def test_parameter_counts(config, count):
    model = build(config)
    params = jax.eval_shape(lambda key: init_params(model, key, 3, IMAGE), jax.random.key(0))
    assert count_params(params) == count
    table = layer_table(model, 3, IMAGE)
    assert sum(row[2] for row in table) == count


def test_layer_table_lists_the_layers_in_the_order_of_the_data():
    assert layer_table(build(), 3, IMAGE) == [
        ("encoder/Dense_0", "kernel [784, 128], bias [128]", 100_480),
        ("encoder/Dense_1", "kernel [128, 64], bias [64]", 8_256),
        ("pooling/V", "kernel [64, 256]", 16_384),
        ("pooling/U", "kernel [64, 256]", 16_384),
        ("pooling/w", "kernel [256, 1]", 256),
        ("head", "kernel [192, 2], bias [2]", 386),
    ]


def test_kernels_are_glorot_uniform_and_biases_zero():
    for path, leaf in jax.tree_util.tree_leaves_with_path(default_params()):
        name, leaf = jax.tree_util.keystr(path), np.asarray(leaf)
        if "bias" in name:
            np.testing.assert_array_equal(leaf, 0, err_msg=name)
            continue
        bound = np.sqrt(6 / sum(leaf.shape))
        assert np.abs(leaf).max() <= bound, name
        assert np.abs(leaf).max() > 0.97 * bound, name
        # A uniform distribution on [-b, b] has variance b^2 / 3; 256 numbers estimate it to 6 %.
        assert leaf.var() == pytest.approx(bound**2 / 3, rel=0.25 if leaf.size < 1000 else 0.03), name
        assert abs(leaf.mean()) < 4 * bound / np.sqrt(3 * leaf.size), name


def test_the_attention_has_no_biases_and_the_other_layers_have():
    params: Any = small_params(SMALL)
    assert {name: set(layer) for name, layer in params["pooling"].items()} == {
        "V": {"kernel"},
        "U": {"kernel"},
        "w": {"kernel"},
    }
    assert set(small_params(small(pooling="attention"))["pooling"]) == {"V", "w"}
    assert all(set(layer) == {"kernel", "bias"} for layer in params["encoder"].values())
    assert set(params["head"]) == {"kernel", "bias"}


def test_the_key_decides_the_parameters():
    again = INIT_DEFAULT(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, default_params(0), again)
    first, other = jax.tree.map(np.asarray, (default_params(0), default_params(1)))
    different = jax.tree.map(lambda a, b: bool((a != b).any()), first, other)
    assert different["encoder"]["Dense_0"]["kernel"]
    assert different["pooling"]["w"]["kernel"]


# Output


@pytest.mark.parametrize("pooling", ["gated_attention", "attention"])
@pytest.mark.parametrize("head", ["concat", "sum"])
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, mask=st.lists(st.booleans(), min_size=K, max_size=K).filter(any))
def test_output_agrees_with_a_numpy_forward_pass(pooling, head, seed, mask):
    config, x = small(pooling=pooling, head=head, classes=3), draw_instances(seed)
    out = compiled(config)(small_params(config), x, np.array(mask))
    expected = numpy_forward(small_params(config), x, np.array(mask), config)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert out.embedding.shape == ((K * 5,) if head == "concat" else (5,))
    assert out.attention.shape == (K,)


def test_the_default_model_agrees_with_a_numpy_forward_pass():
    x, mask = np.random.default_rng(0).random((3, *IMAGE), np.float32), np.ones(3, bool)
    logits = compiled(ModelConfig())(default_params(), x, mask).logits
    expected = numpy_forward(default_params(), x, mask, ModelConfig())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, order=st.permutations(range(K)))
def test_the_sum_head_ignores_the_order_of_a_bag(seed, order):
    config, x, mask = small(head="sum"), draw_instances(seed), np.arange(K) != 2
    before = compiled(config)(small_params(config), x, mask)
    after = compiled(config)(small_params(config), x[list(order)], mask[list(order)])
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.attention, before.attention[np.array(order)], atol=1e-6)


def test_the_concat_head_depends_on_the_order_of_a_bag():
    x, mask = draw_instances(0), np.ones(K, bool)
    before = compiled(SMALL)(small_params(SMALL), x, mask)
    after = compiled(SMALL)(small_params(SMALL), x[::-1].copy(), mask)
    assert np.abs(after.logits - before.logits).max() > 1e-3
    np.testing.assert_allclose(after.attention, before.attention[::-1], atol=1e-6)


@pytest.mark.parametrize("count", [1, K, 9])
def test_the_sum_head_takes_any_bag_size_with_the_same_parameters(count):
    config, x = small(head="sum"), draw_instances(1, count)
    out = compiled(config)(small_params(config), x, np.ones(count, bool))
    expected = numpy_forward(small_params(config), x, np.ones(count), config)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    padded = compiled(config)(small_params(config), draw_instances(1, 12), np.arange(12) < count)
    np.testing.assert_allclose(padded.logits, out.logits, rtol=1e-5, atol=1e-6)


def test_the_parameters_of_the_sum_head_do_not_know_the_bag_size():
    assert shapes_of(small(head="sum"), 1) == shapes_of(small(head="sum"), 9)
    assert shapes_of(SMALL, 1) != shapes_of(SMALL, 9), "those of the concat head do"


@pytest.mark.parametrize("head", ["concat", "sum"])
def test_padded_instances_have_no_gradient(head):
    config, mask = small(head=head), np.array([True, False, True, False])
    by_instance = jax.jit(jax.jacrev(lambda x: compiled(config)(small_params(config), x, mask).logits))
    gradient = np.asarray(by_instance(draw_instances(0)))  # [C, K, ...]
    np.testing.assert_array_equal(gradient[:, ~mask], 0)
    assert np.abs(gradient[:, mask]).max(axis=(0, 2, 3)).min() > 1e-6


# Encoder


def test_the_encoder_flattens_and_encodes_each_instance_alone():
    params, x = {"params": small_params(SMALL)["encoder"]}, draw_instances(2)
    encode = jax.jit(MLPEncoder(SMALL.hidden).apply)
    together: Any = np.asarray(encode(params, x))
    assert together.shape == (K, 5)
    assert together.min() == 0 < together.max(), "the last layer has its ReLU"
    for shape in ((6,), (1, 2, 3)):
        np.testing.assert_array_equal(encode(params, x.reshape(K, *shape)), together)
    for i in range(K):
        alone: Any = encode(params, x[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("changes", "argument", "message"),
    [
        ({"hidden": ()}, "hidden", "hidden = (): use widths of at least 1"),
        ({"hidden": (8, 0)}, "hidden", "hidden = (8, 0): use widths of at least 1"),
        ({"attention_units": 0}, "attention_units", "attention_units = 0: use at least 1"),
        ({"attention_units": -4}, "attention_units", "attention_units = -4: use at least 1"),
        ({"classes": 1}, "classes", "classes = 1: use at least 2"),
        ({"head": "mean"}, "head", "head = 'mean': use 'concat' or 'sum'"),
    ],
)
def test_build_refuses(changes, argument, message):
    config = ModelConfig()
    for name, value in changes.items():
        object.__setattr__(config, name, value)  # past the tests' type checker, as a user would
    with pytest.raises(InputError) as caught:
        build(config)
    assert caught.value.argument == argument
    assert str(caught.value) == message


def test_a_config_is_hashable_and_builds_equal_models():
    assert hash(ModelConfig()) == hash(ModelConfig())
    assert build(ModelConfig()) == build(ModelConfig()) == build()
    assert hash(build()) == hash(build())
    assert build(ModelConfig(pooling="attention")) != build()


FULL, HOLES = np.ones((5, K), bool), np.arange(K) < np.array([[K], [K - 1]])


def test_check_full_accepts_what_the_head_can_take():
    check_full(build(SMALL), small_params(SMALL), FULL)
    check_full(build(SMALL), None, np.ones((5, K + 1), bool))
    config = small(head="sum")
    for mask in (FULL, HOLES, np.ones((2, K + 3), bool)):
        check_full(build(config), small_params(config), mask)
        check_full(build(config), None, jnp.asarray(mask))


def test_check_full_leaves_other_poolings_alone():
    model = MIL(MLPEncoder((3,)), nn.Dense(2))
    check_full(model, None, HOLES)


@pytest.mark.parametrize("known", [True, False])
def test_check_full_refuses_empty_slots(known):
    message = "mask = 'bags with empty slots': the concat head needs full bags .* the head 'sum'"
    with pytest.raises(InputError, match=message):
        check_full(build(SMALL), small_params(SMALL) if known else None, HOLES)


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("size", [K - 1, K + 1, 2 * K])
def test_check_full_refuses_another_bag_size(members, size):
    params = small_params(SMALL)
    if members:
        params = jax.tree.map(lambda leaf: np.stack([leaf] * members), params)
        check_full(build(SMALL), params, FULL)
    with pytest.raises(InputError, match=f"bag_size = {size}: this model was made for {K};"):
        check_full(build(SMALL), params, np.ones((2, size), bool))
