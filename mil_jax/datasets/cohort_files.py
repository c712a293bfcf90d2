"""Cohorts from what people have: a folder of features, and a table that says what they belong to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from mil_jax.datasets.cohort import BagSource, Cohort, cohort_of_arrays
from mil_jax.datasets.feature_files import SUFFIXES, FeatureFile, inspect_file
from mil_jax.datasets.files import as_path, wrong_file
from mil_jax.datasets.label_tables import Columns, LabelRow, class_order, read_labels, read_records
from mil_jax.datasets.records import UNKNOWN
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError, check_choice


def load_cohort(
    features: str | Path,
    table: str | Path | None = None,
    *,
    slide_table: str | Path | None = None,
    columns: Columns = Columns(),
    classes: Sequence[str] = (),
    slides: Literal["apart", "join"] = "apart",
    missing: Literal["refuse", "skip"] = "refuse",
    instance_labels: str | Path | None = None,
) -> Cohort:
    """Finds the files of a cohort and joins them with a table of labels; reads headers alone.

    Args:
        features: a folder with a file for each bag (see `feature_files`), with CLAM's `h5_files/` or `pt_files/`, or
            with torchmil's `features/`, `coords/`; or one CSV `bag_label,bag_id,f1,…`.
        table: a CSV or .xlsx with a row for each file; none for bags without labels.
        slide_table: which files belong to which group of the table, where it does not say.
        columns: the names of the table's columns.
        classes: labels in their order; numbers by value and words by the alphabet where not given.
        slides: whether each file is a bag, or all files of a group are one.
        missing: what to do about rows without a file and files without a row.
        instance_labels: a CSV `slide_id,row,positive`.

    Raises:
        InputError: what does not fit together, or cannot be read; it names the file, the row or the column.
    """
    check_choice("slides", slides, ("apart", "join"))
    check_choice("missing", missing, ("refuse", "skip"))
    path = as_path("features", features)
    tables = {"table": table, "slide_table": slide_table, "instance_labels": instance_labels}
    places = {name: None if value is None else as_path(name, value) for name, value in tables.items()}
    if path.is_file() and path.suffix.lower() == ".csv":
        for name, value in {**places, "classes": classes or None}.items():
            if value is not None and name != "instance_labels":
                raise InputError(name, str(value), f"expected nothing beside {path}, whose lines have labels")
        cohort = _of_table(path)
    elif (path / "manifest.json").exists():
        from mil_jax.datasets.pack import load_packed

        return load_packed(path)
    else:
        given = [name for name, value in places.items() if value is not None]
        if given and table is None:
            raise InputError("table", None, f"expected a table of labels, to which {given[0]} belongs")
        labels = None if places["table"] is None else read_labels(places["table"], places["slide_table"], columns)
        cohort = _of_folder(path, labels, classes, slides, missing)
    return cohort if places["instance_labels"] is None else _with_truth(cohort, places["instance_labels"])


def _of_folder(path: Path, labels: list[LabelRow] | None, classes: Sequence[str], slides: str, missing: str) -> Cohort:
    files, notes = find_files(path), []
    if labels is None:
        rows = [LabelRow(name, name, "", "") for name in files]
    else:
        rows = _matched(files, labels, missing, notes)
    headers = _inspected(files, rows, path / "coords", notes)
    rows = [row for row in rows if row.slide in headers]
    class_names = class_order([row.label for row in rows], classes) if labels is not None else ()
    bags = _bags(rows, headers, class_names, slides)
    every = [file for bag in bags for file in bag.files]
    dtype = every[0].dtype if len({file.dtype for file in every}) == 1 else np.dtype(np.float32)
    units, sides = {file.unit for file in every}, {file.patch_size for file in every}
    whole = len(units) == 1 and all(len(bag.files) == 1 for bag in bags)
    return Cohort(
        name=path.resolve().name, bags=tuple(bags), class_names=class_names, shape=(every[0].width,),
        dtype=dtype if dtype == np.float16 else np.dtype(np.float32), unit=units.pop() if whole else "",
        patch_size=sides.pop() if len(sides) == 1 else 0.0, source=f"{len(every)} files of {path}", notes=tuple(notes),
    )  # fmt: skip


def _of_table(path: Path) -> Cohort:
    data = read_table(path)
    parts = np.split(data.x, np.cumsum(data.sizes)[:-1])
    names = tuple(str(value) for value in range(int(data.label.max()) + 1))
    sources = [
        BagSource(name=name, group=name, label=int(label), arrays=(x, None))
        for name, label, x in zip(data.bag_names, data.label, parts, strict=True)
    ]
    return cohort_of_arrays(data.name, sources, names, source=str(path))


def find_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by the names of their bags.

    Raises:
        InputError: no folder, or no files in it.
    """
    if not folder.is_dir():
        raise InputError("features", str(folder), "expected a folder of files, or one CSV")
    inner = next((folder / name for name in ("h5_files", "pt_files", "features") if (folder / name).is_dir()), folder)
    files: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(inner.glob(f"[!.]*{suffix}")):
            files.setdefault(path.stem, path)
    if not files:
        inside = ", ".join(sorted(place.name for place in inner.iterdir() if place.is_dir())[:5]) or "nothing"
        expected = f"expected files that end in {', '.join(SUFFIXES)}; got none, of folders {inside}"
        raise InputError("features", str(folder), expected)
    return dict(sorted(files.items()))


