"""Augmentation: what each part must leave alone, the round trip of the stains, keys, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import message_of, quick_jit

from mil_jax import augment
from mil_jax.augment import StainVariation

STILL = StainVariation(0.0, 0.0)
STRONG = StainVariation(1.0, 0.5)
augment_bag = quick_jit(augment.augment_bag, static_argnums=2)


def stain_amounts(patch: jax.Array) -> jax.Array:
    return augment.optical_density(patch) @ augment.UNSTAINS


def stained(amounts: jax.Array) -> jax.Array:
    return augment.transmitted(amounts @ augment.STAINS)


def make_patches(count: int, size: int = 5) -> np.ndarray:
    """[count, size, size, 3] values in [0, 1]; every pixel differs from every other."""
    return np.random.default_rng(0).random((count, size, size, 3), np.float32)


def symmetries(patch: np.ndarray) -> list[np.ndarray]:
    """The eight images of a square patch."""
    turned = [np.rot90(patch, quarter) for quarter in range(4)]
    return [image for one in turned for image in (one, one[:, ::-1])]


def test_without_stain_variation_a_patch_becomes_one_of_its_eight_symmetries_each_as_often():
    patch = make_patches(1)[0]
    bag = np.broadcast_to(patch, (800, *patch.shape))
    augmented = np.asarray(augment_bag(jax.random.key(0), jnp.asarray(bag), STILL))
    same = [(augmented == image).all(axis=(1, 2, 3)) for image in symmetries(patch)]
    counts = np.sum(same, axis=1)
    assert counts.sum() == 800  # so every one is a symmetry, and the multiset of pixels is kept
    # 100 expected; a binomial of 800 and 1/8 has the standard deviation 9.4.
    assert counts.min() > 100 - 5 * 9.4
    assert counts.max() < 100 + 5 * 9.4


def test_shape_type_and_range_are_kept():
    bag = make_patches(8)
    bag[0], bag[1] = 0, 1
    augmented = augment_bag(jax.random.key(1), jnp.asarray(bag), STRONG)
    assert augmented.shape == bag.shape
    assert augmented.dtype == jnp.float32
    assert np.isfinite(augmented).all()
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_the_key_decides_and_each_instance_has_its_own():
    patch = make_patches(1)[0]
    bag = jnp.asarray(np.broadcast_to(patch, (8, *patch.shape)))
    first = np.asarray(augment_bag(jax.random.key(2), bag, STRONG))
    np.testing.assert_array_equal(first, augment_bag(jax.random.key(2), bag, STRONG))
    other = np.asarray(augment_bag(jax.random.key(3), bag, STRONG))
    assert (first != other).any(axis=(1, 2, 3)).all()
    assert len(np.unique(first.reshape(8, -1), axis=0)) == 8


def test_padding_changes_no_instance():
    bag = jnp.asarray(make_patches(8))
    key = jax.random.key(4)
    np.testing.assert_allclose(augment_bag(key, bag, STRONG)[:3], augment_bag(key, bag[:3], STRONG), atol=1e-6)


def test_a_bag_is_its_patches_one_by_one():
    bag, key = jnp.asarray(make_patches(8)), jax.random.key(5)
    augment_patch = quick_jit(augment.augment_patch, static_argnums=2)
    alone = [augment_patch(jax.random.fold_in(key, slot), bag[slot], STRONG) for slot in range(3)]
    np.testing.assert_allclose(augment_bag(key, bag, STRONG)[:3], jnp.stack(alone), atol=1e-6)


def test_deconvolution_and_back_is_the_identity():
    patch = make_patches(1, size=9)[0]
    patch[0, 0], patch[0, 1] = 0, 1
    amounts = stain_amounts(jnp.asarray(patch))
    np.testing.assert_allclose(stained(amounts), patch, atol=2e-6)


def test_no_variation_is_the_identity_and_little_changes_little():
    patch = jnp.asarray(make_patches(1)[0])
    key = jax.random.key(6)
    np.testing.assert_array_equal(augment.vary_stains(key, patch, STILL), patch)
    np.testing.assert_allclose(augment.vary_stains(key, patch, StainVariation(1e-6, 0.0)), patch, atol=1e-5)


def test_what_is_no_stain_stays_and_each_stain_has_one_factor_and_one_shift():
    key, patch = jax.random.key(7), jnp.asarray(0.5 + 0.2 * make_patches(1)[0])
    before = np.asarray(stain_amounts(patch)).reshape(-1, 3)
    varied = augment.vary_stains(key, patch, StainVariation(0.1, 0.02))
    after = np.asarray(stain_amounts(varied)).reshape(-1, 3)
    np.testing.assert_allclose(after[:, 2], before[:, 2], atol=1e-5)
    for stain in range(2):
        factor, shift = np.polyfit(before[:, stain], after[:, stain], 1)
        np.testing.assert_allclose(after[:, stain], factor * before[:, stain] + shift, atol=1e-4)
        assert factor != pytest.approx(1, abs=1e-4)


def test_factors_and_shifts_have_the_spread_that_was_asked_for():
    """Two pixels of pure haematoxylin, amounts 0.5 and 1, give the factor and the shift of every patch back."""
    amounts = jnp.array([[[0.5, 0, 0], [1.0, 0, 0]]])
    patch, keys = stained(amounts), jax.random.split(jax.random.key(8), 4000)

    def amounts_after(key):
        return stain_amounts(augment.vary_stains(key, patch, StainVariation(0.1, 0.02)))

    found = np.asarray(jax.jit(jax.vmap(amounts_after))(keys))[:, 0, :, 0]
    factor = (found[:, 1] - found[:, 0]) / 0.5
    shift = found[:, 0] - 0.5 * factor
    # The standard error of a mean is spread / 63, that of a standard deviation spread / 89.
    np.testing.assert_allclose([factor.mean(), factor.std()], [1, 0.1], atol=0.008)
    np.testing.assert_allclose([shift.mean(), shift.std()], [0, 0.02], atol=0.0016)


def test_reference_numbers_of_the_stains():
    # Ruifrok and Johnston 2001: rows of length 1, haematoxylin mostly red and green, eosin green.
    np.testing.assert_allclose(np.linalg.norm(augment.STAINS, axis=1), 1)
    np.testing.assert_allclose(augment.STAINS[:2], [[0.651, 0.701, 0.290], [0.070, 0.991, 0.110]], atol=6e-4)
    np.testing.assert_allclose(augment.STAINS[2] @ augment.STAINS[:2].T, 0, atol=1e-12)
    np.testing.assert_allclose(augment.optical_density(jnp.array([1.0, 0.0])), [0, np.log(256)], atol=1e-6)


def test_a_patch_that_is_not_square_is_refused():
    message = message_of(augment.augment_patch, jax.random.key(0), jnp.zeros((4, 5, 3)))
    assert message.startswith("patch = (4, 5, 3): ")
    assert augment.vary_stains(jax.random.key(0), jnp.zeros((4, 5, 3))).shape == (4, 5, 3)


@pytest.mark.parametrize(("scale", "shift", "argument"), [(-0.1, 0.0, "scale"), (0.0, float("nan"), "shift")])
def test_a_variation_below_zero_is_refused(scale, shift, argument):
    assert message_of(StainVariation, scale, shift).startswith(f"{argument} = ")
