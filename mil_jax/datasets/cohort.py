"""A cohort: bags that lie in files, with their labels, groups, classes and positions, and how each of them is read.

Axes: B bags, N instances in all, K instances of a bag, D features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mil_jax.datasets.feature_files import SUFFIXES, FeatureFile, inspect_file, read_file
from mil_jax.datasets.files import as_path, wrong_file
from mil_jax.datasets.label_tables import Columns, LabelRow, class_order, read_labels, read_records
from mil_jax.datasets.records import UNKNOWN, BagSet
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError
from mil_jax.memory import aligned_empty

__all__ = ["BagSource", "Cohort", "Columns", "cohort_of_arrays", "load_cohort"]

Arrays = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, eq=False, kw_only=True)
class BagSource:
    """One bag, and how to read it.

    Attributes:
        name: of the slide, or of the group where several files are one bag.
        group: what a split must not cut, such as the patient.
        label: index of the class; -1 where nobody knows.
        files: read one after the other.
        arrays: instances [K, ...] and positions [K, 2], instead of files.
        split: the part of a given split, "" where there is none.
    """

    name: str
    group: str
    label: int = UNKNOWN
    files: tuple[FeatureFile, ...] = ()
    arrays: Arrays | None = None
    split: str = ""

    @property
    def size(self) -> int:
        """K."""
        return sum(file.count for file in self.files) if self.arrays is None else len(self.arrays[0])

    def read(self) -> Arrays:
        """Instances [K, ...] and positions [K, 2]; a bag of several files has no positions.

        Raises:
            InputError: a file that cannot be read, or is not what it was.
        """
        if self.arrays is not None:
            return self.arrays
        parts = [read_file(file) for file in self.files]
        return parts[0] if len(parts) == 1 else (np.concatenate([x for x, _ in parts]), None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cohort:
    """B bags and what is known of them.

    Attributes:
        name: what the cohort is called.
        bags: the bags.
        class_names: a name for each class; none where there are no labels.
        shape: of an instance.
        dtype: of the instances in memory: that of the files, uint8, float16 or float32.
        unit: of positions: "px", "um", or "" where not all bags have them.
        patch_size: side of a patch in that unit; 0 where nobody says.
        source: a sentence for people.
        notes: what was left out, and why.
        instance_label: 1, 0, or -1 for unknown, of all N instances; None where nobody knows any.
    """

    name: str
    bags: tuple[BagSource, ...]
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    unit: str = ""
    patch_size: float = 0.0
    source: str = ""
    notes: tuple[str, ...] = ()
    instance_label: np.ndarray | None = None

    label = property(lambda self: np.array([bag.label for bag in self.bags], np.int32), doc="[B].")
    sizes = property(lambda self: np.array([bag.size for bag in self.bags], np.int32), doc="[B] instances of each.")
    groups = property(lambda self: tuple(bag.group for bag in self.bags), doc="[B].")
    bag_names = property(lambda self: tuple(bag.name for bag in self.bags), doc="[B].")
    split = property(lambda self: tuple(bag.split for bag in self.bags), doc="[B] parts of a given split.")

    @property
    def content_hash(self) -> str:
        """SHA-256 of names, groups, labels, sizes and types; of what the files hold, their lengths in bytes."""
        digest = hashlib.sha256(f"{self.class_names}{self.shape}{self.dtype}".encode())
        for bag in self.bags:
            lengths = [file.path.stat().st_size for file in bag.files]
            digest.update(f"{bag.name}|{bag.group}|{bag.label}|{bag.size}|{lengths}\n".encode())
            if bag.arrays is not None:
                digest.update(np.ascontiguousarray(bag.arrays[0]).data)
        return digest.hexdigest()

    def read(self, index: Sequence[int] | None = None, out: np.ndarray | None = None) -> BagSet:
        """Bags in memory, in one copy.

        Args:
            index: which, in this order; all where not given.
            out: memory for the instances, [N, ...] or more of the cohort's type; new memory where not given.

        Raises:
            InputError: a file that cannot be read, or is not what it was.
        """
        chosen = range(len(self.bags)) if index is None else [int(i) for i in index]
        bags = [self.bags[i] for i in chosen]
        sizes = np.array([bag.size for bag in bags], np.int32)
        ends, count = np.cumsum(sizes), int(sizes.sum())
        x = aligned_empty((count, *self.shape), self.dtype) if out is None else out[:count]
        position = np.empty((count, 2), np.float32) if self.unit else None
        for bag, end in zip(bags, ends, strict=True):
            here = slice(end - bag.size, end)
            values, places = bag.read()
            x[here] = values
            if position is not None:
                position[here] = places
        return BagSet(
            name=self.name, x=x, sizes=sizes, label=np.array([max(bag.label, 0) for bag in bags], np.int32),
            bag_names=tuple(bag.name for bag in bags), source=self.source or self.name,
            class_names=self.class_names, position=position, instance_label=self._truth(chosen),
        )  # fmt: skip

    def _truth(self, chosen: Sequence[int]) -> np.ndarray:
        if self.instance_label is None:
            return np.empty(0, np.int32)
        parts = np.split(self.instance_label, np.cumsum(self.sizes)[:-1])
        return np.concatenate([parts[i] for i in chosen])


def cohort_of_arrays(
    name: str, sources: Sequence[BagSource], class_names: Sequence[str], *, unit: str = "", patch_size: float = 0.0,
    instance_label: np.ndarray | None = None, source: str = "",
) -> Cohort:  # fmt: skip
    """A cohort of bags that are arrays in memory."""
    first = next(bag.arrays for bag in sources if bag.arrays is not None)[0]
    return Cohort(
        name=name, bags=tuple(sources), class_names=tuple(class_names), shape=first.shape[1:], dtype=first.dtype,
        unit=unit, patch_size=patch_size, instance_label=instance_label, source=source,
    )  # fmt: skip


# ---- from files ----


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
    path = as_path("features", features)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _of_table(path)
    if (path / "manifest.json").exists():
        from mil_jax.datasets.pack import load_packed

        return load_packed(path)
    files = find_files(path)
    notes: list[str] = []
    if table is None:
        rows = [LabelRow(name, name, "", "") for name in files]
    else:
        second = None if slide_table is None else as_path("slide_table", slide_table)
        rows = _matched(files, read_labels(as_path("table", table), second, columns), missing, notes)
    headers = _inspected(files, rows, path / "coords", notes)
    rows = [row for row in rows if row.slide in headers]
    class_names = class_order([row.label for row in rows], classes) if table is not None else ()
    bags = _bags(rows, headers, class_names, slides)
    every = [file for bag in bags for file in bag.files]
    dtype = every[0].dtype if len({file.dtype for file in every}) == 1 else np.dtype(np.float32)
    units = {file.unit for file in every}
    whole = len(units) == 1 and all(len(bag.files) == 1 for bag in bags)
    cohort = Cohort(
        name=path.resolve().name, bags=tuple(bags), class_names=class_names, shape=(every[0].width,),
        dtype=dtype if dtype == np.float16 else np.dtype(np.float32), unit=units.pop() if whole else "",
        patch_size=every[0].patch_size, source=f"{len(every)} files of {path}", notes=tuple(notes),
    )  # fmt: skip
    if instance_labels is None:
        return cohort
    return _with_truth(cohort, as_path("instance_labels", instance_labels))


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
        raise InputError("features", str(folder), f"expected files that end in {', '.join(SUFFIXES)}, got none")
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
        else:
            found[name] = LabelRow(name, stem if row.group == row.slide else row.group, row.label, row.split)
    spare = [name for name in files if name not in found]
    for names, what in ((lost, "rows without a file"), (spare, "files without a row")):
        if names:
            text = f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            if missing == "refuse":
                raise InputError(
                    "table", text, "expected a row for each file and a file for each row, or missing='skip'"
                )
            notes.append(f"left out, {text}")
    if not found:
        raise InputError("table", f"{len(rows)} rows", f"expected names of files such as {next(iter(files))}")
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
        notes.append(f"left out, {len(empty)} bags without instances: {', '.join(empty[:5])}")
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
        labels = sorted({row.label for row in members})
        if len(labels) > 1:
            raise InputError("slides", "join", f"expected one label for all files of {group!r}, got {labels}")
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
    start = {bag.name: end - bag.size for bag, end in zip(cohort.bags, np.cumsum(cohort.sizes), strict=True)}
    size = {bag.name: bag.size for bag in cohort.bags}
    truth = np.full(int(cohort.sizes.sum()), UNKNOWN, np.int32)
    for line, record in enumerate(records, start=2):
        name, row, positive = (record[column] for column in ("slide_id", "row", "positive"))
        if name not in start:
            continue
        if not row.isdigit() or int(row) >= size[name] or positive not in ("0", "1"):
            raise wrong_file(path, f"rows 0 to {size[name] - 1} of {name}, 0 or 1", f"{row}, {positive} in line {line}")
        truth[start[name] + int(row)] = int(positive)
    wrong = (truth == 1) & (np.repeat(cohort.label, cohort.sizes) == 0)
    if wrong.any():
        first = cohort.class_names[0]
        raise InputError("instance_labels", 1, f"expected no positive instance in a bag of {first!r}, the first class; "
                         "classes gives their order")  # fmt: skip
    return replace(cohort, instance_label=truth)
