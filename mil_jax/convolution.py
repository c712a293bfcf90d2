"""A convolution and the 2x2 max pooling behind it, as one operation, which on a CPU is a few products of matrices.

A window is what one value after pooling depends on: kernel and pool reach over (h + 1) x (w + 1) pixels, in steps of 2.
There are two ways from windows to the four values of which the pool takes the largest. Any kernel: windows times the
kernel in each of the pool's four places. That is up to 1.8 times as many multiplications as patches times kernel need,
but windows are fewer numbers than patches, and copying takes the time. A kernel of 3x3 and many channels:
Winograd's minimal filters for two by two values (Lavin and Gray 2016, "Fast algorithms for convolutional neural
networks", section 4.1), with 16 multiplications for what patches need 36 for. Some images at a time, so that all stays
in the cache.

Axes: K images, H height, W width, I channels; h, w the kernel's sides, O kernels; P x Q values after pooling; N windows
of a block.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped, UInt8

BLOCK = 8
"""Images at a time: their windows and products take less than the 2 MB of a core's cache in the papers' networks."""
RUN = 16
"""From so many channels on a pixel is copied as a whole, and its products are large enough for Winograd's filters."""

PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Of a value in its pool: row and column."""

Four = tuple[Array, ...]
"""The values of the four places, [N, O] each."""


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
    """The same by products of windows, some images at a time."""
    return _forward(images, kernel)[0]


def _forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    way, blocks = way_of(images.shape, kernel.shape), in_blocks(images)
    prepared = way.prepare(kernel)
    largest_values, winners = lax.map(lambda block: largest(way.multiply(way.take(block), prepared)), blocks)
    pooled = largest_values.reshape(-1, *pooled_sides(images.shape, kernel.shape), kernel.shape[-1])
    return pooled[: len(images)], (images, kernel, winners)


def _backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array]:
    images, kernel, winners = saved
    way, blocks = way_of(images.shape, kernel.shape), in_blocks(images)
    prepared, unprepare = jax.vjp(way.prepare, kernel)
    of_pools = in_blocks(gradient).reshape(winners.shape)

    # Two loops: of the first layer nobody asks for the images' gradient, and the compiler leaves out a loop as a whole.
    def of_kernel(total: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        images, gradient, winners = block
        windows = way.take(images)
        of_prepared = jax.vjp(lambda prepared: way.multiply(windows, prepared), prepared)[1]
        return total + of_prepared(shared_out(gradient, winners))[0], None

    def of_images(block: tuple[Array, Array]) -> Array:
        windows = jnp.zeros_like(way.take(blocks[0]))  # the product is linear in them: their values do not matter
        of_windows = jax.vjp(lambda windows: way.multiply(windows, prepared), windows)[1]
        return way.fold(of_windows(shared_out(*block))[0])

    total, _ = lax.scan(of_kernel, jnp.zeros_like(prepared), (blocks, of_pools, winners))
    folded = lax.map(of_images, (of_pools, winners)).reshape(-1, *images.shape[1:])[: len(images)]
    return folded, unprepare(total)[0]


by_windows.defvjp(_forward, _backward)


# ---- two ways from windows to values ----


@dataclasses.dataclass(frozen=True)
class Way:
    """How values follow from images of one shape, a block of them, and kernels of another."""

    shape: tuple[int, ...]
    """Of the images of a block."""
    index: Int[np.ndarray, "rows columns"]
    """Which pixels of the block are looked up; they are counted from its first image on, row by row."""
    windows: tuple[int, ...]
    """The shape of what is looked up."""
    prepare: Callable[[Array], Array]
    """Of the kernel, what windows are multiplied by."""
    multiply: Callable[[Array, Array], Four]
    """Windows and what was prepared to the values of the four places; linear in each of them."""

    def take(self, images: Float[Array, "block H W I"]) -> Float[Array, "..."]:
        """The windows of the images of a block."""
        channels = self.shape[-1]
        if channels >= RUN:
            return images.reshape(-1, channels)[self.index].reshape(self.windows)
        count = len(self.index) // self.shape[0]
        flat = (self.index[:count, :, None] * channels + np.arange(channels, dtype=np.int32)).reshape(count, -1)
        return images.reshape(self.shape[0], -1)[:, flat].reshape(self.windows)

    def fold(self, windows: Float[Array, "..."]) -> Float[Array, "block H W I"]:
        """The transpose of `take`: each pixel's sum over the windows that hold it."""
        # Looked up from the pixel, as adding into places is slow; behind the last value stands a zero.
        values = jnp.pad(windows.reshape(-1, self.shape[-1]), ((0, 1), (0, 0)))
        held = holders(self.index, int(np.prod(self.shape[:3])))
        return sum(values[places] for places in held).reshape(self.shape)  # type: ignore[union-attr]


