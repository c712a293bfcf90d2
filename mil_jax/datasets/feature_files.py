"""One file of a bag's features to arrays: what CLAM, TRIDENT, STAMP, torchmil and many scripts write.

| writer | features | positions |
|---|---|---|
| CLAM, TRIDENT | HDF5 `features [K, D]` or `[1, K, D]` | `coords [K, 2]`, pixels of the finest level |
| STAMP | HDF5 `feats [K, D]` | `coords [K, 2]`, micrometres |
| torchmil | `features/BAG.npy`, or HDF5 `features` | `coords/BAG.npy`, or `coords` |
| scripts | `BAG.npy`, `BAG.npz`, `BAG.pt` (tensors alone) | in `.npz` and `.pt`: `coords` |

torchmil says the label of a bag as well, in `labels`, and which instances make it positive, in `patch_labels`.
"""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.datasets.files import few, is_file, wrong_file
from mil_jax.datasets.tensors import read_tensors
from mil_jax.errors import InputError
from mil_jax.memory import is_finite

FEATURES = ("features", "feats", "x")
COORDS = ("coords", "position", "positions")
LABEL, TRUTH = "labels", "patch_labels"
HDF5 = (".h5", ".hdf5")
SUFFIXES = (*HDF5, ".npy", ".npz", ".pt")  # in this order where a bag has several files
FOLDERS = ("h5_files", "pt_files", "features")  # of CLAM and torchmil, inside the given one
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class FeatureFile:
    """What the header of a bag's file says."""

    path: Path
    count: int
    """Instances, K; 0 for a bag without any."""
    width: int
    """Features, D."""
    dtype: np.dtype
    """Of the features."""
    length: int
    """Of the file, in bytes."""
    unit: str = ""
    """Of positions: "px", "um", or "" where there are none."""
    patch_size: float = 0.0
    """Side of a patch in that unit; 0 where the file does not say."""
    label: str = ""
    """The class of the bag where torchmil says it."""
    has_truth: bool = False
    """Whether torchmil says which instances are positive."""


def find_files(folder: Path) -> dict[str, Path]:
    """The files of a folder, or of the folders in it that CLAM and torchmil make, by the names of their bags.

    Raises:
        InputError: no folder, or no files in it.
    """
    if not folder.is_dir():
        raise InputError("features", str(folder), "expected a folder of files, or one CSV")
    inside = [folder / name for name in FOLDERS if (folder / name).is_dir()] or [folder]
    files: dict[str, Path] = {}
    for place in inside:
        for suffix in SUFFIXES:
            for path in place.glob(f"[!.]*{suffix}"):
                files.setdefault(path.stem, path)
    if not files:
        others = few(sorted(place.name for place in folder.iterdir() if place.is_dir()))
        hint = f", but folders {others}" if others else ""
        raise InputError("features", str(folder), f"expected files that end in {', '.join(SUFFIXES)}, got none{hint}")
    return dict(sorted(files.items()))


def inspect_file(path: Path) -> FeatureFile:
    """The header of a file.

    Raises:
        InputError: the file is damaged, holds no features [K, D], or positions of another length.
    """
    with _opened(path, headers=True) as (content, attributes):
        features, coords = _pick(path, content, FEATURES), _first(content, COORDS)
        count, width = _shape(path, features)
        with _beside(path, "coords", headers=True) as other:
            coords = coords if other is None else other
            if coords is not None and count and _squeezed(coords.shape) != (count, 2):
                got = f"{list(coords.shape)}{'' if other is None else ' in coords/'} for {count} instances"
                raise wrong_file(path, f"as coordinates numbers [{count}, 2]", got)
        about = attributes | dict(getattr(coords, "attrs", {}))
        unit = "" if coords is None else "um" if about.get("unit") in ("um", b"um") else "px"
        label, truth = (content.get(key) if path.suffix in HDF5 else None for key in (LABEL, TRUTH))
        with _beside(path, LABEL) as other, _beside(path, TRUTH, headers=True) as marks:
            label = label if other is None else other
            return FeatureFile(
                path, count, width, np.dtype(features.dtype), path.stat().st_size, unit, _patch_size(about, unit),
                _label(label), not (marks is None and truth is None),
            )  # fmt: skip


def read_file(file: FeatureFile) -> tuple[np.ndarray, np.ndarray | None]:
    """Features [K, D], float16 as they are or float32, and positions [K, 2] of a file.

    Raises:
        InputError: the file has changed since it was inspected, is damaged, or holds what is not finite.
    """
    shape = [file.count, file.width]
    with _opened(file.path) as (content, _), _beside(file.path, "coords") as other:
        features, coords = _pick(file.path, content, FEATURES), _first(content, COORDS)
        if list(_shape(file.path, features)) != shape:
            raise wrong_file(file.path, f"features {shape}, as before", str(list(features.shape)))
        x, coords = features[()].reshape(shape), coords if other is None else other
        position = None if coords is None else _fitting(file, "coordinates", coords[()], (file.count, 2))
    with np.errstate(over="ignore"):
        x = x if x.dtype in (np.float16, np.float32) else x.astype(np.float32)
        position = None if position is None else position.astype(np.float32)
    for name, values in (("numbers", x), ("coordinates", position)):
        if values is not None and not is_finite(values):
            row = np.argmin(np.isfinite(values).all(axis=1))
            got = f"NaN or infinite in row {row} of bag {file.path.stem!r}"
            raise wrong_file(file.path, f"finite {name} of single precision", got)
    return x, position


