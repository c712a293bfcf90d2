"""Tables of labels: a CSV or .xlsx with a row for each file, or STAMP's two tables, whose columns have names.

Columns with a usual name are found by themselves: CLAM's `case_id,slide_id,label`, nnMIL's
`slide_id,patient_id,split,label`, STAMP's `PATIENT` and `FILENAME`, torchmil's `bag_name`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mil_jax.datasets.csv_rows import Row, check_columns, read_rows
from mil_jax.datasets.files import read_bytes, wrong_file
from mil_jax.errors import InputError

USUAL = {
    "slide": ("slide_id", "slide", "filename", "file", "bag_name", "bag_id", "bag", "image"),
    "label": ("label", "bag_label", "target", "class"),
    "group": ("patient", "patient_id", "case_id", "case", "group"),
    "split": ("split",),
}
Record = dict[str, str]


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns; None for the usual ones."""

    slide: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class LabelRow:
    """What tables say of one file: its name, what it belongs to, its label and its part of a split; "" for nothing."""

    slide: str
    group: str
    label: str
    split: str


def read_labels(path: Path, slide_table: Path | None, columns: Columns) -> list[LabelRow]:
    """The rows of a table, each file once; with a second table, which tells the files of each group.

    Raises:
        InputError: a column that the table has not, a row without a name or a label, or a file named twice.
    """
    header, records = read_records(path)
    if slide_table is not None:
        header, records = _joined(path, records, header, slide_table, columns)
    names = {kind: _column(path, header, kind, getattr(columns, kind)) for kind in USUAL}
    if names["slide"] is None:
        raise InputError("slide_column", None, f"expected the column with the files' names, one of {', '.join(header)}")
    if names["label"] is None:
        others = [name for name in header if name not in names.values()]
        if len(others) != 1:
            raise InputError("label_column", None, f"expected the column with the labels, one of {', '.join(header)}")
        names["label"] = others[0]
    rows: dict[str, LabelRow] = {}
    for line, record in records.items():
        slide, label, group, split = (record[name] if name else "" for name in names.values())
        if not slide:
            raise wrong_file(slide_table or path, f"a value in column {names['slide']}", f"none in line {line}")
        if not label:
            raise wrong_file(path, f"a value in column {names['label']}", f"none for {slide!r}")
        if slide in rows:
            raise wrong_file(slide_table or path, "one row for each file", f"{slide!r} again in line {line}")
        rows[slide] = LabelRow(slide, group or slide, label, split)
    return list(rows.values())


def _joined(
    path: Path, records: dict[int, Record], header: list[str], slide_table: Path, columns: Columns
) -> tuple[list[str], dict[int, Record]]:
    """The rows of the second table, each with what the first says of its group; those that it has not, by their group.

    A group without files stands for the file of its name, which nobody will find.
    """
    slide_header, slides = read_records(slide_table)
    key = columns.group or next((name for name in slide_header if name in header), None)
    for file, names in ((path, header), (slide_table, slide_header)):
        if key not in names:
            raise InputError("group_column", key, f"expected a column of both tables; {file} has {', '.join(names)}")
    by_group: dict[str, Record] = {}
    for record in records.values():
        if by_group.setdefault(record[key], record) != record:
            raise wrong_file(path, f"one row for each {key}", f"two that differ for {record[key]!r}")
    known = {line: by_group[slide[key]] | slide for line, slide in slides.items() if slide[key] in by_group}
    if not known:
        raise wrong_file(slide_table, f"values of {key} that {path} has", "none of them")
    lone = by_group.keys() - {slide[key] for slide in slides.values()}
    name = _column(slide_table, slide_header, "slide", columns.slide)
    if name is not None:
        empty = dict.fromkeys(slide_header, "")
        known |= {-i: empty | by_group[group] | {name: group} for i, group in enumerate(sorted(lone))}
    return list(dict.fromkeys([*slide_header, *header])), known


def _column(path: Path, header: Sequence[str], kind: str, name: str | None) -> str | None:
    if name is None:
        lower = {column.lower(): column for column in reversed(header)}
        return next((lower[usual] for usual in USUAL[kind] if usual in lower), None)
    if name not in header:
        raise InputError(f"{kind}_column", name, f"expected a column of {path}: {', '.join(header)}")
    return name


def read_records(path: Path) -> tuple[list[str], dict[int, Record]]:
    """The header of a table and its rows by their lines, all cells as text without blanks around them.

    Raises:
        InputError: no such file, no header, a column named twice, or a row of another length.
    """
    rows = _xlsx(path) if path.suffix.lower() == ".xlsx" else read_rows(path, "a table, as CSV")
    rows = [row for row in rows if any(row.cells)]
    if len(rows) < 2:
        raise wrong_file(path, "a header and at least one row", f"{len(rows)} lines")
    header = rows[0].cells
    if len(set(header)) < len(header):
        raise wrong_file(path, "columns of different names", ", ".join(header))
    check_columns(path, rows, len(header), "as the header has")
    return header, {row.line: dict(zip(header, row.cells, strict=True)) for row in rows[1:]}


def _xlsx(path: Path) -> list[Row]:
    try:
        import openpyxl
    except ImportError:
        expected = "expected a CSV, or openpyxl, which reads .xlsx: pip install 'mil_jax[xlsx]'"
        raise InputError("table", str(path), expected) from None
    data = read_bytes(path, "a table, as .xlsx")
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        rows = enumerate(sheet.iter_rows(values_only=True), start=1)
        return [Row(line, ["" if cell is None else str(cell).strip() for cell in cells]) for line, cells in rows]
    except Exception as error:  # of many kinds, where a file is damaged
        raise wrong_file(path, "a table, as .xlsx", f"what cannot be read ({error})") from None


def class_order(labels: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes: as given, numbers by their value, other words by the alphabet.

    Raises:
        InputError: one class alone, or a label that is not among the given ones.
    """
    there = set(labels)
    if classes:
        wrong = sorted(there - set(classes))
        if wrong or len(set(classes)) != len(classes):
            raise InputError("classes", tuple(classes), f"expected all labels once: {', '.join(sorted(there))}")
    elif len(there) < 2:
        raise InputError("label", sorted(there), "expected at least two classes")
    try:
        ordered = sorted(there, key=float)
    except ValueError:
        ordered = sorted(there)
    return tuple(classes) or tuple(ordered)
