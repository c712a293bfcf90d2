"""Features that some encoder has extracted before: an HDF5 file for each bag, as pathology tools write them.

CLAM and TRIDENT write a data set ``features [K, D]`` (or ``[1, K, D]``) for each slide, STAMP calls it ``feats``; all
put the places of the patches beside it, as ``coords [K, 2]``. Labels come from a table of their own.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mil_jax.datasets.csv_rows import check_columns, is_number, labels_from_zero, parse_label, read_rows
from mil_jax.datasets.files import as_path, is_file, wrong_file
from mil_jax.datasets.records import BagSet
from mil_jax.errors import InputError

FEATURES = ("features", "feats")
COORDS = "coords"
LABELS_CONTENT = "lines of bag_id,label"


class _File(NamedTuple):
    """What the header of a bag's file says: its data set of features, how many instances and features, coordinates."""

    path: Path
    key: str
    size: int
    width: int
    has_coords: bool


def load_features(
    folder: str | Path, labels: str | Path, name: str | None = None, *, keys: Sequence[str] = FEATURES
) -> BagSet:
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
    folder, labels = as_path("folder", folder), as_path("labels", labels)
    if not isinstance(keys, tuple | list) or not keys or not all(isinstance(key, str) and key for key in keys):
        raise InputError("keys", keys, "expected names of data sets, such as ('features',)")
    known = _read_labels(labels)
    paths = sorted(folder.glob("[!.]*.h5"))
    if not paths:
        raise InputError("folder", str(folder), f"expected a folder of files BAG.h5 with {keys[0]} [K, D], got none")
    without = [path.stem for path in paths if path.stem not in known]
    if without:
        got = f"none for {len(without)} bags, such as {without[0]!r} of {folder / without[0]}.h5"
        raise wrong_file(labels, f"a line BAG,LABEL for each file of {folder}", got)
    files = [_inspect(path, keys) for path in paths]
    x, position = _read(files)
    spare = len(known) - len(paths)
    return BagSet(
        name=folder.resolve().name if name is None else name,
        x=x,
        sizes=np.array([file.size for file in files], np.int32),
        label=np.array([known[path.stem] for path in paths], np.int32),
        bag_names=tuple(path.stem for path in paths),
        source=f"{len(paths)} files of {folder}, labels from {labels} ({spare} of its bags have no file)",
        position=position,
    )


def _read_labels(path: Path) -> dict[str, int]:
    rows = read_rows(path, LABELS_CONTENT)
    if len(rows[0].cells) == 2 and not is_number(rows[0].cells[1]):
        rows = rows[1:]
    check_columns(path, rows, 2, LABELS_CONTENT)
    known: dict[str, int] = {}
    for line, (bag, cell) in rows:
        label = parse_label(path, f"line {line}", bag, cell)
        if known.setdefault(bag, label) != label:
            raise wrong_file(path, f"one label for bag {bag!r}", f"{known[bag]} and, in line {line}, {label}")
    return dict(zip(known, labels_from_zero(path, known.values()), strict=True))


# Files


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open HDF5 file; whatever goes wrong with it is an InputError."""
    import h5py  # a tenth of a second, which other data does without

    if not is_file(path):
        raise wrong_file(path, "a file of HDF5", "a folder")
    try:
        with h5py.File(path, "r") as content:
            yield content
    except InputError:
        raise
    except Exception as error:  # of many kinds, where a file is damaged
        raise wrong_file(path, "sound HDF5", f"what cannot be read ({error})") from None


def _inspect(path: Path, keys: Sequence[str]) -> _File:
    with _opened(path) as content:
        key = next((key for key in keys if key in content), None)
        if key is None:
            got = ", ".join(content) or "nothing"
            raise wrong_file(path, f"a data set {' or '.join(keys)} (or another name, given as keys)", got)
        features = content[key]
        shape = _bag_shape(features)
        if shape is None:
            raise wrong_file(path, f"as {key} numbers [K, D] or [1, K, D]", _describe(features))
        if 0 in shape:
            raise wrong_file(path, f"as {key} an instance at least", f"{list(shape)}, an empty bag {path.stem!r}")
        has_coords = COORDS in content
        if has_coords and _bag_shape(content[COORDS]) != (shape[0], 2):
            raise wrong_file(path, f"as {COORDS} numbers [{shape[0]}, 2], as {key} has", _describe(content[COORDS]))
    return _File(path, key, *shape, has_coords)


def _bag_shape(data: Any) -> tuple[int, int] | None:
    """[K, D] of a data set of numbers [K, D] or [1, K, D]; None for something else."""
    shape = getattr(data, "shape", None) or ()
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    return shape if len(shape) == 2 and data.dtype.kind in "fiu" else None


def _describe(data: Any) -> str:
    return f"{data.dtype}{list(data.shape or ())}" if hasattr(data, "shape") else "a group"


def _read(files: list[_File]) -> tuple[np.ndarray, np.ndarray | None]:
    """Features [N, D] of all files, and the places [N, 2] if all have them."""
    first, ends = files[0], np.cumsum([file.size for file in files])
    for file in files:
        if file.width != first.width:
            expected = f"{first.width} features, as bag {first.path.stem!r} has"
            raise wrong_file(file.path, expected, f"{file.width} in bag {file.path.stem!r}")
    try:
        x = np.empty((ends[-1], first.width), np.float32)
    except (MemoryError, ValueError):
        got = f"{ends[-1]} x {first.width} of all files"
        raise wrong_file(first.path, "features that fit into memory", got) from None
    position = np.empty((len(x), 2), np.float32) if all(file.has_coords for file in files) else None
    for file, end in zip(files, ends, strict=True):
        _read_into(file, file.key, x[end - file.size : end])
        if position is not None:
            _read_into(file, COORDS, position[end - file.size : end])
    return x, position


def _read_into(file: _File, key: str, values: np.ndarray) -> None:
    with _opened(file.path) as content, np.errstate(over="ignore"):
        values[:] = content[key][()].reshape(values.shape)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        got = f"NaN or infinite in row {np.argmin(finite)} of bag {file.path.stem!r}"
        raise wrong_file(file.path, f"as {key} finite numbers of single precision", got)
