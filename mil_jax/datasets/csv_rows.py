"""Rows of text files that describe bags: reading them, and what every such file must keep to.

Complaints name the file, the line, and the bag where there is one. Of the arguments, ``path`` is the file, ``places``
[N] say where each row stands (``line 3``), and ``ids`` [N] which bag it belongs to.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mil_jax.datasets.files import read_bytes, wrong_file

MAX_LABEL = 999
"""Beyond it a label is more likely a bag id or a measurement in the wrong column."""


class Row(NamedTuple):
    """One line of a file: its number, from 1, and its cells without blanks around them."""

    line: int
    cells: list[str]


def read_rows(path: Path, content: str) -> list[Row]:
    """Reads all lines of UTF-8 text with commas between cells, but for blank ones; an InputError if there are none."""
    data = read_bytes(path, content)
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        rows = [Row(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise wrong_file(path, content, f"no plain text of cells separated by commas ({error})") from None
    rows = [row for row in rows if len(row.cells) > 1 or any(row.cells)]
    if not rows:
        raise wrong_file(path, content, "an empty file")
    return rows


def check_columns(path: Path, rows: Sequence[Row], count: int, content: str) -> None:
    """Raises an InputError that names the first row with another number of columns."""
    for row in rows:
        if len(row.cells) != count:
            raise wrong_file(path, f"{count} columns ({content})", f"{len(row.cells)} in line {row.line}")


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, be it nan or infinite."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python's own digit separator


def parse_label(path: Path, place: str, bag: str, value: str | float) -> int:
    """Returns a bag's label: a whole number from 0, or -1 of -1 and 1; an InputError where the cell is none."""
    label = float(value) if is_number(str(value)) else math.nan
    if not (label.is_integer() and -1 <= label <= MAX_LABEL):
        expected = f"as label a whole number from 0 to {MAX_LABEL}, or -1 and 1"
        raise wrong_file(path, expected, f"{value!r} for bag {bag!r} in {place}")
    return int(label)


def labels_from_zero(path: Path, labels: Iterable[int]) -> list[int]:
    """Returns labels from 0: the pair -1 and 1 becomes 0 and 1; an InputError for -1 beside something else."""
    kinds = sorted(set(labels := list(labels)))
    if -1 in kinds and not {-1, 1}.issuperset(kinds):
        raise wrong_file(path, "labels from 0, or -1 and 1", ", ".join(map(str, kinds)))
    return [max(label, 0) for label in labels]


def bag_starts(path: Path, places: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Returns the index of each bag's first row; an InputError for a bag that comes back after another one."""
    starts = [row for row, bag in enumerate(ids) if row == 0 or bag != ids[row - 1]]
    first: dict[str, int] = {}
    for start in starts:
        earlier = first.setdefault(ids[start], start)
        if earlier != start:
            got = f"bag {ids[start]!r} in {places[earlier]} and, after other bags, in {places[start]} again"
            raise wrong_file(path, "the rows of a bag together", got)
    return starts


def bag_labels(
    path: Path, places: Sequence[str], ids: Sequence[str], labels: Sequence[int], starts: Sequence[int]
) -> list[int]:
    """Returns the label from 0 of each bag, from its rows'; an InputError where these disagree."""
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        for row in range(start, end):
            if labels[row] != labels[start]:
                got = f"{labels[start]} in {places[start]} and {labels[row]} in {places[row]}"
                raise wrong_file(path, f"one label for bag {ids[row]!r}", got)
    return labels_from_zero(path, (labels[start] for start in starts))
