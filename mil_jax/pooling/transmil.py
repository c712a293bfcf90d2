"""TransMIL: instances as a square of tokens, which two layers of attention and convolutions between them relate.

The side of the square is ceil(sqrt(n)) for the n instances of a bag, not for its K slots: so it differs within a
program. Tokens therefore stand in a row, those of the square first and row after row; convolutions gather them into a
square of G x G, G = ceil(sqrt(K)), whose cells outside the bag's own square are 0, as outside of any image.

Axes: K slots of a bag, D embedding, W width inside, L = G * G + 1 tokens, H heads.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mil_jax.encoders import glorot_uniform
from mil_jax.pooling.base import NOISE, Pooled, shares, where_any
from mil_jax.pooling.heads import attend, join_heads, nystrom, split_heads, weights_of
from mil_jax.record import record

TAPS = 33  # of the convolution along the values


@record
class Square:
    """Which instance is where, in a bag of n."""

    side: Int[Array, ""]
    """ceil(sqrt(n)), at least 1."""
    source: Int[Array, " cells"]
    """[G * G] the instance in each cell, row after row; the first ones again where the n of the bag do not fill it."""
    valid: Bool[Array, " L"]
    """The class token and the cells of the bag's own square; they stand first."""


def square_of(mask: Bool[Array, " K"]) -> Square:
    """The square of a bag whose instances stand before its empty slots."""
    largest = 1
    while largest**2 < len(mask):
        largest += 1
    count, cell = mask.sum(), jnp.arange(largest**2)
    side = 1 + jnp.sum(jnp.arange(1, largest) ** 2 < count)
    source = jnp.clip(jnp.where(cell < count, cell, cell - count), 0, len(mask) - 1)
    return Square(side, source, jnp.arange(largest**2 + 1) <= side**2)


class TransMILPooling(nn.Module):
    """TransMIL (Shao et al. 2021, NeurIPS, algorithms 1 to 3), whose class token is the bag's embedding, [W].

    The method looks at the order of the instances: their places in the square are their places in the bag. Attention
    is that of the class token in the last layer, the mean of the heads, over the instances alone; a repeated instance
    has what its copies have.

    Differs from the authors' code: padding has no influence (theirs takes one bag at a time); attention is exact unless
    `landmarks` is given, and then zeros that fill up the landmarks are neither averaged nor attended to.
    """

    width: int = 512
    """W."""
    heads: int = 8
    """That the width is cut into."""
    landmarks: int | None = None
    """Of Nyström's approximation, 256 in the paper; exact attention where not given."""
    chunk: int | None = None
    """Tokens whose exact attention is in memory at a time; all where not given."""
    dropout: float = 0.1
    """Share of what attention adds to a token that a training step drops."""
    attends = True
    ordered = True

    @nn.compact
    def __call__(self, embeddings: Float[Array, "K D"], mask: Bool[Array, " K"]) -> Pooled:
        """Relates the embeddings [K, D] of the instances in `mask` [K]."""
        square = square_of(mask)
        projected = nn.relu(nn.Dense(self.width, kernel_init=glorot_uniform, name="project")(embeddings))
        token = self.param("class_token", nn.initializers.normal(1.0), (1, self.width))
        tokens = jnp.concatenate([token, projected[square.source]])
        layer = (self.heads, self.landmarks, self.chunk, self.dropout)
        tokens = TokenLayer(*layer, name="layer_0")(tokens, square.valid)[0]
        tokens = Positions(name="positions")(tokens, square)
        tokens, weights = TokenLayer(*layer, name="layer_1")(tokens, square.valid)
        embedding = nn.LayerNorm(epsilon=1e-5, name="norm")(tokens[0])
        by_instance = jnp.zeros(len(mask)).at[square.source].add(jnp.where(square.valid[1:], weights[1:], 0))
        return Pooled(where_any(mask, embedding), shares(jnp.maximum(by_instance, 0), mask))


class TokenLayer(nn.Module):
    """x + Attention(LN(x)), where the values are also convolved along the row of tokens, each head by one kernel."""

    heads: int
    landmarks: int | None
    chunk: int | None
    dropout: float

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "L W"], valid: Bool[Array, " L"]
    ) -> tuple[Float[Array, "L W"], Float[Array, " L"]]:
        """The tokens [L, W] after they have seen the valid ones, and the weights of the first one's attention."""
        width = tokens.shape[1]
        normed = jnp.where(valid[:, None], nn.LayerNorm(epsilon=1e-5, name="norm")(tokens), 0)
        parts = jnp.split(
            nn.Dense(3 * width, use_bias=False, kernel_init=glorot_uniform, name="qkv")(normed), 3, axis=1
        )
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        queries = queries / jnp.sqrt(width // self.heads)
        if self.landmarks is None:
            seen = attend(queries, keys, values, valid, self.chunk)
            weights = weights_of(queries[:, :1], keys, valid)[:, 0]
        else:
            left, right = nystrom(queries, keys, valid, self.landmarks)
            seen, weights = left @ (right @ values), jnp.einsum("hm,hmk->hk", left[:, 0], right)
        kernel = self.param("taps", glorot_uniform, (TAPS, 1, self.heads))
        seen = join_heads(seen + along(values, kernel))
        added = nn.Dense(width, kernel_init=glorot_uniform, name="out")(seen)
        if self.dropout and self.has_rng(NOISE):
            added = nn.Dropout(self.dropout, deterministic=False)(added)
        return tokens + added, weights.mean(axis=0)


def along(values: Float[Array, "H L d"], kernel: Float[Array, "taps 1 H"]) -> Float[Array, "H L d"]:
    """The convolution of each head's values along the tokens, with zeros at both ends."""
    shape = lax.conv_dimension_numbers(values.shape, kernel.shape, ("CWN", "WIO", "CWN"))
    return lax.conv_general_dilated(
        values, kernel, (1,), "SAME", dimension_numbers=shape, feature_group_count=len(values)
    )


class Positions(nn.Module):
    """The pyramid position encoding (PPEG): convolutions of 7x7, 5x5 and 3x3 of each feature over the square, added.

    As all of them are linear, they are done by one kernel of 7x7.
    """

    @nn.compact
    def __call__(self, tokens: Float[Array, "L W"], square: Square) -> Float[Array, "L W"]:
        """The class token as it is, and the others with what is around them."""
        width, side = tokens.shape[1], square.side
        kernel, bias = jnp.zeros((7, 7, 1, width)).at[3, 3].set(1), jnp.zeros(width)
        for size in (7, 5, 3):
            rim = (7 - size) // 2
            own = self.param(f"kernel_{size}", glorot_uniform, (size, size, 1, width))
            kernel += jnp.pad(own, ((rim, rim), (rim, rim), (0, 0), (0, 0)))
            bias += self.param(f"bias_{size}", nn.initializers.zeros, (width,))
        largest = round(len(square.source) ** 0.5)
        row, column = jnp.arange(largest)[:, None], jnp.arange(largest)
        inside = (row < side) & (column < side)
        place = jnp.where(inside, 1 + row * side + column, 0)
        image = jnp.where(inside[..., None], tokens[place], 0)
        convolved = lax.conv_general_dilated(
            image[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=width
        )
        cell = jnp.arange(largest**2)
        back = convolved[0, jnp.minimum(cell // side, largest - 1), cell % side] + bias
        return jnp.concatenate([tokens[:1], jnp.where(square.valid[1:, None], back, 0)])
