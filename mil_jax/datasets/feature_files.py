"""One file of a bag's features to arrays: what CLAM, TRIDENT, STAMP, torchmil and many scripts write.

| writer | features | positions |
|---|---|---|
| CLAM, TRIDENT | HDF5 `features [K, D]` or `[1, K, D]` | `coords [K, 2]`, pixels of the finest level |
| STAMP | HDF5 `feats [K, D]` | `coords [K, 2]`, micrometres |
| torchmil | `features/BAG.npy` | `coords/BAG.npy` |
| scripts | `BAG.npy`, `BAG.npz`, `BAG.pt` (tensors alone) | in `.npz` and `.pt`: `coords` |

Features stay in the file's type.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.datasets.files import is_file, wrong_file
from mil_jax.datasets.tensors import read_tensors
from mil_jax.errors import InputError
from mil_jax.memory import first_infinite

FEATURES = ("features", "feats", "x")
COORDS = ("coords", "position", "positions")
SUFFIXES = (".h5", ".hdf5", ".npy", ".npz", ".pt")  # in this order where a bag has several files
PATCH_SIZES = ("patch_size_level0", "tile_size_um", "tile_size")  # attributes, in the unit of the positions


@dataclass(frozen=True)
class FeatureFile:
    """What the header of a bag's file says.

    Attributes:
        path: the file.
        count: instances, K; 0 for a bag without any.
        width: features, D.
        dtype: of the features.
        unit: of positions: "px", "um", or "" where there are none.
        patch_size: side of a patch in that unit; 0 where the file does not say.
        positions: a file beside it that holds the positions.
    """

    path: Path
    count: int
    width: int
    dtype: np.dtype
    unit: str = ""
    patch_size: float = 0.0
    positions: Path | None = None


def inspect_file(path: Path, positions: Path | None = None) -> FeatureFile:
    """The header of a file.

    Raises:
        InputError: the file is damaged, holds no features [K, D], or positions of another length.
    """
    with _opened(path) as (content, attributes):
        features = _pick(path, content, FEATURES)
        shape, coords = _shape(path, features), next((content[key] for key in COORDS if key in content), None)
        _check_coords(path, coords, shape[0])
        about = attributes | dict(getattr(coords, "attrs", {}))
        dtype = np.dtype(features.dtype)
    if positions is not None:
        with _opened(positions) as (content, _):
            coords = _pick(positions, content, FEATURES)
            _check_coords(positions, coords, shape[0])
    unit = "" if coords is None else "um" if about.get("unit") == "um" else "px"
    return FeatureFile(path, *shape, dtype, unit, _patch_size(about), positions)


def _check_coords(path: Path, coords: Any, count: int) -> None:
    shape = getattr(coords, "shape", ())
    if coords is not None and count and (_squeezed(shape) != (count, 2) or coords.dtype.kind not in "fiu"):
        raise wrong_file(path, f"as coordinates numbers [{count}, 2]", f"{_described(coords)} for {count} instances")


def _patch_size(about: Mapping[str, Any]) -> float:
    """The side of a patch, from what a file says; CLAM tells it in pixels of the level that was read."""
    for name in PATCH_SIZES:
        if name in about:
            return _number(about[name])
    finest = _number(about.get("patch_level", 0)) == 0
    return _number(about.get("patch_size")) * _number(about.get("downsample", 1 if finest else None))


def _number(value: Any) -> float:
    """A number, or the first of two, as CLAM has one for each axis; 0 for something else."""
    values = np.atleast_1d(np.asarray(value))
    return float(values[0]) if values.dtype.kind in "fiu" and values.size in (1, 2) else 0.0


def read_file(file: FeatureFile) -> tuple[np.ndarray, np.ndarray | None]:
    """Features [K, D] and positions [K, 2] of a file.

    Raises:
        InputError: the file has changed since it was inspected, is damaged, or holds what is not finite.
    """
    with _opened(file.path) as (content, _):
        x = _pick(file.path, content, FEATURES)
        if _shape(file.path, x) != (file.count, file.width):
            raise wrong_file(file.path, f"features {[file.count, file.width]}, as before", str(list(x.shape)))
        x = x[()].reshape(file.count, file.width)
        position = next((content[key] for key in COORDS if key in content), None)
        position = _checked_position(file.path, position, file.count)
    if file.positions is not None:
        with _opened(file.positions) as (content, _):
            position = _checked_position(file.positions, _pick(file.positions, content, FEATURES), file.count)
    _check_finite(file.path, x)
    return x, position


def _checked_position(path: Path, coords: Any, count: int) -> np.ndarray | None:
    _check_coords(path, coords, count)
    if coords is None:
        return None
    position = coords[()].reshape(count, 2).astype(np.float32)
    _check_finite(path, position, "coordinates")
    return position


def _check_finite(path: Path, values: np.ndarray, what: str = "numbers") -> None:
    row = first_infinite(values)
    if row is not None:
        got = f"NaN or infinite in row {row} of bag {path.stem!r}"
        raise wrong_file(path, f"finite {what} of single precision", got)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """The arrays of a file by name, and the file's attributes; whatever goes wrong with it is an InputError."""
    if not is_file(path):
        raise wrong_file(path, "a file of features", "a folder" if path.exists() else "no such file")
    try:
        if path.suffix in (".h5", ".hdf5"):
            import h5py  # a tenth of a second, which other data does without

            with h5py.File(path, "r") as content:
                yield content, dict(content.attrs)
            return
        yield _arrays(path), {}
    except InputError:
        raise
    except Exception as error:  # of many kinds, where a file is damaged
        raise wrong_file(path, f"a sound {path.suffix} file", f"what cannot be read ({error})") from None


def _arrays(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".pt":
        content = read_tensors(path)
        return content if isinstance(content, dict) else {FEATURES[0]: content}
    if path.suffix == ".npy":
        return {FEATURES[0]: np.load(path, mmap_mode="r", allow_pickle=False)}
    with path.open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def _pick(path: Path, content: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    key = next((key for key in keys if key in content), None)
    if key is None:
        raise wrong_file(path, f"an array {' or '.join(keys)}", ", ".join(content) or "nothing")
    return content[key]


def _shape(path: Path, features: Any) -> tuple[int, int]:
    """[K, D] of the features; [0, 0] of a bag without instances."""
    shape = _squeezed(getattr(features, "shape", ()) or ())
    if shape and shape[0] == 0:
        return 0, 0
    if len(shape) != 2 or features.dtype.kind not in "fiu" or 0 in shape:
        raise wrong_file(path, "as features numbers [K, D] or [1, K, D]", _described(features))
    return shape[0], shape[1]


def _described(data: Any) -> str:
    return f"{data.dtype}{list(data.shape or ())}" if hasattr(data, "shape") else "a group"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else tuple(shape)
