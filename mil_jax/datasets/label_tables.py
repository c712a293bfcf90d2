"""Tables of labels: a CSV or .xlsx with a row for each file, or STAMP's two tables, whose columns have names.

Columns with a usual name are found by themselves: CLAM's `case_id,slide_id,label`, nnMIL's
`slide_id,patient_id,split,label`, STAMP's `PATIENT` and `FILENAME`, torchmil's `bag_name`.
"""

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mil_jax.datasets.csv_rows import Row, check_columns, is_number, read_rows
from mil_jax.datasets.feature_files import SUFFIXES
from mil_jax.datasets.files import few, read_bytes, wrong_file
from mil_jax.errors import InputError

USUAL = {
    "slide": ("slide_id", "slide", "filename", "file", "bag_name", "bag_id", "bag", "image"),
    "label": ("label", "bag_label", "target", "class"),
    "group": ("patient", "patient_id", "case_id", "case", "group"),
    "split": ("split",),
}
ENDINGS = (*SUFFIXES, ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".czi", ".scn")  # that a table may say and a file not
CONTENT = "a table with a header"


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, None for the usual ones; and what the column of labels says."""

    slide: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None
    classes: Sequence[str] = ()
    """The labels in their order; numbers by value and words by the alphabet where not given."""


class Record(NamedTuple):
    """A row of a table: its line, and its cells by the names of the columns."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)
class LabelRow:
    """What tables say of one file: its name, what it belongs to, its label and its part of a split; "" for nothing."""

    slide: str
    group: str
    label: str = ""
    split: str = ""


def read_labels(path: Path, slide_table: Path | None, columns: Columns) -> list[LabelRow]:
    """The rows of a table, each file once; with a second table, which tells the files of each group.

    Raises:
        InputError: a column that the table has not, a row without a name, or a file named twice.
    """
    header, records = read_records(path)
    if slide_table is not None:
        header, records = _joined(path, records, header, slide_table, columns)
    names = {kind: _column(path, header, kind, getattr(columns, kind)) for kind in USUAL}
    others = [name for name in header if name not in names.values()]
    if names["label"] is None and len(others) == 1:
        names["label"] = others[0]
    for kind in ("slide", "label"):
        if names[kind] is None:
            what = "files' names" if kind == "slide" else "labels"
            raise InputError(f"{kind}_column", None, f"expected the column with the {what}, one of {', '.join(header)}")
    rows: dict[str, LabelRow] = {}
    for line, cells in records:
        value = {kind: cells.get(name, "") if name else "" for kind, name in names.items()}
        slide = cells.get(names["slide"] or "", value["group"])  # a group without files has no such cell
        if not slide:
            raise wrong_file(slide_table or path, f"a value in column {names['slide']}", f"none in line {line}")
        if slide in rows:
            got = f"{slide!r} twice, in line {line} again"
            raise wrong_file(slide_table or path, "a row for each file", got)
        rows[slide] = LabelRow(slide, value["group"] or slide, value["label"], value["split"])
    return list(rows.values())


def match_rows(files: Collection[str], rows: Sequence[LabelRow], missing: str) -> tuple[list[LabelRow], list[str]]:
    """The rows that have a label and a file, under the file's name, in the order of files; and what was left out.

    Args:
        files: names of the files.
        rows: what a table says; a name may have the ending of a file.
        missing: "refuse" or "skip" files without a row, rows without a file, and rows without a label.

    Raises:
        InputError: as said; or two rows for one file.
    """
    by_file: dict[str, LabelRow] = {}
    lost = []
    for row in rows:
        stem = next((row.slide[: -len(end)] for end in ENDINGS if row.slide.lower().endswith(end)), row.slide)
        name = row.slide if row.slide in files else stem
        if name in by_file:
            raise InputError("table", row.slide, f"expected one row for the file {name!r}, got another")
        if name not in files:
            lost.append(row.slide)
            continue
        by_file[name] = LabelRow(name, name if row.group == row.slide else row.group, row.label, row.split)
    blank = [name for name, row in by_file.items() if not row.label]
    spare, notes = [name for name in files if name not in by_file], []
    for names, what in ((lost, "rows without a file"), (blank, "rows without a label"), (spare, "files without a row")):
        if names:
            text = f"{len(names)} {what}: {few(names)}"
            if missing == "refuse":
                raise InputError("table", text, "expected a labelled row for each file, or 'skip' for missing")
            notes.append(f"left out, {text}")
    if len(by_file) == len(blank):
        got = f"{len(rows)} rows, such as {rows[0].slide}"
        raise InputError("table", got, f"expected labels of files such as {next(iter(files))}")
    return [by_file[name] for name in files if name in by_file and name not in blank], notes


