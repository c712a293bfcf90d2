"""Encoders: the papers' numbers of parameters, flattening, and dropout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close

from mil_jax.encoders import MLPEncoder
from mil_jax.model import ModelConfig, build, count_params, init_params

pytestmark = pytest.mark.usefixtures("quickly_compiled")


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


def test_each_instance_is_flattened_and_encoded_alone():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 3)), jnp.float32)
    encoder = MLPEncoder((7, 5))
    params = encoder.init(jax.random.key(0), x)
    together: Any = encoder.apply(params, x)
    assert together.shape == (4, 5) and together.min() == 0 < together.max(), "the last layer has its ReLU"
    for shape in ((6,), (1, 2, 3)):
        np.testing.assert_array_equal(encoder.apply(params, x.reshape(4, *shape)), together)
    alone: list[Any] = [encoder.apply(params, x[i : i + 1]) for i in range(4)]
    assert_close(np.concatenate(alone), together)


def test_dropout_needs_a_key_and_keeps_the_mean():
    encoder = MLPEncoder((2000,), dropout=0.5)
    x = jnp.ones((1, 4))
    params = encoder.init(jax.random.key(0), x)
    quiet: Any = encoder.apply(params, x)
    noisy: Any = encoder.apply(params, x, rngs={"dropout": jax.random.key(1)})
    assert float(noisy.mean()) == pytest.approx(float(quiet.mean()), rel=0.1)
    assert np.mean(np.asarray(noisy)[np.asarray(quiet) > 0] == 0) == pytest.approx(0.5, abs=0.06)
