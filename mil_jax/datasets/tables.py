"""Bags of feature vectors from one file: plain CSV, the ``.data`` of the UCI musk sets, Andrews' ``.mat``.

A row is an instance, and the rows of a bag stand together. The order of bags, and of instances in a bag, is the
file's. None of these files says which instances make a bag positive, so instance labels are unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.datasets.csv_rows import Row, bag_labels, bag_starts, is_number, parse_label, read_rows
from mil_jax.datasets.records import BagSet, build_bag_set
from mil_jax.errors import InputError

CSV_CONTENT = "lines of bag_label,bag_id,f1,f2,…"
UCI_CONTENT = "lines of molecule_name,conformation_name,f1,…,f166,class"
MAT_KEYS = ("features", "bag_ids", "labels")

LEAKING_WIDTHS = (167, 231)
"""One more than the musk sets have, and Elephant, Fox and Tiger: behind the features comes the instance's label."""


@dataclass(frozen=True, eq=False)
class _Table:
    """The rows of a file: where each stands, the bag that it belongs to, that bag's label, and the features [N, D]."""

    path: Path
    places: Sequence[str]
    ids: Sequence[str]
    labels: Sequence[int]
    x: np.ndarray


def read_table(path: Path, name: str | None = None, *, any_width: bool = False) -> BagSet:
    """Reads bags from a ``.csv``, a ``.data`` or a ``.mat``; see the reader of each.

    Args:
        path: the file; its ending decides how it is read.
        name: what the set is called; the file's name without its ending where not given.
        any_width: read 167 or 231 features too. They are refused otherwise, because copies of the five classic sets
            are in circulation whose last column is the answer.

    Raises:
        InputError: the ending is another one, or the reader finds something wrong.
    """
    readers = {".csv": read_csv, ".data": read_uci, ".mat": read_mat}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError("file", str(path), f"a file whose name ends in {', '.join(readers)} would do")
    return reader(path, name, any_width=any_width)


def read_csv(path: Path, name: str | None = None, *, any_width: bool = False) -> BagSet:
    """Reads bags from plain CSV, ``bag_label,bag_id,f1,…,fD``, that anyone can write for their own data.

    Labels are whole numbers from 0, or -1 and 1, which become 0 and 1. A bag id is any text. A first line without
    any number but perhaps in its second cell is a header, and is left out. Arguments as for ``read_table``.

    Raises:
        InputError: a bag is empty or comes back, its rows disagree on the label, rows differ in length, a cell is no
            finite number, or the width is that of a file that leaks the answer.
    """
    rows = read_rows(path, CSV_CONTENT)
    if _is_header(rows[0].cells):
        rows = rows[1:]
    if not rows:
        raise InputError("file", str(path), f"it has a header and no bags: {CSV_CONTENT} below it would do")
    _check_csv_rows(path, rows)
    ids = [row.cells[1].strip() for row in rows]
    table = _parse(path, rows, ids, label_column=0, last_column=None)
    return _bag_set(table, name, any_width)


def read_uci(path: Path, name: str | None = None, *, any_width: bool = False) -> BagSet:
    """Reads a musk set as UCI has it: molecule, conformation, 166 features and class, without header.

    A molecule is a bag, a conformation (a shape that it can take) an instance. Arguments as for ``read_table``.

    Raises:
        InputError: as ``read_csv``.
    """
    rows = read_rows(path, UCI_CONTENT)
    _check_width(path, rows, at_least=4, content=UCI_CONTENT)
    ids = [row.cells[0].strip() for row in rows]
    table = _parse(path, rows, ids, label_column=-1, last_column=-1)
    return _bag_set(table, name, any_width)


def read_mat(path: Path, name: str | None = None, *, any_width: bool = False) -> BagSet:
    """Reads a MATLAB file of Andrews et al. 2002: ``features [N, D]``, ``bag_ids [N]``, ``labels [N]``.

    Matrices may be sparse. A label is that of the instance's bag, -1 or 1. Arguments as for ``read_table``.

    Raises:
        InputError: no such file or key, lengths that differ, or as ``read_csv``.
    """
    x, ids, labels = _read_mat_arrays(path)
    if x.ndim != 2 or not len(x) == len(ids) == len(labels) > 0:
        remedy = (
            f"features has the shape {list(x.shape)}, with {len(ids)} bag_ids and {len(labels)} labels: [N, D], N"
            " and N, at least 1, would do"
        )
        raise InputError("file", str(path), remedy)
    places = [f"row {row}" for row in range(1, len(x) + 1)]
    names = [f"{bag:g}" for bag in ids]
    parsed = [parse_label(path, *args) for args in zip(places, names, labels.tolist(), strict=True)]
    return _bag_set(_Table(path, places, names, parsed, x), name, any_width)


# Text


