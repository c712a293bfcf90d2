"""Arrays that a program on a CPU reads where they lie: JAX copies those whose first byte it does not like."""

import numpy as np

ALIGNMENT = 64  # bytes


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
    """An array, not filled, whose first byte lies where a program on a CPU can read it without a copy."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def aligned(values: np.ndarray) -> np.ndarray:
    """The array itself where it lies right, and a copy where not."""
    if values.flags.c_contiguous and values.ctypes.data % ALIGNMENT == 0:
        return values
    copy = aligned_empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def is_finite(values: np.ndarray) -> bool:
    """Whether all values [N, ...] are finite numbers of single precision."""
    return first_infinite(values) is None


def first_infinite(values: np.ndarray, chunk: int = 4096) -> int | None:
    """The first row of [N, ...] that has a value beyond single precision; None where all are finite.

    It looks at some rows at a time, so that it needs no memory to speak of.
    """
    for start in range(0, len(values), chunk):
        rows = values[start : start + chunk].reshape(min(chunk, len(values) - start), -1)
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32) if rows.dtype.itemsize > 4 else rows
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None
