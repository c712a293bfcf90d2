"""Matrices of MATLAB files, version 5 to 7.2: as much of the format as bags of numbers need.

SciPy reads the format too, but some damaged files end its whole process: a type that does not exist is looked up
beyond a table, an index of a sparse matrix is written where it points. Here that is an exception, of any kind.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""The format's codes for types of numbers."""
MATRIX, COMPRESSED = 14, 15
SPARSE, DENSE = 5, range(6, 16)
"""The format's classes of variables that hold numbers."""
COMPLEX = 0x800


class Matrix(NamedTuple):
    """A variable as the file has it: its shape, and [values] by columns or, if sparse, [rows, starts, values]."""

    shape: tuple[int, ...]
    parts: list[np.ndarray]


def read_matrices(content: bytes, names: Sequence[str]) -> dict[str, Matrix]:
    """Finds variables by name in a file's content; those that it lacks are left out."""
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(content[124:128])
    if order is None:
        raise ValueError("version 7.3" if content[124:128] in (b"\x00\x02IM", b"\x02\x00MI") else "no such header")
    matrices = {}
    for code, body in _elements(memoryview(content)[128:], order):
        if code == COMPRESSED:
            ((code, body),) = _elements(memoryview(zlib.decompress(body)), order)
        if code != MATRIX:
            raise ValueError(f"an element of type {code} where a variable should be")
        (_, flags), (_, shape), (_, name), *parts = _elements(body, order)
        if (key := bytes(name).decode("latin-1")) in names:
            matrices[key] = _matrix(flags, shape, parts, order)
    return matrices


def dense(matrix: Matrix) -> Float64[np.ndarray, "..."]:
    """Returns a variable's values; those that a sparse one does not hold are 0."""
    shape = matrix.shape
    if len(matrix.parts) == 1:
        return matrix.parts[0].astype(np.float64).reshape(shape, order="F")
    rows, starts, values = matrix.parts
    counts, stop = np.diff(starts.astype(np.int64)), starts[-1]
    sound = (
        len(starts) == shape[1] + 1 and starts[0] == 0 and (counts >= 0).all() and stop <= min(len(rows), len(values))
    )
    if not sound or not ((rows[:stop] >= 0) & (rows[:stop] < shape[0])).all():
        raise ValueError("a sparse matrix whose indices do not fit its shape")
    x = np.zeros(shape)
    x[rows[:stop], np.repeat(np.arange(shape[1]), counts)] = values[:stop]
    return x


def _matrix(flags: memoryview, shape: memoryview, parts: list[tuple[int, memoryview]], order: str) -> Matrix:
    (kind,) = struct.unpack_from(f"{order}I", flags)
    axes = tuple(np.frombuffer(shape, f"{order}i4").tolist())
    is_sparse, is_dense = kind & 0xFF == SPARSE, kind & 0xFF in DENSE
    if kind & COMPLEX or (is_sparse, is_dense, len(parts)) not in ((True, False, 3), (False, True, 1)) or min(axes) < 0:
        raise ValueError("a variable that is no matrix of real numbers")
    return Matrix(axes, [np.frombuffer(body, order + NUMBERS[code]) for code, body in parts])


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yields the code and the content of each element in a stretch of the file."""
    while data:
        code, size = struct.unpack_from(f"{order}II", data)
        start, end = 8, 8 + size
        if code >> 16:  # up to four bytes stand in the tag itself
            code, size, start, end = code & 0xFFFF, code >> 16, 4, 8
        if start + size > min(end, len(data)):
            raise ValueError("an element that reaches beyond its end")
        yield code, data[start : start + size]
        data = data[end if code == COMPRESSED else end + -end % 8 :]