def class_order(rows: Sequence[LabelRow], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes: as given, else numbers by their value and words by the alphabet.

    Raises:
        InputError: one class alone, or a label that is not among the given ones.
    """
    there = {row.label: row.slide for row in reversed(rows)}
    if len(there) < 2:
        raise InputError("label", sorted(there), "expected at least two classes")
    if len(set(classes)) != len(classes):
        raise InputError("classes", tuple(classes), "expected each class once")
    wrong = next((label for label in sorted(there) if classes and label not in classes), None)
    if wrong is not None:
        raise InputError("label", wrong, f"expected one of {', '.join(classes)} for {there[wrong]!r}")
    numbers = all(is_number(label) and math.isfinite(float(label)) for label in there)
    return tuple(classes) or tuple(sorted(there, key=float if numbers else None))


def _joined(
    path: Path, records: list[Record], header: list[str], slide_table: Path, columns: Columns
) -> tuple[list[str], list[Record]]:
    """The rows of the second table, each with what the first says of its group; and groups without a file."""
    slide_header, slides = read_records(slide_table)
    key = columns.group or next((name for name in slide_header if name in header), None)
    for file, names in ((path, header), (slide_table, slide_header)):
        if key not in names:
            raise InputError("group_column", key, f"expected a column of both tables; {file} has {', '.join(names)}")
    by_group: dict[str, Record] = {}
    for record in records:
        if by_group.setdefault(record.cells[key], record).cells != record.cells:
            got = f"two that differ for {record.cells[key]!r}, in line {record.line} again"
            raise wrong_file(path, f"one row for each {key}", got)
    known = [Record(line, by_group[cells[key]].cells | cells) for line, cells in slides if cells[key] in by_group]
    there = {record.cells[key] for record in known}
    if not there:
        raise wrong_file(slide_table, f"values of {key} that {path} has", "none of them")
    without = [record for group, record in by_group.items() if group not in there]
    return list(dict.fromkeys([*slide_header, *header])), known + without


def _column(path: Path, header: Sequence[str], kind: str, name: str | None) -> str | None:
    if name is None:
        lower = {column.lower(): column for column in reversed(header)}
        return next((lower[usual] for usual in USUAL[kind] if usual in lower), None)
    if name not in header:
        raise InputError(f"{kind}_column", name, f"expected a column of {path}: {', '.join(header)}")
    return name


def read_records(path: Path) -> tuple[list[str], list[Record]]:
    """The header of a table and its rows, all cells as text without blanks around them.

    Raises:
        InputError: no such file, no header, a column named twice, or a row of another length.
    """
    rows = _xlsx(path) if path.suffix.lower() == ".xlsx" else read_rows(path, CONTENT)
    rows = [row for row in rows if any(row.cells)]
    if len(rows) < 2:
        raise wrong_file(path, "a header and at least one row", f"{len(rows)} lines")
    header = rows[0].cells
    if len(set(header)) < len(header):
        raise wrong_file(path, "columns of different names", ", ".join(header))
    check_columns(path, rows, len(header), "as the header has")
    return header, [Record(row.line, dict(zip(header, row.cells, strict=True))) for row in rows[1:]]


def _xlsx(path: Path) -> list[Row]:
    """The first sheet, as wide as its header."""
    try:
        import openpyxl
    except ImportError:
        raise InputError("table", str(path), "expected a CSV, or openpyxl: pip install 'mil_jax[xlsx]'") from None
    data = read_bytes(path, CONTENT)
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        rows = [
            ["" if cell is None else str(cell).strip() for cell in row] for row in sheet.iter_rows(values_only=True)
        ]
    except Exception as error:  # of many kinds, where a file is damaged
        raise wrong_file(path, "a table, as .xlsx", f"what cannot be read ({error})") from None
    width = max((i + 1 for i, cell in enumerate(next(filter(any, rows), [])) if cell), default=0)
    return [Row(line, row[:width] + [""] * (width - len(row))) for line, row in enumerate(rows, start=1)]