def _matched(files: dict[str, Path], rows: list[LabelRow], missing: str, notes: list[str]) -> list[LabelRow]:
    """The rows that have a file, under the file's name."""
    endings = (*SUFFIXES, ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".czi", ".scn")
    found: dict[str, LabelRow] = {}
    lost = []
    for row in rows:
        stem = next((row.slide[: -len(e)] for e in endings if row.slide.lower().endswith(e)), row.slide)
        name = row.slide if row.slide in files else stem
        if name not in files:
            lost.append(row.slide)
        elif name in found:
            raise InputError("table", row.slide, f"expected one row for each file, got another one of {name!r}")
        else:
            found[name] = LabelRow(name, stem if row.group == row.slide else row.group, row.label, row.split)
    spare = [name for name in files if name not in found]
    for names, what in ((lost, "rows without a file"), (spare, "files without a row")):
        if names:
            text = f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            if missing == "refuse":
                expected = "expected a row for each file and a file for each row, or that missing = 'skip'"
                raise InputError("table", text, expected)
            notes.append(f"left out, {text}")
    if not found:
        got = f"{len(rows)} rows, such as {rows[0].slide}"
        raise InputError("table", got, f"expected names of files such as {next(iter(files))}")
    return [found[name] for name in files if name in found]


def _inspected(files: dict[str, Path], rows: list[LabelRow], coords: Path, notes: list[str]) -> dict[str, FeatureFile]:
    """The headers of the files that hold instances."""
    headers, empty = {}, []
    for row in rows:
        beside = coords / f"{row.slide}.npy"
        header = inspect_file(files[row.slide], beside if beside.is_file() else None)
        if header.count:
            headers[row.slide] = header
        else:
            empty.append(row.slide)
    if empty:
        more = ", …" if len(empty) > 5 else ""
        notes.append(f"left out, {len(empty)} bags without instances: {', '.join(empty[:5])}{more}")
    if not headers:
        raise InputError("features", len(rows), "expected bags with instances, got empty ones alone")
    first = next(iter(headers.values()))
    for header in headers.values():
        if header.width != first.width:
            raise wrong_file(header.path, f"{first.width} features, as {first.path.name} has", str(header.width))
    return headers


def _bags(
    rows: list[LabelRow], headers: dict[str, FeatureFile], class_names: tuple[str, ...], slides: str
) -> list[BagSource]:
    number = {name: i for i, name in enumerate(class_names)}
    if slides == "apart":
        return [
            BagSource(name=row.slide, group=row.group, label=number.get(row.label, UNKNOWN),
                      files=(headers[row.slide],), split=row.split)
            for row in rows
        ]  # fmt: skip
    groups: dict[str, list[LabelRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    for group, members in groups.items():
        for kind in ("label", "split"):
            values = sorted({getattr(row, kind) for row in members})
            if len(values) > 1:
                raise InputError("slides", "join", f"expected one {kind} for all files of {group!r}, got {values}")
    return [
        BagSource(name=group, group=group, label=number.get(members[0].label, UNKNOWN),
                  files=tuple(headers[row.slide] for row in members), split=members[0].split)
        for group, members in groups.items()
    ]  # fmt: skip


def _with_truth(cohort: Cohort, path: Path) -> Cohort:
    """The cohort with the truth of its instances."""
    header, records = read_records(path)
    if not {"slide_id", "row", "positive"} <= set(header):
        raise wrong_file(path, "the columns slide_id, row, positive", ", ".join(header))
    sources = [(file.path.stem, file.count) for bag in cohort.bags for file in bag.files]
    sources = sources or [(bag.name, bag.size) for bag in cohort.bags]  # which are arrays
    size, ends = dict(sources), np.cumsum([count for _, count in sources])
    start = {name: end - count for (name, count), end in zip(sources, ends, strict=True)}
    truth = np.full(int(cohort.sizes.sum()), UNKNOWN, np.int32)
    for line, record in records.items():
        name, row, positive = (record[column] for column in ("slide_id", "row", "positive"))
        if name not in start:
            continue
        if not row.isdecimal() or int(row) >= size[name] or positive not in ("0", "1"):
            raise wrong_file(path, f"rows 0 to {size[name] - 1} of {name}, 0 or 1", f"{row}, {positive} in line {line}")
        truth[start[name] + int(row)] = int(positive)
    if (truth == UNKNOWN).all():
        raise wrong_file(path, f"slides such as {sources[0][0]}", f"none of them in {len(records)} rows")
    wrong = (truth == 1) & (np.repeat(cohort.label, cohort.sizes) == 0)
    if wrong.any():
        first = cohort.class_names[0]
        raise InputError("instance_labels", 1, f"expected no positive instance in a bag of {first!r}, the first class; "
                         "classes gives their order")  # fmt: skip
    return replace(cohort, instance_label=truth)