def _is_header(cells: list[str]) -> bool:
    return len(cells) > 2 and not is_number(cells[0]) and not any(map(is_number, cells[2:]))


def _check_csv_rows(path: Path, rows: list[Row]) -> None:
    for line, cells in rows:
        if len(cells) < 2:
            continue  # for the next check
        if not cells[1].strip():
            raise InputError("file", str(path), f"line {line} has no bag id in its second column: any text would do")
        if not any(map(str.strip, cells[2:])):
            remedy = f"line {line}: bag {cells[1].strip()!r} is empty: its instances, or no line at all, would do"
            raise InputError("file", str(path), remedy)
    _check_width(path, rows, at_least=3, content=CSV_CONTENT)


def _check_width(path: Path, rows: list[Row], at_least: int, content: str) -> None:
    first = rows[0]
    for row in rows:
        if len(row.cells) < at_least:
            remedy = f"line {row.line} has {len(row.cells)} of at least {at_least} columns: {content} would do"
            raise InputError("file", str(path), remedy)
        if len(row.cells) != len(first.cells):
            remedy = (
                f"line {row.line} has {len(row.cells)} columns, line {first.line} has {len(first.cells)}: as many in"
                " each line would do"
            )
            raise InputError("file", str(path), remedy)


def _parse(path: Path, rows: list[Row], ids: list[str], label_column: int, last_column: int | None) -> _Table:
    """Parses labels, and the features from the third column to before the last, which None says is a feature too."""
    places = [f"line {row.line}" for row in rows]
    labels, features = [], []
    for row, place, bag in zip(rows, places, ids, strict=True):
        labels.append(parse_label(path, place, bag, row.cells[label_column].strip()))
        cells = row.cells[2:last_column]
        try:
            features.append(np.fromiter(map(float, cells), np.float64, len(cells)))
        except ValueError:
            column = next(i for i, cell in enumerate(cells) if not is_number(cell))
            remedy = f"{place}: bag {bag!r} has {cells[column]!r} in column {column + 3}, a number would do"
            raise InputError("file", str(path), remedy) from None
    return _Table(path, places, ids, labels, np.stack(features))


# MATLAB


def _read_mat_arrays(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features [N, D], bag ids [N] and labels [N], dense, as float64."""
    from scipy.io import loadmat  # a tenth of a second, which other data does without

    would_do = f"a MATLAB file (version 4 to 7.2) with the keys {', '.join(MAT_KEYS)} would do"
    if not path.expanduser().is_file():
        raise InputError("file", str(path), f"there is no such file; {would_do}")
    try:
        content = loadmat(path.expanduser(), variable_names=MAT_KEYS)
    except NotImplementedError:
        raise InputError("file", str(path), f"it is of MATLAB's version 7.3: {would_do}") from None
    except Exception as error:
        # A damaged file can raise anything, from zlib's errors to those of NumPy.
        remedy = f"it cannot be read ({str(error) or type(error).__name__}): {would_do}"
        raise InputError("file", str(path), " ".join(remedy.split())) from None
    missing = [key for key in MAT_KEYS if key not in content]
    if missing:
        raise InputError("file", str(path), f"it lacks {', '.join(missing)}: {would_do}")
    try:
        x, ids, labels = (_dense(content[key]) for key in MAT_KEYS)
    except (TypeError, ValueError):
        raise InputError("file", str(path), f"not all of its {', '.join(MAT_KEYS)} are matrices: {would_do}") from None
    return x, ids.ravel(), labels.ravel()


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, np.float64)


# What all have in common


def _bag_set(table: _Table, name: str | None, any_width: bool) -> BagSet:
    path, width = table.path, table.x.shape[1]
    if width in LEAKING_WIDTHS and not any_width:
        remedy = (
            f"it has {width} features: copies of the classic sets with {width - 1} features carry the label as one"
            f" more, last column, which leaks the answer; without that column it would do (or any_width=True, where"
            f" {width} features are really meant)"
        )
        raise InputError("file", str(path), remedy)
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is named as that
        x = table.x.astype(np.float32)
    _check_finite(table, x)
    starts = bag_starts(path, table.places, table.ids)
    labels = bag_labels(path, table.places, table.ids, table.labels, starts)
    sizes = np.diff([*starts, len(x)])
    names = [table.ids[start] for start in starts]
    return build_bag_set(name or path.stem, x, sizes.tolist(), labels, names, str(path))


def _check_finite(table: _Table, x: np.ndarray) -> None:
    finite = np.isfinite(x)
    if finite.all():
        return
    row, column = np.argwhere(~finite)[0]
    remedy = (
        f"{table.places[row]}: feature {column + 1} of bag {table.ids[row]!r} is {table.x[row, column]:g}, a finite"
        " number of single precision would do"
    )
    raise InputError("file", str(table.path), remedy)
