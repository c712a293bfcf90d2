"""Instance encoders: networks that turn one bag's instances into embeddings, each instance on its own.

Dropout is on where the caller hands over a key for it (`rngs={"dropout": key}`), and off elsewhere.

Axes: K instances of a bag, D embedding.
"""

from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from mil_jax.convolution import convolve_and_pool
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
            hidden = nn.relu(convolve_and_pool(hidden, kernel) + bias)
        return MLPEncoder(self.features, self.dropout, self.precision, name="dense")(hidden)


LENET = ((20, 5), (50, 5))
COLON = ((36, 4), (48, 3))
