"""Instance encoders: networks that turn one bag's instances into embeddings, each instance on its own.

Axes: K instances of a bag, D embedding.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

# The kernels of the Keras example; Flax's own default is LeCun-normal.
glorot_uniform = jax.nn.initializers.glorot_uniform()


class MLPEncoder(nn.Module):
    """A multilayer perceptron on flattened instances, with a ReLU after each layer.

    The Keras example's encoder is `MLPEncoder((128, 64))`.

    Attributes:
        features: width of each layer; the last one is D.
    """

    features: Sequence[int] = (128, 64)

    @nn.compact
    def __call__(self, instances: Float[Array, "K ..."]) -> Float[Array, "K D"]:
        """Encodes instances [K, ...] as embeddings [K, D]."""
        hidden = instances.reshape(len(instances), -1)
        for width in self.features:
            hidden = nn.relu(nn.Dense(width, kernel_init=glorot_uniform)(hidden))
        return hidden
