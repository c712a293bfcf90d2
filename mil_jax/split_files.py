"""Splits that somebody else has drawn, in CLAM's files or a column of a table, and our own written the same way.

CLAM leaves two files for each split. `splits_{k}.csv` has the header ``,train,val,test`` and under each part the ids
of its slides, so that short columns end in blanks. `splits_{k}_bool.csv` has a row for each slide, True under its part.

Axes: F splits, B bags.
"""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mil_jax.datasets.csv_rows import Row, check_columns, read_rows
from mil_jax.datasets.files import wrong_file
from mil_jax.errors import InputError, RunError
from mil_jax.protocols import Folds, stack_places

PARTS = Folds._fields
PART_WORDS = {"train": "training", "val": "validation", "test": "test"}
ENDINGS = (".h5", ".pt", ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".npy", ".npz", ".0")
"""What a slide id may carry and the bag's name not; pandas adds the last one to numbers in a column with blanks."""
CONTENT = "a split of CLAM"
HEADER = "the header ,train,val,test"


def read_splits(path: Path, bag_names: Sequence[str]) -> Folds:
    """Reads a folder of CLAM's splits in the order of their numbers, or one such file.

    Args:
        path: the folder, or the file.
        bag_names: [B] of the cohort; the numbers in the folds are places in it. Bags in no part are left out.

    Raises:
        InputError: there is no split, or none of a number in between; a file is no split, names slides that the cohort
            lacks, has a slide twice, or leaves a part empty.
    """
    index = _index_of(bag_names)
    return _stacked([_read_split(file, index) for file in (_split_files(path) if path.is_dir() else [path])])


def splits_of_column(values: Sequence[str], bag_names: Sequence[str]) -> Folds:
    """The one split that a column of a table gives, by the words train, val and test.

    Raises:
        InputError: another word, with the bag it stands beside; or a part without bags.
    """
    if len(values) != len(bag_names):
        raise InputError("values", len(values), f"expected a word for each of {len(bag_names)} bags")
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    for bag, word in enumerate(values):
        if word not in parts:
            raise InputError("split", word, f"expected train, val or test for bag {bag_names[bag]!r}")
        parts[word].append(bag)
    for part, bags in parts.items():
        if not bags:
            raise InputError("split", sorted(set(values)), f"expected {PART_WORDS[part]} bags: a row with {part}")
    return _stacked([parts])


def write_splits(folder: Path, folds: Folds, bag_names: Sequence[str]) -> None:
    """Writes both of CLAM's files for each split; `read_splits` gives the same folds back.

    Raises:
        InputError: names that such a file cannot keep apart, or a file of a split beyond these in the folder.
        RunError: the files cannot be written.
    """
    for name in _index_of(bag_names):
        if not name or name != name.strip():
            raise InputError("bag_names", name, "expected names without blanks around them")
    count = len(folds.test)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_left_over(folder, count)
        for number in range(count):
            parts: list[list[str]] = [[str(bag_names[bag]) for bag in part[number] if bag >= 0] for part in folds]
            _write_rows(folder / f"splits_{number}.csv", _ragged_rows(parts))
            _write_rows(folder / f"splits_{number}_bool.csv", _bool_rows(parts))
    except OSError as error:
        raise RunError(f"The splits cannot be written to {folder} ({error.strerror}). Choose another folder.") from None


def _index_of(bag_names: Sequence[str]) -> dict[str, int]:
    index = {name: bag for bag, name in enumerate(bag_names)}
    if len(index) != len(bag_names):
        twice = next(name for bag, name in enumerate(bag_names) if index[name] != bag)
        raise InputError("bag_names", twice, "expected each name once")
    return index


def _numbered(folder: Path) -> dict[int, Path]:
    """The file of each split; the plain one where both are there."""
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir(), key=lambda file: "_bool" not in file.name):
        if match := re.fullmatch(r"splits_(0|[1-9][0-9]*)(_bool)?\.csv", file.name):
            files[int(match[1])] = file
    return files


