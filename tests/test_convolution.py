"""Convolution with pooling: against JAX's own, and what blocks, windows and ties must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, assert_same_bits

from mil_jax import convolution
from mil_jax.convolution import by_windows, in_two_steps

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def make(images: tuple[int, ...], kernel: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in (images, kernel)]


def with_gradient(operation, images, kernel):
    """What comes out, and the gradient by both of something that is not linear in it."""

    def loss(*given):
        out = operation(*given)
        return jnp.sin(out).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(images, kernel)


@pytest.mark.parametrize(
    ("images", "kernel"),
    [
        ((3, 7, 6, 3), (4, 3, 3, 5)),
        ((1, 8, 6, 1), (5, 4, 1, 2)),  # an odd column is left out
        ((9, 9, 9, 20), (3, 3, 20, 4)),  # two blocks, the second one not full; Winograd's filters
        ((2, 9, 8, 16), (5, 5, 16, 3)),  # pixels copied as a whole
    ],
)
def test_a_pooled_convolution_and_its_gradient_are_those_of_jax(images, kernel):
    # Up to 400 products in another order, and Winograd's differences of windows: some roundings of the largest value.
    given = make(images, kernel)
    pair = with_gradient(by_windows, *given), with_gradient(in_two_steps, *given)
    for ours, native in zip(*map(jax.tree.leaves, pair), strict=True):
        assert_close(ours / abs(native).max(), native / abs(native).max(), 2e-5)


def test_pooling_leaves_out_an_odd_last_row_and_column():
    images, one = jnp.arange(25.0).reshape(1, 5, 5, 1), jnp.ones((1, 1, 1, 1))
    for operation in (by_windows, in_two_steps):
        np.testing.assert_array_equal(operation(images, one)[0, :, :, 0], [[6, 8], [16, 18]])


def test_values_that_are_all_the_largest_share_the_gradient():
    # Plain patches, such as empty slots and white glass: all four values of a pool are alike.
    images, kernel = jnp.ones((2, 6, 6, 3)), jnp.round(make((1, 1, 1, 1), (3, 3, 3, 4))[1])  # whole: no rounding
    assert_close(with_gradient(by_windows, images, kernel), with_gradient(in_two_steps, images, kernel), 2e-5)


def test_blocks_change_nothing(monkeypatch):
    given = make((5, 6, 6, 2), (3, 3, 2, 3))
    results = []
    for block in (1, 2, 5):
        monkeypatch.setattr(convolution, "BLOCK", block)
        results.append(with_gradient(lambda *given: by_windows(*given), *given))
    for other in results[1:]:  # up to the order in which blocks are added up
        assert_close(other, results[0], 1e-5)


def test_an_image_does_not_depend_on_those_beside_it():
    images, kernel = make((11, 6, 6, 2), (3, 3, 2, 3))
    together, reversed_ = by_windows(images, kernel), by_windows(images[::-1], kernel)
    assert_same_bits(together, reversed_[::-1])


@pytest.mark.parametrize("channels", [3, 20])
def test_folding_is_the_transpose_of_taking_windows(channels):
    shape, kernel = (2, 7, 8, channels), (4, 3, channels, 1)
    way, images = convolution.way_of(shape, kernel), make(shape, kernel)[0]
    windows = way.take(images)
    assert windows.shape == (2 * 2 * 3, 5 * 4 * channels)
    np.testing.assert_array_equal(windows[4].reshape(5, 4, channels), images[0, 2:7, 2:6])
    assert_close(way.fold(windows), jax.linear_transpose(way.take, images)(windows)[0])


def test_the_loop_for_the_gradient_of_data_is_left_out():
    images, kernel = make((9, 6, 6, 2), (3, 3, 2, 3))

    def loss(kernel, images):
        return by_windows(images, kernel).sum()

    programs = [jax.jit(jax.grad(loss, argnums)).lower(kernel, images).compile() for argnums in (0, (0, 1))]
    loops = [str(program.as_text()).count(" while(") for program in programs]
    assert loops[0] < loops[1]


def test_it_is_used_on_a_cpu():
    images, kernel = make((1, 6, 6, 2), (3, 3, 2, 3))
    compiled = str(jax.jit(convolution.convolve_and_pool).lower(images, kernel).compile().as_text())
    assert (" convolution(" not in compiled) == (jax.default_backend() == "cpu")
