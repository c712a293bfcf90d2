"""A cohort from files: bags with their labels, groups, classes and positions, found and checked by headers alone.

Axes: B bags, N instances in all, K instances of a bag, D features.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from mil_jax.datasets.bag_sources import BagSource, Cohort, cohort_of_arrays
from mil_jax.datasets.feature_files import FeatureFile, find_files, inspect_file, read_truth
from mil_jax.datasets.files import as_path, few, wrong_file
from mil_jax.datasets.label_tables import Columns, LabelRow, class_order, match_rows, read_labels, read_records
from mil_jax.datasets.records import UNKNOWN
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError, check_choice

__all__ = ["BagSource", "Cohort", "Columns", "cohort_of_arrays", "load_cohort", "read_instance_labels"]


def load_cohort(
    features: str | Path,
    table: str | Path | None = None,
    *,
    slide_table: str | Path | None = None,
    columns: Columns = Columns(),
    slides: Literal["apart", "join"] = "apart",
    missing: Literal["refuse", "skip"] = "refuse",
    instance_labels: str | Path | None = None,
) -> Cohort:
    """Finds the files of a cohort and joins them with a table of labels; reads headers alone.

    Args:
        features: a folder with a file for each bag (see `feature_files`), with CLAM's `h5_files/` or `pt_files/`, or
            with torchmil's `features/`, `coords/`, `labels/`, `patch_labels/`; or one CSV `bag_label,bag_id,f1,…`.
        table: a CSV or .xlsx with a row for each file; none for bags without labels, or with those of torchmil.
        slide_table: which files belong to which group of the table, where it does not say.
        columns: the names of the table's columns, and the order of the labels.
        slides: whether each file is a bag, or all files of a group are one.
        missing: what to do about rows without a file or a label, and files without a row.
        instance_labels: a CSV `slide_id,row,positive`.

    Raises:
        InputError: what does not fit together, or cannot be read; it names the file, the row or the column.
    """
    check_choice("slides", slides, ("apart", "join"))
    check_choice("missing", missing, ("refuse", "skip"))
    path = as_path("features", features)
    packed, lines = (path / "manifest.json").exists(), path.is_file() and path.suffix.lower() == ".csv"
    if table is not None and (packed or lines):
        raise InputError("table", str(table), f"expected none beside {path}, which says the labels itself")
    if packed:
        from mil_jax.datasets.pack import load_packed

        cohort = load_packed(path)
    elif lines:
        cohort = _of_table(path, columns.classes)
    else:
        if table is None and slide_table is not None:
            raise InputError("table", None, f"expected the table of labels to which {slide_table} belongs")
        second = None if slide_table is None else as_path("slide_table", slide_table)
        rows = None if table is None else read_labels(as_path("table", table), second, columns)
        cohort = _of_files(path, rows, columns.classes, slides, missing)
    if instance_labels is None:
        return cohort
    return replace(cohort, instance_label=read_instance_labels(instance_labels, cohort))


def read_instance_labels(path: str | Path, cohort: Cohort) -> np.ndarray:
    """The truth [N] of a cohort's instances from a CSV `slide_id,row,positive`: 1, 0, or -1 where it says nothing.

    Raises:
        InputError: no such columns, no slide of the cohort, a row that its file has not, something but 0 and 1, or a
            positive instance in a bag of the first class.
    """
    path = as_path("instance_labels", path)
    if not cohort.class_names:
        raise InputError("instance_labels", str(path), "expected bags with labels: give their table too")
    header, records = read_records(path)
    if not {"slide_id", "row", "positive"} <= set(header):
        raise wrong_file(path, "the columns slide_id, row, positive", ", ".join(header))
    rows, end = {}, 0  # where the instances of each slide are
    for bag in cohort.bags:
        for name, size in [(file.path.stem, file.count) for file in bag.files] or [(bag.name, bag.size)]:
            rows[name], end = range(end, end + size), end + size
    truth = np.full(end, UNKNOWN, np.int32)
    for line, cells in records:
        name, row, positive = (cells[column] for column in ("slide_id", "row", "positive"))
        if name not in rows:
            continue
        if not row.isdecimal() or int(row) >= len(rows[name]) or positive not in ("0", "1"):
            expected = f"rows 0 to {len(rows[name]) - 1} of {name}, each 0 or 1"
            raise wrong_file(path, expected, f"{row!r}, {positive!r} in line {line}")
        truth[rows[name][int(row)]] = int(positive)
    if (truth == UNKNOWN).all():
        raise wrong_file(path, f"slides such as {next(iter(rows))}", records[0].cells["slide_id"])
    return _checked_truth(cohort, truth)


def _checked_truth(cohort: Cohort, truth: np.ndarray) -> np.ndarray:
    if ((truth == 1) & (np.repeat(cohort.label, cohort.sizes) == 0)).any():
        first = cohort.class_names[0]
        expected = f"expected no positive instance in a bag of {first!r}, the first class; classes gives their order"
        raise InputError("instance_labels", 1, expected)
    return truth


def _of_table(path: Path, classes: Sequence[str]) -> Cohort:
    """The bags of one CSV, in memory."""
    data = read_table(path)
    rows = [LabelRow(*row) for row in zip(data.bag_names, data.bag_names, map(str, data.label), strict=True)]
    class_names = class_order(rows, classes)
    sources = [
        BagSource(name=row.slide, group=row.group, label=class_names.index(row.label), arrays=(x, None))
        for row, x in zip(rows, np.split(data.x, np.cumsum(data.sizes)[:-1]), strict=True)
    ]
    return cohort_of_arrays(data.name, sources, class_names, source=str(path))


def _of_files(path: Path, rows: list[LabelRow] | None, classes: Sequence[str], slides: str, missing: str) -> Cohort:
    """The bags of a folder; labels by a table's rows, or by torchmil's files."""
    files, notes = find_files(path), list[str]()
    if rows is not None:
        rows, notes = match_rows(files, rows, missing)
    headers = _inspected({row.slide: files[row.slide] for row in rows} if rows else files, notes)
    if rows is None:
        rows = _own_labels(headers, notes)
    rows = [row for row in rows if row.slide in headers]
    class_names = class_order(rows, classes) if rows[0].label else ()
    bags = _bags(rows, headers, class_names, slides)
    kept = [file for bag in bags for file in bag.files]
    units, sides = {file.unit for file in kept}, {file.patch_size for file in kept}
    placed = len(units) == 1 and len(bags) == len(kept)
    if not placed and units != {""}:
        notes.append("left out, positions: they need one file for each bag, and one unit in all")
    cohort = Cohort(
        name=path.resolve().name, bags=tuple(bags), class_names=class_names, shape=(kept[0].width,),
        dtype=np.dtype(np.float16 if {file.dtype for file in kept} == {np.dtype(np.float16)} else np.float32),
        unit=units.pop() if placed else "", patch_size=sides.pop() if len(sides) == 1 else 0.0,
        source=f"{len(kept)} files of {path}", notes=tuple(notes),
    )  # fmt: skip
    if not class_names or not any(file.has_truth for file in kept):
        return cohort
    truth = [read_truth(file) if file.has_truth else np.full(file.count, UNKNOWN, np.int32) for file in kept]
    return replace(cohort, instance_label=_checked_truth(cohort, np.concatenate(truth)))


def _own_labels(headers: dict[str, FeatureFile], notes: list[str]) -> list[LabelRow]:
    """Rows as files alone give them; labels where all have one, and these differ."""
    labels = [header.label for header in headers.values()]
    if "" not in labels and len(set(labels)) > 1:
        return [LabelRow(name, name, header.label) for name, header in headers.items()]
    if any(labels):
        got = "some bags have none" if "" in labels else f"all are {labels[0]}"
        notes.append(f"left out, labels in the files: {got}")
    return [LabelRow(name, name) for name in headers]


def _inspected(files: dict[str, Path], notes: list[str]) -> dict[str, FeatureFile]:
    """The headers of the files that hold instances, all of one width."""
    headers = {name: inspect_file(path) for name, path in files.items()}
    empty = [name for name, header in headers.items() if not header.count]
    if empty:
        notes.append(f"left out, {len(empty)} bags without instances: {few(empty)}")
    headers = {name: header for name, header in headers.items() if header.count}
    if not headers:
        raise InputError("features", len(files), "expected bags with instances, got empty ones alone")
    first = next(iter(headers.values()))
    for header in headers.values():
        if header.width != first.width:
            raise wrong_file(header.path, f"{first.width} features, as {first.path.name} has", str(header.width))
    return headers


def _bags(
    rows: list[LabelRow], headers: dict[str, FeatureFile], class_names: tuple[str, ...], slides: str
) -> list[BagSource]:
    """A bag for each row, or for each group of rows."""
    by_bag: dict[str, list[LabelRow]] = {}
    for row in rows:
        by_bag.setdefault(row.group if slides == "join" else row.slide, []).append(row)
    bags = []
    for name, members in by_bag.items():
        for kind in ("label", "split"):
            values = sorted({getattr(row, kind) for row in members})
            if len(values) > 1:
                raise InputError("slides", slides, f"expected one {kind} for all files of {name!r}, got {values}")
        label = class_names.index(members[0].label) if class_names else UNKNOWN
        files = tuple(headers[row.slide] for row in members)
        bags.append(BagSource(name=name, group=members[0].group, label=label, files=files, split=members[0].split))
    return bags