def way_of(images: tuple[int, ...], kernel: tuple[int, ...]) -> Way:
    """The way for shapes of images and kernels."""
    shape = (block_size(images[0]), *images[1:])
    index = window_index(shape, kernel)
    if kernel[:2] == (3, 3) and kernel[2] >= RUN:
        return Way(shape, index.T, (*index.T.shape, kernel[2]), transformed_kernel, minimal_filters)
    return Way(shape, index, (len(index), index.shape[1] * kernel[2]), spread_kernel, four_products)


def spread_kernel(kernel: Float[Array, "h w I O"]) -> Float[Array, "length values"]:
    """The kernel in each place of a pool, a matrix: rows for the values of a window, zero where it does not reach."""
    placed = [jnp.pad(kernel, ((i, 1 - i), (j, 1 - j), (0, 0), (0, 0))) for i, j in PLACES]
    return jnp.stack(placed, axis=3).reshape(-1, len(PLACES) * kernel.shape[-1])


def four_products(windows: Float[Array, "N length"], spread: Float[Array, "length values"]) -> Four:
    """Windows times the kernel in each place."""
    return tuple(jnp.split(windows @ spread, len(PLACES), axis=-1))


# Lavin and Gray 2016, F(2, 3): values = AT [(G kernel) * (BT window)], in one dimension; twice in two.
BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
AT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def transformed_kernel(kernel: Float[Array, "3 3 I O"]) -> Float[Array, "16 I O"]:
    """What transformed windows are multiplied by."""
    return (jnp.kron(G, G) @ kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])


def minimal_filters(windows: Float[Array, "16 N I"], kernel: Float[Array, "16 I O"]) -> Four:
    """Windows, their pixels along the first axis, to values by Winograd's filters."""
    count, outputs = windows.shape[1], kernel.shape[-1]
    transformed = (jnp.kron(BT, BT) @ windows.reshape(16, -1)).reshape(windows.shape)
    products = jnp.einsum("tni,tio->tno", transformed, kernel)
    return tuple((jnp.kron(AT, AT) @ products.reshape(16, -1)).reshape(len(PLACES), count, outputs))


# ---- blocks and indices ----


def pooled_sides(images: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, int]:
    """P and Q for shapes of images and kernels."""
    return (images[1] - kernel[0] + 1) // 2, (images[2] - kernel[1] + 1) // 2


def block_size(count: int) -> int:
    """How many of `count` images are taken at a time."""
    return min(BLOCK, count)


def in_blocks(images: Shaped[Array, "K ..."]) -> Shaped[Array, "blocks block ..."]:
    """Cut into blocks, the last one filled up with zeros."""
    size = block_size(len(images))
    filled = jnp.pad(images, ((0, -len(images) % size), *[(0, 0)] * (images.ndim - 1)))
    return filled.reshape(-1, size, *images.shape[1:])


def window_index(images: tuple[int, ...], kernel: tuple[int, ...]) -> Int[np.ndarray, "N pixels"]:
    """Which pixels each window holds, image by image, for shapes of images and kernels."""
    (rows, columns), pixel = pooled_sides(images, kernel), np.arange(np.prod(images[:3])).reshape(images[:3])
    windows = np.lib.stride_tricks.sliding_window_view(pixel, (kernel[0] + 1, kernel[1] + 1), axis=(1, 2))
    every_other = windows[:, : 2 * rows : 2, : 2 * columns : 2]
    return every_other.reshape(-1, (kernel[0] + 1) * (kernel[1] + 1)).astype(np.int32)


def holders(index: Int[np.ndarray, "rows columns"], count: int) -> Int[np.ndarray, "most count"]:
    """For each of `count` pixels the places in `index` where it stands, filled up with the size of `index`."""
    order, counts = np.argsort(index, axis=None, kind="stable"), np.bincount(index.ravel(), minlength=count)
    rank, first = np.arange(counts.max())[:, None], np.cumsum(counts) - counts
    padded = np.append(order, np.full(counts.max(), index.size))
    return np.where(rank < counts, padded[first + rank], index.size).astype(np.int32)


# ---- pools ----


def largest(four: Four) -> tuple[Float[Array, "N O"], UInt8[Array, "N O"]]:
    """The largest of a pool's four values, and which of them are as large, a bit for each."""
    top = jnp.maximum(jnp.maximum(four[0], four[1]), jnp.maximum(four[2], four[3]))
    bits = [(values == top).astype(jnp.uint8) << i for i, values in enumerate(four)]
    return top, bits[0] | bits[1] | bits[2] | bits[3]


def shared_out(gradient: Float[Array, "N O"], winners: UInt8[Array, "N O"]) -> Four:
    """The gradient of a pool's four values: those that are the largest share it."""
    share = gradient / lax.population_count(winners).astype(jnp.float32)
    return tuple(jnp.where(winners >> i & 1, share, 0) for i in range(len(PLACES)))
