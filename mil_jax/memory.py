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


def is_finite(values: np.ndarray, chunk: int = 4096) -> bool:
    """Whether all values [N, ...] are finite; looks at some rows at a time, so that it needs no memory to speak of."""
    return all(bool(np.isfinite(values[start : start + chunk]).all()) for start in range(0, len(values), chunk))
