"""Instance encoders: networks that turn one bag's instances into embeddings, each instance on its own.

Dropout is on where the caller hands over a key for it (`rngs={"dropout": key}`), and off elsewhere.

Axes: K instances of a bag, D embedding.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mil_jax.products import Precision, dense_product

# The kernels of the Keras example; Flax's own default is LeCun-normal.
glorot_uniform = jax.nn.initializers.glorot_uniform()


class MLPEncoder(nn.Module):
    """A multilayer perceptron on flattened instances, with a ReLU after each layer.

    The Keras example's encoder is `MLPEncoder((128, 64))`; that of the MI-Nets for feature vectors (Wang et al. 2018,
    "Revisiting multiple instance neural networks") is `MLPEncoder((256, 128, 64))`.
    """

    features: tuple[int, ...] = (128, 64)
    """Width of each layer; the last one is D."""
    dropout: float = 0.0
    """Share of the units of each layer that a training step drops."""
    precision: Precision = "float32"
    """Of the factors of the products; sums are always float32."""

    @nn.compact
    def __call__(self, instances: Float[Array, "K ..."]) -> Float[Array, "K D"]:
        """Encodes instances [K, ...] as embeddings [K, D]."""
        hidden = instances.reshape(len(instances), -1)
        dense = partial(nn.Dense, kernel_init=glorot_uniform, dot_general=dense_product(self.precision))
        for width in self.features:
            hidden = nn.relu(dense(width)(hidden))
            if self.dropout and self.has_rng("dropout"):
                hidden = nn.Dropout(self.dropout, deterministic=False)(hidden)
        return hidden


class ConvEncoder(nn.Module):
    """Convolutions without padding, each with ReLU and 2x2 max pooling, then dense layers with ReLU.

    `LENET` is the paper's network for 28x28 images, `COLON` that for 27x27x3 patches of colon histology (Ilse et al.
    2018, in the supplement; here without the attention).
    """

    filters: tuple[tuple[int, int], ...]
    """(number of filters, side of the kernel in pixels) of each convolution."""
    features: tuple[int, ...]
    """Width of each dense layer; the last one is D."""
    dropout: float = 0.0
    """Share of the units of each dense layer that a training step drops."""
    precision: Precision = "float32"
    """Of the factors of the dense layers' products."""

    @nn.compact
    def __call__(self, instances: Float[Array, "K H W *channels"]) -> Float[Array, "K D"]:
        """Encodes images [K, H, W] or [K, H, W, channels] as embeddings [K, D]."""
        hidden = instances if instances.ndim == 4 else instances[..., None]
        for i, (count, side) in enumerate(self.filters):
            kernel = self.param(f"kernel_{i}", glorot_uniform, (side, side, hidden.shape[-1], count))
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (count,))
            # ReLU and bias keep the order of values, and so can wait until there are fewer of them.
            hidden = nn.relu(max_pool(convolve(hidden, kernel)) + bias)
        return MLPEncoder(self.features, self.dropout, self.precision, name="dense")(hidden)


def convolve(images: Float[Array, "K H W I"], kernel: Float[Array, "h w I O"]) -> Float[Array, "K P Q O"]:
    """The convolution without padding of images with O kernels, P = H - h + 1, Q = W - w + 1.

    On a CPU as one matrix product of the patches: XLA's own gradient of a convolution takes ten times as long there.
    """

    def native(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def by_patches(images: Array, kernel: Array) -> Array:
        (count, height, width, _), (down, across, channels, outputs) = images.shape, kernel.shape
        rows, columns = height - down + 1, width - across + 1
        shifted = [images[:, i : i + rows, j : j + columns] for i in range(down) for j in range(across)]
        patches = jnp.stack(shifted, axis=3).reshape(-1, down * across * channels)
        return (patches @ kernel.reshape(-1, outputs)).reshape(count, rows, columns, outputs)

    return lax.platform_dependent(images, kernel, cpu=by_patches, default=native)


def max_pool(images: Float[Array, "K H W C"]) -> Float[Array, "K P Q C"]:
    """The maximum of each 2x2 square; an odd last row or column is left out."""
    count, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(count, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


LENET = ((20, 5), (50, 5))
COLON = ((36, 4), (48, 3))
