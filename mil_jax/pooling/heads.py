"""Attention of some tokens to others, with several heads: exact, in chunks of queries, or by landmarks.

Axes: Q queries, K keys, H heads, d width of a head, m landmarks.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


def split_heads(tokens: Float[Array, "K W"], heads: int) -> Float[Array, "H K d"]:
    """The features of the tokens [K, W], cut into H parts of d = W / H."""
    return tokens.reshape(len(tokens), heads, -1).swapaxes(0, 1)


def join_heads(tokens: Float[Array, "H K d"]) -> Float[Array, "K W"]:
    """The other way round."""
    return tokens.swapaxes(0, 1).reshape(tokens.shape[1], -1)


def weights_of(
    queries: Float[Array, "H Q d"], keys: Float[Array, "H K d"], mask: Bool[Array, " K"]
) -> Float[Array, "H Q K"]:
    """Softmax over the keys of the mask of queries · keys; queries are scaled by who calls."""
    return jax.nn.softmax(queries @ keys.swapaxes(1, 2), axis=-1, where=mask)


def attend(
    queries: Float[Array, "H Q d"],
    keys: Float[Array, "H K d"],
    values: Float[Array, "H K d"],
    mask: Bool[Array, " K"],
    chunk: int | None = None,
) -> Float[Array, "H Q d"]:
    """The mean of the values by the weights of each query, exactly.

    With `chunk`, that many queries at a time, whose weights the backward pass computes again: memory grows with K, not
    with Q K.
    """
    if chunk is None:
        return weights_of(queries, keys, mask) @ values
    count = queries.shape[1]
    padded = jnp.pad(queries, ((0, 0), (0, -count % chunk), (0, 0)))
    blocks = padded.reshape(len(padded), -1, chunk, padded.shape[-1]).swapaxes(0, 1)
    joined = lax.map(jax.checkpoint(lambda block: weights_of(block, keys, mask) @ values), blocks)
    return joined.swapaxes(0, 1).reshape(padded.shape)[:, :count]


def nystrom(
    queries: Float[Array, "H K d"],
    keys: Float[Array, "H K d"],
    mask: Bool[Array, " K"],
    landmarks: int,
    iterations: int = 6,
) -> tuple[Float[Array, "H K m"], Float[Array, "H m K"]]:
    """Two factors whose product approximates the attention weights of K tokens to one another, in O(m K).

    Nyströmformer (Xiong et al. 2021): landmarks are means of neighbouring tokens, and softmax(q k') =~ softmax(q l_k')
    softmax(l_q l_k')^+ softmax(l_q k'). The N tokens of the mask, which stand first, fall into runs of ceil(N / m), the
    first of which may be short or empty: as if the front were padded, but padding is in no mean and has no weight.
    """
    member = runs(mask, landmarks)
    size = member.sum(axis=1)
    mean = member / jnp.maximum(size, 1)[:, None]
    middle_queries, middle_keys, some = mean @ queries, mean @ keys, size > 0
    inner = weights_of(middle_queries, middle_keys, some) * some[:, None]
    left = weights_of(queries, middle_keys, some) @ pseudo_inverse(inner, iterations)
    return left, weights_of(middle_queries, keys, mask) * some[:, None]


def runs(mask: Bool[Array, " K"], count: int) -> Bool[Array, "m K"]:
    """Which of the tokens that stand first fall into which of `count` runs of the same length, the last one full."""
    total = mask.sum()
    length = jnp.maximum(-(-total // count), 1)
    run: Int[Array, " K"] = (jnp.arange(len(mask)) + count * length - total) // length
    return mask & (run == jnp.arange(count)[:, None])


def pseudo_inverse(matrix: Float[Array, "H m m"], iterations: int) -> Float[Array, "H m m"]:
    """The Moore-Penrose inverse, approximately, by products of matrices (Razavi et al. 2014, as in Nyströmformer)."""
    size = jnp.abs(matrix)
    identity = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    norms = size.sum(axis=-1).max() * size.sum(axis=-2).max()
    inverse = matrix.swapaxes(1, 2) / jnp.maximum(norms, jnp.finfo(matrix.dtype).tiny)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
    return inverse
