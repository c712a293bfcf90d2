"""Bags of feature vectors from one file: plain CSV, the ``.data`` of the UCI musk sets, Andrews' ``.mat``.

A row is an instance, and the rows of a bag stand together. The order of bags, and of instances in a bag, is the
file's. None of these files says which instances make a bag positive, so instance labels are unknown.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mil_jax.datasets import matlab
from mil_jax.datasets.csv_rows import Row, bag_labels, bag_starts, check_columns, is_number, parse_label, read_rows
from mil_jax.datasets.files import as_path, read_bytes, wrong_file
from mil_jax.datasets.records import BagSet
from mil_jax.errors import InputError

CSV_CONTENT = "lines of bag_label,bag_id,f1,f2,…"
UCI_CONTENT = "lines of molecule_name,conformation_name,f1,…,f166,class"
MAT_KEYS = ("bag_ids", "labels", "features")
MAT_CONTENT = "MATLAB (version 5 to 7.2) with matrices bag_ids [N], labels [N], features [N, D]"

LEAKING_WIDTHS = (167, 231)
"""One more than the musk sets have, and Elephant, Fox and Tiger: behind the features comes the instance's label."""


class _Table(NamedTuple):
    """The rows of a file: where each stands, the bag that it belongs to, that bag's label, and the features [N, D]."""

    path: Path
    places: Sequence[str]
    ids: Sequence[str]
    labels: Sequence[int]
    x: np.ndarray


def read_table(path: str | Path, name: str | None = None, *, any_width: bool = False) -> BagSet:
    """Reads bags from one file, whose ending says how it is read.

    - ``.csv``: plain CSV, ``bag_label,bag_id,f1,…,fD``, that anyone can write for their own data. A bag id is any text.
      A first line without any number but perhaps in its second cell is a header, and is left out.
    - ``.data``: a musk set as UCI has it: molecule, conformation, 166 features and class, without header. A molecule
      is a bag, a conformation (a shape that it can take) an instance.
    - ``.mat``: MATLAB files of Andrews et al. 2002: ``features [N, D]``, ``bag_ids [N]``, ``labels [N]``, sparse or
      not. A label is that of the instance's bag.

    Args:
        path: the file.
        name: what the set is called; the file's name without its ending where not given.
        any_width: read 167 or 231 features too. They are refused otherwise, because copies of the five classic sets
            are in circulation whose last column is the answer.

    Returns:
        float32 features. Labels are whole numbers from 0, or -1 and 1, which become 0 and 1.

    Raises:
        InputError: there is no such file or it is damaged; a bag is empty or comes back, its rows disagree on the
            label, rows differ in length, a cell is no finite number, or the width is that of a file that leaks the
            answer.
    """
    path = as_path("path", path)
    reader = {".csv": _read_csv, ".data": _read_uci, ".mat": _read_mat}.get(path.suffix.lower())
    if reader is None:
        raise wrong_file(path, "a name that ends in .csv, .data or .mat", repr(path.name))
    table = reader(path)
    _check_leak(table, any_width)
    _check_finite(table)
    starts = bag_starts(path, table.places, table.ids)
    return BagSet(
        name=path.stem if name is None else name,
        x=table.x.astype(np.float32),
        sizes=np.diff([*starts, len(table.x)]).astype(np.int32),
        label=np.array(bag_labels(path, table.places, table.ids, table.labels, starts), np.int32),
        bag_names=tuple(table.ids[start] for start in starts),
        source=str(path),
    )


# Text


def _read_csv(path: Path) -> _Table:
    rows = read_rows(path, CSV_CONTENT)
    label, *others = rows[0].cells
    if len(others) > 1 and not is_number(label) and not any(map(is_number, others[1:])):  # a header
        rows = rows[1:]
    if not rows:
        raise wrong_file(path, CSV_CONTENT, "a header and no bags")
    for line, cells in rows:
        if len(cells) > 1 and cells[1] and not any(cells[2:]):
            raise wrong_file(path, "a line for each instance", f"an empty bag {cells[1]!r} in line {line}")
    return _parse(path, rows, CSV_CONTENT, id_column=1, label_column=0, last_column=None)


