"""A convolution and the 2x2 max pooling behind it, as one operation, which on a CPU is one product of matrices.

A window is what one value after pooling depends on: kernel and pool reach over (h + 1) x (w + 1) pixels, in steps of 2.
Windows times the kernel in each of the pool's four places are the four values of which the pool takes the largest.
That is up to 1.8 times as many multiplications as patches times kernel need; but the windows are fewer numbers than
the patches, copying is what takes the time, and the four values lie beside one another. Some images at a time, so that
their windows stay in the cache.

Axes: K images, H height, W width, I channels; h, w the kernel's sides, O kernels; P x Q values after pooling.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

BLOCK = 8
"""Images at a time: their windows and products take less than the 2 MB of a core's cache in the papers' networks."""

PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Of a value in its pool: row and column."""


def convolve_and_pool(images: Float[Array, "K H W I"], kernel: Float[Array, "h w I O"]) -> Float[Array, "K P Q O"]:
    """The convolution without padding of images with O kernels, and of each 2x2 square of it the maximum.

    P = (H - h + 1) // 2, Q = (W - w + 1) // 2: an odd last row or column is left out. Where several values of a square
    are the largest, they share its gradient, as in JAX's own maximum.
    """
    return lax.platform_dependent(images, kernel, cpu=by_windows, default=in_two_steps)


def in_two_steps(images: Float[Array, "K H W I"], kernel: Float[Array, "h w I O"]) -> Float[Array, "K P Q O"]:
    """JAX's own convolution and maximum."""
    values = lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    count, height, width, outputs = values.shape
    even = values[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(count, height // 2, 2, width // 2, 2, outputs).max(axis=(2, 4))


@jax.custom_vjp
def by_windows(images: Float[Array, "K H W I"], kernel: Float[Array, "h w I O"]) -> Float[Array, "K P Q O"]:
    """The product of windows with the kernel, some images at a time."""
    return _forward(images, kernel)[0]


def _forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    index, wide = window_index(images.shape, kernel.shape), spread_kernel(kernel)

    def of_block(images: Array) -> tuple[Array, Array]:
        return largest(take_windows(images, index, wide.shape[0]) @ wide)

    largest_values, winners = lax.map(of_block, in_blocks(images))
    shape = (*pooled_sides(images.shape, kernel.shape), kernel.shape[-1])
    pooled = largest_values.reshape(-1, *shape)[: len(images)]
    return pooled, (images, kernel, winners)


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array]:
    images, kernel, winners = saved
    index, (wide, narrow) = window_index(images.shape, kernel.shape), jax.vjp(spread_kernel, kernel)
    of_pools = in_blocks(gradient).reshape(winners.shape)

    # Two loops: of the first layer nobody asks for the images' gradient, and the compiler leaves out a loop as a whole.
    def of_kernel(total: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        images, gradient, winners = block
        return total + take_windows(images, index, wide.shape[0]).T @ shared_out(gradient, winners), None

    def of_images(block: tuple[Array, Array]) -> Array:
        return fold_windows(shared_out(*block) @ wide.T, index, images.shape[1:])

    of_wide, _ = lax.scan(of_kernel, jnp.zeros_like(wide), (in_blocks(images), of_pools, winners))
    folded = lax.map(of_images, (of_pools, winners)).reshape(-1, *images.shape[1:])[: len(images)]
    return folded, narrow(of_wide)[0]


by_windows.defvjp(_forward, _backward)


# ---- windows ----


def pooled_sides(images: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, int]:
    """P and Q for shapes of images and kernels."""
    return (images[1] - kernel[0] + 1) // 2, (images[2] - kernel[1] + 1) // 2


def window_index(images: tuple[int, ...], kernel: tuple[int, ...]) -> Int[np.ndarray, "windows pixels"]:
    """Which pixels of an image each window holds, for shapes of images and kernels; pixels are counted row by row."""
    (rows, columns), pixel = pooled_sides(images, kernel), np.arange(images[1] * images[2]).reshape(images[1:3])
    windows = np.lib.stride_tricks.sliding_window_view(pixel, (kernel[0] + 1, kernel[1] + 1))
    return windows[: 2 * rows : 2, : 2 * columns : 2].reshape(rows * columns, -1).astype(np.int32)


def spread_kernel(kernel: Float[Array, "h w I O"]) -> Float[Array, "length values"]:
    """The kernel in each place of a pool, a matrix: rows for the values of a window, zero where it does not reach."""
    placed = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in PLACES]
    return jnp.stack(placed, axis=3).reshape(-1, len(PLACES) * kernel.shape[-1])


def in_blocks(images: Shaped[Array, "K ..."]) -> Shaped[Array, "blocks block ..."]:
    """Cut into blocks, the last one filled up with zeros."""
    size = min(BLOCK, len(images))
    filled = jnp.pad(images, ((0, -len(images) % size), *[(0, 0)] * (images.ndim - 1)))
    return filled.reshape(-1, size, *images.shape[1:])


def take_windows(
    images: Float[Array, "K H W I"], index: Int[np.ndarray, "windows pixels"], length: int
) -> Float[Array, "rows length"]:
    """The windows of all images, one in a row."""
    count, channels = len(images), images.shape[-1]
    # Few channels are faster value by value, many in runs.
    if channels < 16:
        flat = (index[..., None] * channels + np.arange(channels, dtype=np.int32)).reshape(len(index), -1)
        return images.reshape(count, -1)[:, flat].reshape(-1, length)
    return images.reshape(count, -1, channels)[:, index].reshape(-1, length)


def fold_windows(
    windows: Float[Array, "rows length"], index: Int[np.ndarray, "windows pixels"], shape: tuple[int, ...]
) -> Float[Array, "K H W I"]:
    """The transpose of `take_windows`: each pixel's sum over the windows that hold it."""
    height, width, channels = shape
    values = windows.reshape(-1, index.size, channels)
    # Looked up from the pixel, as adding into places is slow; behind the last value stands a zero.
    values = jnp.pad(values, ((0, 0), (0, 1), (0, 0)))
    total = sum(values[:, places] for places in holders(index, height * width))
    return total.reshape(-1, height, width, channels)


def holders(index: Int[np.ndarray, "windows pixels"], count: int) -> Int[np.ndarray, "most count"]:
    """For each of `count` pixels the places in `index` where it stands, filled up with the size of `index`."""
    order, counts = np.argsort(index, axis=None, kind="stable"), np.bincount(index.ravel(), minlength=count)
    rank = np.arange(counts.max())[:, None]
    first = np.cumsum(counts) - counts
    padded = np.append(order, np.full(counts.max(), index.size))
    return np.where(rank < counts, padded[first + rank], index.size).astype(np.int32)


# ---- pools ----


def largest(values: Float[Array, "N values"]) -> tuple[Float[Array, "N O"], UInt8[Array, "N O"]]:
    """The largest of a pool's four values, and which of them are as large, a bit for each."""
    parts = jnp.split(values, len(PLACES), axis=-1)
    top = jnp.maximum(jnp.maximum(parts[0], parts[1]), jnp.maximum(parts[2], parts[3]))
    bits = [(part == top).astype(jnp.uint8) << i for i, part in enumerate(parts)]
    return top, bits[0] | bits[1] | bits[2] | bits[3]


def shared_out(gradient: Float[Array, "N O"], winners: UInt8[Array, "N O"]) -> Float[Array, "N values"]:
    """The gradient of a pool's four values: those that are the largest share it."""
    share = gradient / lax.population_count(winners).astype(jnp.float32)
    return jnp.concatenate([jnp.where(winners >> i & 1, share, 0) for i in range(len(PLACES))], axis=-1)
