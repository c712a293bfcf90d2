"""Many small images as few large ones: a page with thousands of instances asks the browser to decode some sheets.

Axes: N instances in the pool, M of them that are shown, K slots per bag.
"""

import io
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

SHEET_SIDE = 4096  # pixels; browsers hold larger images badly
MOST_BYTES = 9_000_000  # of all sheets together, before base64 makes four of three


class Sprites(NamedTuple):
    """Where the images are: ``place[i]`` is (sheet, column, row) of the pool's row i; -1 where it is not shown."""

    sheets: list[bytes]
    """PNG files."""
    columns: int
    """Images in a line, in every sheet."""
    lines: list[int]
    """How many lines each sheet has."""
    width: int
    """Of an image, in pixels as stored."""
    height: int
    shrunk: int
    """How much smaller than the instances they are; 1 where they are as given."""
    place: np.ndarray


def are_images(pool: Shaped[np.ndarray, "N ..."]) -> bool:
    """Whether the instances are grey or colour images."""
    return pool.ndim == 3 or (pool.ndim == 4 and pool.shape[-1] in (1, 3))


def make_sprites(pool: Shaped[np.ndarray, "N ..."], shown: Int[np.ndarray, " M"]) -> Sprites:
    """Puts the images that are shown, rows of the pool, on sheets; halves them until these are not too heavy."""
    images, shrunk = to_bytes(pool[shown]), 1
    while sum(map(len, (sprites := _sheets(images, shown, len(pool), shrunk)).sheets)) > MOST_BYTES:
        if min(images.shape[1:3]) < 8:
            break
        images, shrunk = _halved(images), 2 * shrunk
    return sprites


def to_bytes(images: Shaped[np.ndarray, "M ..."]) -> UInt8[np.ndarray, "M ..."]:
    """Images as uint8, without the channel axis if they are grey.

    Integers are taken as 0..255, floats as 0..1, other floats are stretched over their range.
    """
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype == np.uint8:
        return images
    low, high = (0.0, 255.0) if np.issubdtype(images.dtype, np.integer) else (0.0, 1.0)
    values = np.nan_to_num(images.astype(np.float32))
    if high == 1.0 and values.size and (values.min() < 0 or values.max() > 1):
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def _halved(images: np.ndarray) -> np.ndarray:
    """Means of squares of four pixels."""
    count, height, width, *channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2].astype(np.float32)
    squares = even.reshape(count, height // 2, 2, width // 2, 2, *channels)
    return np.round(squares.mean(axis=(2, 4))).astype(np.uint8)


def _sheets(images: np.ndarray, shown: np.ndarray, pool_size: int, shrunk: int) -> Sprites:
    height, width = images.shape[1:3]
    columns = max(min(SHEET_SIDE // width, math.ceil(math.sqrt(len(images)))), 1)
    per_sheet = columns * max(SHEET_SIDE // height, 1)
    place, index = np.full((pool_size, 3), -1), np.arange(len(images))
    place[shown] = np.stack([index // per_sheet, index % per_sheet % columns, index % per_sheet // columns], axis=1)
    parts = [images[first : first + per_sheet] for first in range(0, len(images), per_sheet)]
    lines = [math.ceil(len(part) / columns) for part in parts]
    sheets = [_mosaic(part, columns, count) for part, count in zip(parts, lines, strict=True)]
    return Sprites(sheets, columns, lines, width, height, shrunk, place)


def _mosaic(images: np.ndarray, columns: int, lines: int) -> bytes:
    count, height, width, *channels = images.shape
    blank = np.zeros((columns * lines - count, height, width, *channels), np.uint8)
    grid = np.concatenate([images, blank]).reshape(lines, columns, height, width, *channels)
    file = io.BytesIO()
    Image.fromarray(grid.swapaxes(1, 2).reshape(lines * height, columns * width, *channels)).save(file, "PNG")
    return file.getvalue()