def _split_files(folder: Path) -> list[Path]:
    try:
        files = _numbered(folder)
    except OSError as error:
        raise InputError("folder", str(folder), f"expected splits, got an error ({error.strerror})") from None
    if not files:
        raise InputError("folder", str(folder), "expected splits_0.csv, splits_1.csv, ..., got no such file")
    gap = next((number for number in range(len(files)) if number not in files), None)
    if gap is not None:
        expected = f"expected all of splits_0.csv to splits_{max(files)}.csv, got no splits_{gap}.csv"
        raise InputError("folder", str(folder), expected)
    return [files[number] for number in range(len(files))]


def _read_split(path: Path, index: dict[str, int]) -> dict[str, list[int]]:
    """The bags of each part of one file, in its order."""
    header, *rows = read_rows(path, CONTENT)
    if header.cells[1:] != list(PARTS):
        raise wrong_file(path, HEADER, ",".join(header.cells))
    check_columns(path, rows, 4, "a number or a slide, then train, val, test")
    entries = list(_bool_entries(path, rows) if _is_bool(path, rows) else _ragged_entries(rows))
    bag_of = _bags_of(path, dict.fromkeys(slide for _, slide in entries), index)
    parts: dict[str, list[int]] = {part: [] for part in PARTS}
    part_of: dict[int, str] = {}
    for part, slide in entries:
        bag = bag_of[slide]
        if bag in part_of:
            raise wrong_file(path, "each slide once", f"{slide!r} in {part_of[bag]} and in {part}")
        part_of[bag] = part
        parts[part].append(bag)
    for part, bags in parts.items():
        if not bags:
            raise wrong_file(path, f"{PART_WORDS[part]} bags: a slide under {part}", "none")
    return parts


def _bags_of(path: Path, slides: Iterable[str], index: dict[str, int]) -> dict[str, int]:
    """The bag of each slide id, as it is or else without its ending."""
    bag_of: dict[str, int] = {}
    unknown: list[str] = []
    for slide in slides:
        stem = next((slide.removesuffix(ending) for ending in ENDINGS if slide.endswith(ending)), slide)
        bag = index.get(slide, index.get(stem))
        if bag is None:
            unknown.append(slide)
        else:
            bag_of[slide] = bag
    if unknown:
        first = f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
        raise wrong_file(path, "slides of the cohort", f"{len(unknown)} that it lacks: {first}")
    return bag_of


def _is_bool(path: Path, rows: Sequence[Row]) -> bool:
    """Whether a file is of the second form, by its name or by its first row."""
    first = {cell.lower() for row in rows[:1] for cell in row.cells[1:]}
    return path.stem.endswith("_bool") or first <= {"true", "false"}


def _ragged_entries(rows: Sequence[Row]) -> Iterable[tuple[str, str]]:
    """Part and slide of each cell, part by part."""
    for column, part in enumerate(PARTS, 1):
        yield from ((part, row.cells[column]) for row in rows if row.cells[column])


def _bool_entries(path: Path, rows: Sequence[Row]) -> Iterable[tuple[str, str]]:
    """Part and slide of each True."""
    for row in rows:
        slide, *cells = row.cells
        for part, cell in zip(PARTS, cells, strict=True):
            if cell.lower() not in ("true", "false"):
                raise wrong_file(path, "True or False", f"{cell!r} for {slide!r} in line {row.line}")
            if cell.lower() == "true":
                yield part, slide


def _stacked(splits: Sequence[dict[str, list[int]]]) -> Folds:
    return Folds(*(stack_places([np.array(split[part], int) for split in splits]) for part in PARTS))


def _check_left_over(folder: Path, count: int) -> None:
    beyond = [file.name for number, file in _numbered(folder).items() if number >= count]
    if beyond:
        raise InputError("folder", str(folder), f"expected no other splits than these {count}, got {min(beyond)}")


def _ragged_rows(parts: Sequence[Sequence[str]]) -> Iterable[Sequence[object]]:
    for row in range(max(map(len, parts))):
        yield row, *(part[row] if row < len(part) else "" for part in parts)


def _bool_rows(parts: Sequence[Sequence[str]]) -> Iterable[Sequence[object]]:
    for place, part in enumerate(parts):
        yield from ((slide, *(place == column for column in range(len(parts)))) for slide in part)


def _write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes a table beside its place and moves it there, so that nobody reads half of it."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("", *PARTS), *rows])
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
