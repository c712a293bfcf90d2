"""Augmentation of image patches, inside the compiled training step: symmetries of the square, and variation of stain.

Every function sees one patch and a key; ``augment_bag`` maps them over a bag. The paper (Ilse et al. 2018) turns and
mirrors the patches of colon nuclei and varies the amounts of their two stains.

Axes: K instances in a bag, H height and W width of a patch, both the same where it is turned.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from mil_jax.errors import InputError, check_number

HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
"""Optical density of each stain in red, green and blue, as Ruifrok and Johnston 2001 measured it."""

STAINS = np.array([HAEMATOXYLIN, EOSIN, np.cross(HAEMATOXYLIN, EOSIN)])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
"""[3, 3] unit rows: haematoxylin, eosin, and what is orthogonal to both, so that nothing is lost on the way."""
UNSTAINS = np.linalg.inv(STAINS)
"""By which optical densities become amounts of stain: colour deconvolution (Ruifrok and Johnston 2001)."""


@dataclass(frozen=True)
class StainVariation:
    """How much the two stains vary; the defaults are ours."""

    scale: float = 0.1
    """Standard deviation of the factor of each amount, around 1."""
    shift: float = 0.02
    """Standard deviation of what is added to each amount, in units of optical density."""

    def __post_init__(self):
        for argument in ("scale", "shift"):
            check_number(argument, getattr(self, argument), 0)


def augment_bag(
    key: Key[Array, ""], instances: Float[Array, "K H W 3"], variation: StainVariation = StainVariation()
) -> Float[Array, "K H W 3"]:
    """Augments each patch of a bag with a key of its own, which depends on its slot and not on how many there are."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(instances)))
    return jax.vmap(augment_patch, in_axes=(0, 0, None))(keys, instances, variation)


def augment_patch(
    key: Key[Array, ""], patch: Float[Array, "H W 3"], variation: StainVariation = StainVariation()
) -> Float[Array, "H W 3"]:
    """Turns and mirrors a square patch of values in [0, 1] at random, and varies its stains."""
    # In this order: XLA would compute the exponential of the stains anew for each of the symmetries' choices.
    key_symmetry, key_stain = jax.random.split(key)
    return vary_stains(key_stain, turn_or_mirror(key_symmetry, patch), variation)


def turn_or_mirror(key: Key[Array, ""], patch: Float[Array, "H W 3"]) -> Float[Array, "H W 3"]:
    """Draws one of the eight symmetries of a square patch, four rotations, each as it is or mirrored.

    Each of them is a transposition or not, then rows reversed or not, then columns reversed or not. Three coins
    choose among two arrays each; a branch for each rotation would compute all of them under `vmap`. A patch that is
    not square is an InputError.
    """
    if patch.shape[0] != patch.shape[1]:
        raise InputError("patch", patch.shape, "expected as many rows as columns, for quarter turns")
    transpose, reverse_rows, reverse_columns = jax.random.bernoulli(key, shape=(3,))
    patch = jnp.where(transpose, patch.swapaxes(0, 1), patch)
    patch = jnp.where(reverse_rows, patch[::-1], patch)
    return jnp.where(reverse_columns, patch[:, ::-1], patch)


def vary_stains(
    key: Key[Array, ""], patch: Float[Array, "H W 3"], variation: StainVariation = StainVariation()
) -> Float[Array, "H W 3"]:
    """Scales and shifts the amounts of haematoxylin and eosin in a patch of values in [0, 1].

    amount' = amount · max(0, 1 + scale · g) + shift · h, with g and h standard normal, drawn once for each stain and
    patch. What is neither of the two stains stays. Values that leave [0, 1] are clipped; with a scale and a shift of
    0 the patch comes back as it is.
    """
    if variation == StainVariation(0.0, 0.0):
        return patch
    normal = jax.random.normal(key, (2, 2))
    factor = jnp.maximum(0, 1 + variation.scale * normal[0])
    # Between the logarithm and the exponential all is linear: one 3 x 3 matrix and one vector for the whole patch.
    factor, shift = jnp.append(factor, 1), jnp.append(variation.shift * normal[1], 0)
    mix, offset = UNSTAINS * factor @ STAINS, shift @ STAINS
    # The barrier keeps XLA from taking the logarithm anew for each colour that it goes into. The product is written
    # out because a matrix this small costs four times as much by way of a matrix product.
    red, green, blue = jnp.split(lax.optimization_barrier(optical_density(patch)), 3, axis=-1)
    density = red * mix[0] + green * mix[1] + blue * mix[2] + offset
    return jnp.clip(transmitted(density), 0, 1)


def optical_density(light: Float[Array, "..."]) -> Float[Array, "..."]:
    """-ln((255 light + 1) / 256): 0 for white, and finite for black, which 8 bits cannot tell from almost black."""
    return -jnp.log((255 * light + 1) / 256)


def transmitted(density: Float[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of ``optical_density``, below 0 where the density is above that of black."""
    return (256 * jnp.exp(-density) - 1) / 255