def _read_uci(path: Path) -> _Table:
    return _parse(path, read_rows(path, UCI_CONTENT), UCI_CONTENT, id_column=0, label_column=-1, last_column=-1)


def _parse(
    path: Path, rows: list[Row], content: str, *, id_column: int, label_column: int, last_column: int | None
) -> _Table:
    """Parses labels, and the features from the third column to before the last, which None says is a feature too."""
    width, least = len(rows[0].cells), 3 if last_column is None else 4
    if width < least:
        raise wrong_file(path, f"at least {least} columns ({content})", f"{width} in line {rows[0].line}")
    check_columns(path, rows, width, f"as line {rows[0].line} has")
    places = [f"line {row.line}" for row in rows]
    ids = [row.cells[id_column] for row in rows]
    labels, x = [], np.empty((len(rows), width - least + 1))
    for i, (row, place, bag) in enumerate(zip(rows, places, ids, strict=True)):
        if not bag:
            raise wrong_file(path, f"a bag id in column {id_column + 1}", f"none in {place}")
        labels.append(parse_label(path, place, bag, row.cells[label_column]))
        cells = row.cells[2:last_column]
        try:
            x[i] = list(map(float, cells))
            sound = "_" not in "".join(cells)  # Python's own digit separator
        except ValueError:
            sound = False
        if not sound:
            column = next(i for i, cell in enumerate(cells) if not is_number(cell))
            got = f"{cells[column]!r} in {place}, column {column + 3}, of bag {bag!r}"
            raise wrong_file(path, "numbers as features", got)
    return _Table(path, places, ids, labels, x)


# MATLAB


def _read_mat(path: Path) -> _Table:
    content = read_bytes(path, MAT_CONTENT)
    try:
        matrices = matlab.read_matrices(content, MAT_KEYS)
        missing = [key for key in MAT_KEYS if key not in matrices]
        if missing:
            raise wrong_file(path, MAT_CONTENT, f"no {' and no '.join(missing)}")
        shapes = [matrices[key].shape for key in MAT_KEYS]
        ids = matlab.dense(matrices["bag_ids"]).ravel()
        # Shapes first: a damaged one must not make a matrix that fills the memory.
        if len(shapes[2]) != 2 or not np.prod(shapes[1]) == shapes[2][0] == len(ids) > 0 or not shapes[2][1]:
            got = ", ".join(f"{key} {list(shape)}" for key, shape in zip(MAT_KEYS, shapes, strict=True))
            raise wrong_file(path, MAT_CONTENT, got)
        labels, x = matlab.dense(matrices["labels"]).ravel(), matlab.dense(matrices["features"])
    except InputError:
        raise
    except Exception as error:  # of many kinds, where a file is damaged
        raise wrong_file(path, MAT_CONTENT, f"what cannot be read ({str(error) or type(error).__name__})") from None
    places = [f"row {row}" for row in range(1, len(x) + 1)]
    for place, bag in zip(places, ids.tolist(), strict=True):
        if not bag.is_integer():
            raise wrong_file(path, "whole numbers as bag_ids", f"{bag!r} in {place}")
    names = [str(int(bag)) for bag in ids]
    parsed = [parse_label(path, *args) for args in zip(places, names, labels.tolist(), strict=True)]
    return _Table(path, places, names, parsed, x)


# What all have in common


def _check_leak(table: _Table, any_width: bool) -> None:
    width = table.x.shape[1]
    if width in LEAKING_WIDTHS and any_width is not True:
        got = f"{width}: copies of the classic sets carry the label as one more, last column, which leaks the answer"
        raise wrong_file(table.path, f"{width - 1} features (or any_width=True)", got)


def _check_finite(table: _Table) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(table.x.astype(np.float32))
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        got = f"feature {column + 1} = {table.x[row, column]:g} in {table.places[row]} of bag {table.ids[row]!r}"
        raise wrong_file(table.path, "finite numbers of single precision", got)
