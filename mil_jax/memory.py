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
    """Whether all values [N, ...] are finite in single precision; some rows at a time, so that it needs no memory."""
    # NumPy converts float16 one by one; what is not finite has all bits of the exponent, 0x7C00, set.
    is_half = values.dtype == np.float16
    parts = (values[start : start + chunk] for start in range(0, len(values), chunk))
    if is_half:
        return all(bool((part.view(np.uint16) & 0x7C00 < 0x7C00).all()) for part in parts)
    with np.errstate(over="ignore"):
        return all(bool(np.isfinite(part.astype(np.float32, copy=False)).all()) for part in parts)
