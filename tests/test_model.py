"""The model: parameters, initialisation, invariances, a NumPy twin; and choices that do not go together."""

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_same_bits, in_double, message_of, numpy_forward, unchecked
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.losses import Classes
from mil_jax.model import ATTENTION, POOLINGS, ModelConfig, apply, build, count_params, init_params, layer_table

SEEDS = st.integers(0, 2**31 - 1)
IMAGE = (28, 28)
INIT_DEFAULT = jax.jit(lambda key: init_params(build(), key, 3, IMAGE))
SMALL, SMALL_IMAGE, K = ModelConfig(hidden=(7, 5), attention_units=6), (2, 3), 4


def small(**changes: Any) -> ModelConfig:
    return dataclasses.replace(SMALL, **changes)


def shapes_of(config: ModelConfig, bag_size: int, shape: tuple[int, ...] = SMALL_IMAGE, classes: int = 2) -> Any:
    model = build(config, Classes(classes))
    return jax.eval_shape(lambda key: init_params(model, key, bag_size, shape), jax.random.key(0))


@cache
def small_params(config: ModelConfig, classes: int = 2) -> Any:
    """Parameters as training may leave them, with biases that are not zero."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(config, K, classes=classes)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@cache
def default_params(seed: int = 0) -> Any:
    return INIT_DEFAULT(jax.random.key(seed))


@cache
def compiled(config: ModelConfig, classes: int = 2) -> Any:
    """One compiled model for each choice, shared by all examples."""
    model = build(config, Classes(classes))
    return jax.jit(lambda params, instances, mask: apply(model, params, instances, mask))


def draw_instances(seed: int, count: int = K) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *SMALL_IMAGE)).astype(np.float32)


# ---- parameters ----


@pytest.mark.parametrize(("config", "count"), [
    # 784 * 128 + 128, 128 * 64 + 64, twice 64 * 256, 256, and the head of 3 * 64 * 2 + 2.
    (ModelConfig(), 142_146),
    # The head of 64 * 2 + 2 is 256 smaller.
    (ModelConfig(head="sum"), 141_890),
    # U is 64 * 256 = 16,384.
    (ModelConfig(pooling="attention"), 125_762),
])  # fmt: skip
def test_parameter_counts(config, count):
    assert count_params(shapes_of(config, 3, IMAGE)) == count
    assert sum(row[2] for row in layer_table(build(config), 3, IMAGE)) == count


def test_layer_table_lists_the_layers_in_the_order_of_the_data():
    assert layer_table(build(), 3, IMAGE) == [
        ("encoder/Dense_0", "kernel [784, 128], bias [128]", 100_480),
        ("encoder/Dense_1", "kernel [128, 64], bias [64]", 8_256), ("pooling/V", "kernel [64, 256]", 16_384),
        ("pooling/U", "kernel [64, 256]", 16_384), ("pooling/w", "kernel [256, 1]", 256),
        ("head", "kernel [192, 2], bias [2]", 386),
    ]  # fmt: skip


def test_kernels_are_glorot_uniform_and_biases_zero():
    for path, leaf in jax.tree_util.tree_leaves_with_path(default_params()):
        name, leaf = jax.tree_util.keystr(path), np.asarray(leaf)
        if "bias" in name:
            np.testing.assert_array_equal(leaf, 0, err_msg=name)
            continue
        bound = np.sqrt(6 / sum(leaf.shape))
        assert 0.97 * bound < np.abs(leaf).max() <= bound, name
        # A uniform distribution on [-b, b] has variance b^2 / 3; 256 numbers estimate it to 6 %.
        assert leaf.var() == pytest.approx(bound**2 / 3, rel=0.25 if leaf.size < 1000 else 0.03), name
        assert abs(leaf.mean()) < 4 * bound / np.sqrt(3 * leaf.size), name


def test_the_key_decides_the_parameters():
    assert_same_bits(default_params(0), INIT_DEFAULT(jax.random.key(0)))
    different = jax.tree.map(lambda a, b: bool((a != b).any()), default_params(0), default_params(1))
    assert different["encoder"]["Dense_0"]["kernel"] and different["pooling"]["w"]["kernel"]


def test_the_parameters_of_the_sum_head_do_not_know_the_bag_size():
    assert shapes_of(small(head="sum"), 1) == shapes_of(small(head="sum"), 9)
    assert shapes_of(SMALL, 1) != shapes_of(SMALL, 9), "those of the concat head do"


# ---- output ----


@pytest.mark.parametrize("pooling", ["gated_attention", "attention"])
@pytest.mark.parametrize("head", ["concat", "sum"])
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, mask=st.lists(st.booleans(), min_size=K, max_size=K).filter(any))
def test_output_agrees_with_a_numpy_forward_pass(pooling, head, seed, mask):
    config, x = small(pooling=pooling, head=head), draw_instances(seed)
    out = compiled(config, 3)(small_params(config, 3), x, np.array(mask))
    expected = numpy_forward(in_double(small_params(config, 3)), x, mask)[0]
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    assert out.embedding.shape == ((K * 5,) if head == "concat" else (5,))
    assert out.attention.shape == (K,)


def test_the_default_model_agrees_with_a_numpy_forward_pass():
    x, mask = np.random.default_rng(0).random((3, *IMAGE), np.float32), np.ones(3, bool)
    logits = compiled(ModelConfig())(default_params(), x, mask).logits
    expected = numpy_forward(in_double(default_params()), x, mask)[0]
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


@pytest.mark.parametrize("count", [1, 9])
def test_the_sum_head_takes_any_bag_size_with_the_same_parameters(count):
    config, x = small(head="sum"), draw_instances(1, count)
    out = compiled(config)(small_params(config), x, np.ones(count, bool))
    expected = numpy_forward(in_double(small_params(config)), x, np.ones(count))[0]
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    padded = compiled(config)(small_params(config), draw_instances(1, 12), np.arange(12) < count)
    np.testing.assert_allclose(padded.logits, out.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["concat", "sum"])
def test_padded_instances_have_no_gradient(head):
    config, mask = small(head=head), np.array([True, False, True, False])
    by_instance = jax.jit(jax.jacrev(lambda x: compiled(config)(small_params(config), x, mask).logits))
    gradient = np.asarray(by_instance(draw_instances(0)))  # [C, K, ...]
    np.testing.assert_array_equal(gradient[:, ~mask], 0)
    assert np.abs(gradient[:, mask]).max(axis=(0, 2, 3)).min() > 1e-6


# One output is a matter of the model's classifier, so the methods beside it need not be compiled twice.
BY_THE_HEAD = [name for name in POOLINGS if name.startswith(("embedding", "instance")) or name in ATTENTION]


@pytest.mark.usefixtures("quickly_compiled")
@pytest.mark.parametrize(("pooling", "output", "classes"), [
    *((name, "softmax", 3) for name in POOLINGS), *((name, "sigmoid", 2) for name in (*BY_THE_HEAD, "dsmil")),
])  # fmt: skip
def test_every_pooling_with_every_output(pooling, output, classes):
    """Logits [C], attention of sum 1, and scores that are those of a bag of one, but for methods that say otherwise."""
    config = small(pooling=pooling, head="sum", output=output)
    params, x, mask = small_params(config, classes), draw_instances(0), np.arange(K) < 3
    out = compiled(config, classes)(params, x, mask)
    assert out.logits.shape == (classes,)
    assert float(out.attention.sum()) == pytest.approx(1)
    assert float(out.attention[3]) == float(out.scores[3]) == 0
    if pooling in ("additive", "dsmil"):
        return
    lone = compiled(config, classes)(params, np.roll(x, -1, axis=0), np.arange(K) == 0).logits
    assert float(out.scores[1]) == pytest.approx(float((lone[1:] - lone[0]).max()), rel=1e-4, abs=1e-5)


# ---- choices ----


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden": ()}, "hidden = (): expected one or more widths"),
    ({"hidden": (8, 0)}, "hidden = 0: expected a whole number from 1"),
    ({"hidden": 8}, "hidden = 8: expected one or more widths"),
    ({"attention_units": 2.5}, "attention_units = 2.5: expected a whole number from 1"),
    ({"dropout": 1.0}, "dropout = 1.0: expected a number, at least 0 and less than 1"),
    ({"chunk": 0}, "chunk = 0: expected a whole number from 1"),
    ({"chunk": 5}, "chunk = 5: expected the head 'sum'"),
    ({"chunk": 5, "head": "sum", "pooling": "dsmil"}, "chunk = 5: expected none with the pooling 'dsmil'"),
    ({"pooling": "transmil"}, "head = 'concat': expected 'sum' with the pooling 'transmil'"),
    ({"head": "mean"}, "head = 'mean': expected 'concat' or 'sum'"),
    ({"pooling": "max"}, "pooling = 'max': expected 'gated_attention' or 'attention' or"),
    ({"pooling": "embedding_mean"}, "head = 'concat': expected 'sum' with the pooling 'embedding_mean'"),
])  # fmt: skip
def test_choices_that_do_not_go_together_are_refused(changes, message):
    assert message_of(unchecked, ModelConfig, **changes).startswith(message)


def test_an_output_that_the_target_cannot_have_is_refused():
    assert "expected 'softmax' for 3 classes" in message_of(build, ModelConfig(output="sigmoid"), Classes(3))


def test_a_config_is_hashable_and_builds_equal_models():
    assert hash(ModelConfig()) == hash(ModelConfig()) and hash(build()) == hash(build())
    assert build(ModelConfig()) == build() != build(ModelConfig(pooling="attention"))