def read_truth(file: FeatureFile) -> np.ndarray:
    """Which instances [K] torchmil calls positive: 1, 0, or -1 for unknown."""
    with _opened(file.path) as (content, _), _beside(file.path, TRUTH) as other:
        values = _fitting(file, TRUTH, (content[TRUTH] if other is None else other)[()], (file.count,))
    if not np.isin(values, (-1, 0, 1)).all():
        raise wrong_file(file.path, f"as {TRUTH} 0, 1 or -1", f"{values[~np.isin(values, (-1, 0, 1))][0]}")
    return values.astype(np.int32)


@contextlib.contextmanager
def _opened(path: Path, *, headers: bool = False) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """The arrays of a file by name, and the file's attributes; whatever goes wrong with it is an InputError."""
    if not is_file(path):
        raise wrong_file(path, "a file of features", "a folder" if path.exists() else "no such file")
    try:
        if path.suffix in HDF5:
            import h5py  # a tenth of a second, which other data does without

            with h5py.File(path, "r") as content:
                yield content, dict(content.attrs)
            return
        yield _arrays(path, headers), {}
    except InputError:
        raise
    except Exception as error:  # of many kinds, where a file is damaged
        got = f"what cannot be read ({str(error) or type(error).__name__})"
        raise wrong_file(path, f"a sound {path.suffix} file", got) from None


@contextlib.contextmanager
def _beside(path: Path, folder: str, *, headers: bool = False) -> Iterator[Any]:
    """What torchmil keeps of a bag in another folder; None where there is none."""
    other = path.parent.parent / folder / f"{path.stem}.npy"
    if path.parent.name != "features" or not is_file(other):
        yield None
        return
    with _opened(other, headers=headers) as (content, _):
        yield content[FEATURES[0]]


def _arrays(path: Path, headers: bool) -> Mapping[str, Any]:
    """The arrays of a file that is no HDF5; types and shapes alone take no memory."""
    if path.suffix == ".pt":
        content = read_tensors(path, headers=headers)
        return content if isinstance(content, dict) else {FEATURES[0]: content}
    if path.suffix == ".npz" and headers:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}
    if path.suffix == ".npy":
        return {FEATURES[0]: np.load(path, mmap_mode="r" if headers else None, allow_pickle=False)}
    with path.open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _header(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
    return np.broadcast_to(np.zeros((), dtype), shape)


def _first(content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((content[key] for key in keys if key in content), None)


def _pick(path: Path, content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    values = _first(content, keys)
    if values is None:
        raise wrong_file(path, f"an array {' or '.join(keys)}", ", ".join(content) or "nothing")
    return values


def _shape(path: Path, features: Any) -> tuple[int, int]:
    """[K, D] of the features; [0, 0] of a bag without instances."""
    shape = _squeezed(getattr(features, "shape", None) or ())
    if shape and shape[0] == 0:
        return 0, 0
    if len(shape) != 2 or features.dtype.kind not in "fiu" or 0 in shape:
        got = f"{features.dtype}{list(features.shape or ())}" if hasattr(features, "shape") else "a group"
        raise wrong_file(path, "as features numbers [K, D] or [1, K, D]", got)
    return shape[0], shape[1]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else tuple(shape)


def _fitting(file: FeatureFile, name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.size != np.prod(shape) or values.dtype.kind not in "biuf":
        raise wrong_file(file.path, f"as {name} numbers {list(shape)}", f"{values.dtype}{list(values.shape)}")
    return values.reshape(shape)


def _label(values: Any) -> str:
    number = np.ravel(values[()]) if getattr(values, "size", 0) == 1 else np.empty(0)
    return f"{number[0]:g}" if number.size and number.dtype.kind in "biuf" else ""


def _patch_size(about: Mapping[str, Any], unit: str) -> float:
    """Side of a patch in the unit of positions; CLAM says it in pixels of the level that patches were cut from.

    0 where nobody says; so of another level than the finest without its scale.
    """
    if unit == "um":
        return _number(about, "tile_size_um") or _number(about, "tile_size")
    factor = _number(about, "downsample") or float(not _number(about, "patch_level"))
    return _number(about, "patch_size_level0") or _number(about, "patch_size") * factor


def _number(about: Mapping[str, Any], name: str) -> float:
    values = np.ravel(about.get(name, 0))
    return float(values[0]) if values.size and values.dtype.kind in "biuf" else 0.0
