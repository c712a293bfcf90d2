"""Rows of text files that describe bags: reading them, and what every such file must keep to.

Complaints name the file, the line, and the bag where there is one.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mil_jax.errors import InputError

MAX_LABEL = 999
"""Beyond it a label is more likely a bag id or a measurement in the wrong column."""


class Row(NamedTuple):
    """One line of a file: its number, from 1, and its cells."""

    line: int
    cells: list[str]


def read_rows(path: Path, content: str) -> list[Row]:
    """Reads all lines of a file of cells separated by commas, but for blank ones.

    Args:
        path: UTF-8 text, with or without a byte order mark.
        content: what the file should hold, for the complaint.

    Raises:
        InputError: the file is missing, unreadable, empty, or no such text.
    """
    try:
        with path.expanduser().open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = [Row(reader.line_num, cells) for cells in reader if any(map(str.strip, cells[:1])) or len(cells) > 1]
    except FileNotFoundError:
        raise InputError("file", str(path), f"there is no such file; one that holds {content} would do") from None
    except OSError as error:
        raise InputError("file", str(path), f"it cannot be read ({error.strerror}): {content} would do") from None
    except (UnicodeDecodeError, csv.Error) as error:
        remedy = f"it is no plain text of cells separated by commas ({error}): {content} would do"
        raise InputError("file", str(path), remedy) from None
    if not rows:
        raise InputError("file", str(path), f"it is empty: {content} would do")
    return rows


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, be it nan or infinite."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parse_label(path: Path, place: str, bag: str, value: str | float) -> int:
    """Returns a bag's label: a whole number from 0, or the -1 of a set whose labels are -1 and 1.

    Args:
        path: the file, for the complaint.
        place: for example ``line 3``.
        bag: the bag's id.
        value: the cell, or the number that a binary file holds.

    Raises:
        InputError: it is something else.
    """
    number = float(value) if is_number(str(value)) else math.nan
    if not (number.is_integer() and -1 <= number <= MAX_LABEL):
        remedy = (
            f"{place}: bag {bag!r} has the label {value!r}; whole numbers from 0 (at most {MAX_LABEL}), or -1 and 1,"
            " would do"
        )
        raise InputError("file", str(path), remedy)
    return int(number)


def bag_starts(path: Path, places: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Returns the index of each bag's first row.

    Args:
        path: the file, for the complaint.
        places: [N] where each row stands, for example ``line 3``.
        ids: [N] the bag of each row.

    Raises:
        InputError: a bag comes back after another one has begun.
    """
    starts = [row for row, bag in enumerate(ids) if row == 0 or bag != ids[row - 1]]
    first: dict[str, int] = {}
    for start in starts:
        earlier = first.setdefault(ids[start], start)
        if earlier != start:
            remedy = (
                f"{places[start]}: bag {ids[start]!r} comes back; it began in {places[earlier]} and other bags stand"
                " between: put its rows together, or give two bags two ids"
            )
            raise InputError("file", str(path), remedy)
    return starts


def bag_labels(
    path: Path, places: Sequence[str], ids: Sequence[str], labels: Sequence[int], starts: Sequence[int]
) -> list[int]:
    """Returns the label of each bag, from 0: the pair -1 and 1 becomes 0 and 1.

    Args:
        path: the file, for the complaint.
        places: [N] where each row stands.
        ids: [N] the bag of each row.
        labels: [N] the bag's label as each row has it.
        starts: [B] the first row of each bag.

    Raises:
        InputError: rows of a bag disagree, or -1 stands beside something else than 1.
    """
    ends = [*starts[1:], len(ids)]
    for start, end in zip(starts, ends, strict=True):
        for row in range(start, end):
            if labels[row] != labels[start]:
                remedy = (
                    f"{places[row]}: bag {ids[row]!r} has the label {labels[row]} here, but {labels[start]} in"
                    f" {places[start]}: one label per bag, in all of its rows, would do"
                )
                raise InputError("file", str(path), remedy)
    found = sorted({labels[start] for start in starts})
    if found[0] == -1 and not set(found) <= {-1, 1}:
        remedy = f"its bags have the labels {', '.join(map(str, found))}: -1 and 1, or whole numbers from 0, would do"
        raise InputError("file", str(path), remedy)
    return [max(labels[start], 0) for start in starts]
