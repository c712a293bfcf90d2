"""Encoders: convolutions against JAX's own, and the papers' numbers of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mil_jax.encoders import MLPEncoder, convolve, max_pool
from mil_jax.errors import InputError
from mil_jax.model import POOLINGS, ModelConfig, apply, build, count_params, init_params

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize(("shape", "kernel"), [((2, 7, 6, 3), (4, 3, 3, 5)), ((1, 5, 5, 1), (5, 5, 1, 2))])
def test_a_convolution_and_its_gradient_are_those_of_jax(shape, kernel):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    weights = jnp.asarray(rng.normal(size=kernel), jnp.float32)

    def native(images, weights):
        return lax.conv_general_dilated(images, weights, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    np.testing.assert_allclose(convolve(images, weights), native(images, weights), rtol=1e-4, atol=1e-4)
    gradients = [
        jax.grad(lambda *a, f=f: jnp.sin(f(*a)).sum(), argnums=(0, 1))(images, weights) for f in (convolve, native)
    ]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3), *gradients)


def test_max_pooling_leaves_out_an_odd_last_row():
    images = jnp.arange(25.0).reshape(1, 5, 5, 1)
    np.testing.assert_array_equal(max_pool(images)[0, :, :, 0], [[6, 8], [16, 18]])


@pytest.mark.parametrize(
    ("encoder", "hidden", "shape", "count"),
    # Convolutions, dense layers, V, U and w without biases, one logit: by hand from the papers' tables.
    [
        ("lenet", (500,), (28, 28), 520 + 25_050 + 400_500 + 2 * 64_000 + 128 + 501),
        ("colon", (512, 512), (27, 27, 3), 1_764 + 15_600 + 614_912 + 262_656 + 2 * 65_536 + 128 + 513),
        ("mlp", (256, 128, 64), (166,), 42_752 + 32_896 + 8_256 + 2 * 8_192 + 128 + 65),
    ],
)
def test_the_papers_networks_have_their_numbers_of_parameters(encoder, hidden, shape, count):
    mil = build(ModelConfig(encoder=encoder, hidden=hidden, attention_units=128, head="sum", output="sigmoid"))
    shapes = jax.eval_shape(lambda key: init_params(mil, key, 2, shape), jax.random.key(0))
    assert count_params(shapes) == count


def test_dropout_needs_a_key_and_keeps_the_mean():
    encoder = MLPEncoder((2000,), dropout=0.5)
    x = jnp.ones((1, 4))
    params = encoder.init(jax.random.key(0), x)
    quiet: Any = encoder.apply(params, x)
    noisy: Any = encoder.apply(params, x, rngs={"dropout": jax.random.key(1)})
    assert float(noisy.mean()) == pytest.approx(float(quiet.mean()), rel=0.1)
    active = np.asarray(quiet) > 0
    assert np.mean(np.asarray(noisy)[active] == 0) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("output", "classes"), [("softmax", 2), ("sigmoid", 2), ("softmax", 3)])
def test_every_pooling_with_every_output(pooling, output, classes):
    """Logits [C], attention of sum 1, and scores that are those of a bag of one."""
    config = ModelConfig(hidden=(6,), attention_units=4, pooling=pooling, head="sum", output=output, classes=classes)
    mil = build(config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    mask = jnp.array([True, True, True, False])
    params = init_params(mil, jax.random.key(0), 4, (3,))
    out = apply(mil, params, x, mask)
    assert out.logits.shape == (classes,)
    assert float(out.attention.sum()) == pytest.approx(1)
    assert float(out.attention[3]) == float(out.scores[3]) == 0
    lone = apply(mil, params, x, jnp.array([False, True, False, False])).logits
    assert float(out.scores[1]) == pytest.approx(float((lone[1:] - lone[0]).max()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooling": "embedding_mean", "head": "concat"}, "head = 'concat': use 'sum'"),
        ({"output": "sigmoid", "classes": 3}, "output = 'sigmoid': use 'softmax' for 3 classes"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"chunk": 0}, "chunk = 0: use at least 1"),
        ({"chunk": 5, "head": "concat"}, "chunk = 5"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        build(ModelConfig(**({"head": "sum"} | change)))
