"""Bootstrap intervals: scipy as reference, masks as relations, what undefined input gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import message_of

from mil_jax.intervals import bootstrap_interval, mean_intervals

pytestmark = pytest.mark.usefixtures("quickly_compiled")
INTERVAL = jax.jit(bootstrap_interval, static_argnames=("level", "resamples"))


def test_bootstrap_interval_is_close_to_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 50).astype(np.float32)
    low, high = INTERVAL(jnp.asarray(values), jax.random.key(0), level=0.9, resamples=4000)
    result = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=4000, method="percentile", rng=1
    )
    spread = values.std() / np.sqrt(50)
    assert abs(float(low) - result.confidence_interval.low) < 0.1 * spread
    assert abs(float(high) - result.confidence_interval.high) < 0.1 * spread
    # The percentiles of a mean that is close to normal.
    assert (float(high) - float(low)) / 2 == pytest.approx(1.645 * spread, rel=0.08)


def test_bootstrap_interval_of_a_mask_is_that_of_the_subset():
    values, where = np.random.default_rng(1).normal(size=50).astype(np.float32), np.arange(50) % 3 > 0
    hidden = jnp.asarray(np.where(where, values, np.nan))
    masked = INTERVAL(hidden, jax.random.key(2), resamples=200, where=jnp.asarray(where))
    subset = INTERVAL(jnp.asarray(values[where]), jax.random.key(2), resamples=200)
    np.testing.assert_allclose(masked, subset, rtol=1e-5)


def test_bootstrap_interval_of_equal_values_is_a_point_and_of_none_is_nan():
    sevens, key, every = jnp.full(50, 7.0), jax.random.key(0), jnp.ones(50, bool)
    point = INTERVAL(sevens, key, resamples=200, where=every)
    np.testing.assert_allclose(point, (7, 7), rtol=1e-6)
    assert np.isnan(INTERVAL(sevens, key, resamples=200, where=~every)).all()


def test_intervals_of_several_statistics_are_those_of_each():
    rng = np.random.default_rng(4)
    values, where = rng.normal(size=(3, 20)).astype(np.float32), rng.random((3, 20)) < 0.7
    where[2] = False
    values[~where] = np.nan
    mean, low, high = jax.jit(mean_intervals, static_argnames="resamples")(
        jnp.asarray(values), jnp.asarray(where), jax.random.key(1), resamples=200
    )
    for i in (0, 1):
        counted = values[i][where[i]]
        alone = INTERVAL(jnp.asarray(values[i]), jax.random.key(1), resamples=200, where=jnp.asarray(where[i]))
        np.testing.assert_allclose((low[i], high[i]), alone, rtol=1e-6)
        assert float(mean[i]) == pytest.approx(counted.mean(), rel=1e-5) and low[i] < mean[i] < high[i]
    assert np.isnan([mean[2], low[2], high[2]]).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"level": 95.0}, "level = 95.0: expected a number, more than 0 and less than 1"),
    ({"resamples": 0}, "resamples = 0: expected a whole number from 1"),
])  # fmt: skip
def test_input_that_cannot_be_used_is_named(options, message):
    assert message_of(bootstrap_interval, jnp.ones(3), jax.random.key(0), **options) == message
