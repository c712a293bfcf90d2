"""Features that some encoder has extracted before: an HDF5 file for each bag, as pathology tools write them.

CLAM and TRIDENT write a data set ``features [K, D]`` (or ``[1, K, D]``) for each slide, STAMP calls it ``feats``; all
put the places of the patches beside it, as ``coords [K, 2]``. Labels come from a table of their own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.datasets.csv_rows import is_number, parse_label, read_rows
from mil_jax.datasets.records import BagSet, build_bag_set
from mil_jax.errors import InputError

FEATURES = ("features", "feats")
COORDS = "coords"
LABELS_CONTENT = "lines of bag_id,label"


@dataclass(frozen=True)
class _File:
    """What the header of a bag's file says: its data set of features, how many instances and features, coordinates."""

    path: Path
    key: str
    count: int
    width: int
    has_coords: bool


def load_features(folder: Path, labels: Path, name: str | None = None, *, keys: tuple[str, ...] = FEATURES) -> BagSet:
    """Loads a folder of HDF5 files, one for each bag, in the order of their names.

    All of it is held in memory, as float32: 4 N D bytes.

    Args:
        folder: files ``BAG.h5`` with a data set of numbers ``[K, D]`` or ``[1, K, D]``, D the same in all.
        labels: a CSV of ``bag_id,label``, labels whole numbers from 0 or -1 and 1, with or without a header. It may
            know more bags than the folder; ``source`` counts them.
        name: what the set is called; the folder's name where not given.
        keys: names of the data set of features; the first that a file has is read.

    Returns:
        Bags with unknown instance labels. If every file has ``coords [K, 2]`` (as whatever writer left them: pixels
        of the finest level for CLAM and TRIDENT, micrometres for STAMP), they become positions.

    Raises:
        InputError: a file lacks the data set, is damaged or has no label; a bag is empty, has another D, or holds
            something not finite.
    """
    folder = folder.expanduser()
    known = _read_labels(labels)
    paths = sorted(folder.glob("[!.]*.h5"))
    if not paths:
        raise InputError("folder", str(folder), f"it holds no .h5 file: BAG.h5 with {keys[0]} [K, D] would do")
    _check_labelled(paths, known, labels)
    files = [_inspect(path, keys) for path in paths]
    _check_widths(files)
    x = np.empty((sum(file.count for file in files), files[0].width), np.float32)
    position = np.empty((len(x), 2), np.float32) if all(file.has_coords for file in files) else None
    start = 0
    for file in files:
        end = start + file.count
        _read_into(file, x[start:end], None if position is None else position[start:end])
        start = end
    names = [path.stem for path in paths]
    return build_bag_set(
        name or folder.resolve().name,
        x,
        [file.count for file in files],
        [known[bag] for bag in names],
        names,
        f"{len(paths)} files of {folder}, labels from {labels} ({len(known) - len(paths)} of its bags have no file)",
        position=position,
    )


# Labels


def _read_labels(path: Path) -> dict[str, int]:
    rows = read_rows(path, LABELS_CONTENT)
    if len(rows[0].cells) == 2 and not is_number(rows[0].cells[1]):
        rows = rows[1:]
    known: dict[str, int] = {}
    for row in rows:
        if len(row.cells) != 2:
            remedy = f"line {row.line} has {len(row.cells)} columns: {LABELS_CONTENT} would do"
            raise InputError("file", str(path), remedy)
        bag = row.cells[0].strip()
        label = parse_label(path, f"line {row.line}", bag, row.cells[1].strip())
        if known.setdefault(bag, label) != label:
            remedy = f"line {row.line}: bag {bag!r} has the label {label} here, but {known[bag]} before: one would do"
            raise InputError("file", str(path), remedy)
    found = sorted(set(known.values()))
    if found and found[0] == -1 and not set(found) <= {-1, 1}:
        remedy = f"it has the labels {', '.join(map(str, found))}: -1 and 1, or whole numbers from 0, would do"
        raise InputError("file", str(path), remedy)
    return {bag: max(label, 0) for bag, label in known.items()}


def _check_labelled(paths: list[Path], known: dict[str, int], labels: Path) -> None:
    without = [path for path in paths if path.stem not in known]
    if without:
        remedy = (
            f"{labels} has no label of bag {without[0].stem!r} (bags without one: {len(without)}): a line"
            f" {without[0].stem},LABEL there, or a folder without the file, would do"
        )
        raise InputError("file", str(without[0]), remedy)


# Files


def _open(path: Path) -> Any:
    import h5py  # a tenth of a second, which other data does without

    try:
        return h5py.File(path, "r")
    except OSError as error:
        remedy = f"it cannot be read as HDF5 ({error}): copy the original file again"
        raise InputError("file", str(path), " ".join(remedy.split())) from None


def _inspect(path: Path, keys: tuple[str, ...]) -> _File:
    with _open(path) as content:
        key = next((key for key in keys if key in content), None)
        if key is None:
            remedy = f"it has no data set {' or '.join(keys)}, but {', '.join(content) or 'nothing'}: {keys[0]} [K, D]"
            raise InputError("file", str(path), f"{remedy} would do, or another name given as keys")
        features, coords = content[key], content.get(COORDS)
        shape = _bag_shape(features)
        if shape is None:
            remedy = f"its {key} is {_describe(features)}: numbers [K, D] or [1, K, D] would do"
            raise InputError("file", str(path), remedy)
        count, width = shape
        if count == 0 or width == 0:
            remedy = f"bag {path.stem!r} is empty: its {key} has the shape [{count}, {width}]; leave the file out"
            raise InputError("file", str(path), remedy)
        if coords is not None and _bag_shape(coords) != (count, 2):
            remedy = f"its {COORDS} is {_describe(coords)}: numbers [{count}, 2], as {key} has {count} rows, would do"
            raise InputError("file", str(path), remedy)
    return _File(path, key, count, width, coords is not None)


def _bag_shape(data: Any) -> tuple[int, int] | None:
    """[K, D] of a data set of numbers [K, D] or [1, K, D]; None for something else."""
    shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
    if shape is None or dtype is None or dtype.kind not in "fiu":
        return None
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _describe(data: Any) -> str:
    return f"{data.dtype}{list(data.shape or ())}" if hasattr(data, "shape") else "a group"


def _check_widths(files: list[_File]) -> None:
    for file in files:
        if file.width != files[0].width:
            remedy = (
                f"bag {file.path.stem!r} has {file.width} features, {files[0].path.stem!r} has {files[0].width}:"
                " bags of one encoder would do"
            )
            raise InputError("file", str(file.path), remedy)


def _read_into(file: _File, x: np.ndarray, position: np.ndarray | None) -> None:
    try:
        with _open(file.path) as content, np.errstate(over="ignore"):
            x[:] = content[file.key][()].reshape(x.shape)
            if position is not None:
                position[:] = content[COORDS][()].reshape(position.shape)
    except OSError as error:
        remedy = f"its {file.key} cannot be read ({error}): copy the original file again"
        raise InputError("file", str(file.path), " ".join(remedy.split())) from None
    for key, values in ((file.key, x), (COORDS, position)):
        if values is not None and not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values).all(axis=1)))
            remedy = (
                f"bag {file.path.stem!r}: {key} is NaN or infinite in row {row}: finite numbers of single precision"
                " would do"
            )
            raise InputError("file", str(file.path), remedy)
