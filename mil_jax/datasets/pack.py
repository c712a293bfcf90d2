"""A cohort as one file: features bag after bag, with a manifest that says where each bag is and what it hashes to.

```
features.bin     the instances of all bags; each bag starts at a multiple of 64 bytes
positions.bin    float32 [N, 2], bag after bag, where the cohort has positions
truth.bin        int8 [N], where the cohort knows the truth of instances
manifest.json    format, name, class names, shape and type of an instance, unit, and of each bag name, group, label,
                 split, size, offset and SHA-256
```

A packed cohort is read by plain reads into the reader's memory: nothing is parsed, and nothing stays mapped.

Axes: B bags, N instances in all, K instances of a bag.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mil_jax.datasets.cohort import BagSource, Cohort
from mil_jax.datasets.files import as_path, wrong_file
from mil_jax.errors import InputError, RunError, checked
from mil_jax.memory import ALIGNMENT, is_finite

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedBag(BagSource):
    """One bag of a packed cohort.

    Attributes:
        folder: of the cohort.
        shape: of the bag [K, ...].
        dtype: of its instances.
        offset: bytes of `features.bin` before it.
        first: instances of the cohort before it.
        has_positions: whether there are positions.
        sha256: of its instances, in hexadecimal.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    first: int
    has_positions: bool
    sha256: str

    @property
    def size(self) -> int:
        """K."""
        return self.shape[0]

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Instances [K, ...] and positions [K, 2].

        Raises:
            InputError: a file that cannot be read, or is shorter than the manifest says.
        """
        x = _read_array(self.folder / "features.bin", self.shape, self.dtype, self.offset)
        if not self.has_positions:
            return x, None
        return x, _read_array(self.folder / "positions.bin", (self.size, 2), np.dtype(np.float32), 8 * self.first)


def _read_array(path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
    values = np.empty(shape, dtype)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            room, done = values.reshape(-1).view(np.uint8).data, 0
            while done < len(room) and (count := file.readinto(room[done:])):
                done += count
    except OSError as error:
        raise wrong_file(path, "a packed cohort", f"what cannot be read ({error.strerror})") from None
    if done < values.nbytes:
        raise wrong_file(path, f"{offset + values.nbytes} bytes", f"{offset + done}")
    return values


# ---- writing ----


@checked
def pack(cohort: Cohort, folder: str | Path) -> Path:
    """Writes a cohort as one file with a manifest; the folder is whole or absent.

    Args:
        cohort: the bags.
        folder: a new one.

    Raises:
        InputError: the folder exists, or a bag cannot be read or holds what is not finite.
        RunError: the disk is full, or fails.
    """
    target = as_path("folder", folder).absolute()
    if target.exists():
        raise InputError("folder", str(target), "expected a new folder")
    beside = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _write(cohort, beside)
        beside.replace(target)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror or error}); nothing is left of it") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _write(cohort: Cohort, folder: Path) -> None:
    bags = []
    with (folder / "features.bin").open("wb") as features, (folder / "positions.bin").open("wb") as positions:
        for source in cohort.bags:
            x, position = source.read()
            bags.append(_write_bag(cohort, source, x, features))
            if cohort.unit:
                positions.write(np.ascontiguousarray(position, np.float32).data)
        for file in (features, positions):
            file.flush()
            os.fsync(file.fileno())
    if not cohort.unit:
        (folder / "positions.bin").unlink()
    if cohort.instance_label is not None:
        (folder / "truth.bin").write_bytes(cohort.instance_label.astype(np.int8).tobytes())
    about = {name: getattr(cohort, name) for name in ("name", "class_names", "shape", "unit", "patch_size", "source")}
    content = {"format": FORMAT, **about, "dtype": cohort.dtype.newbyteorder("<").str, "notes": cohort.notes}
    (folder / MANIFEST).write_text(json.dumps({**content, "bags": bags}, indent=1) + "\n", encoding="utf-8")


def _write_bag(cohort: Cohort, source: BagSource, x: np.ndarray, file: BinaryIO) -> dict[str, Any]:
    file.write(bytes(-file.tell() % ALIGNMENT))
    offset, stored = file.tell(), np.ascontiguousarray(x, cohort.dtype.newbyteorder("<"))
    if stored.dtype.kind == "f" and not is_finite(stored):
        raise InputError("cohort", source.name, "expected finite features, got NaN or infinite ones")
    data = stored.reshape(-1).view(np.uint8).data
    file.write(data)
    about = {name: getattr(source, name) for name in ("name", "group", "label", "split")}
    return {**about, "size": len(stored), "offset": offset, "sha256": hashlib.sha256(data).hexdigest()}


# ---- reading ----


@checked
def load_packed(folder: str | Path) -> Cohort:
    """A packed cohort; reads the manifest alone.

    Raises:
        InputError: no such folder, another format, or files of another size than the manifest says.
    """
    path = as_path("folder", folder)
    manifest = path / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        bags, cohort = _from_manifest(path, content)
    except OSError as error:
        raise wrong_file(manifest, "the manifest of a packed cohort", error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise wrong_file(manifest, "the manifest of a packed cohort", f"{type(error).__name__}: {error}") from None
    last, count = bags[-1], sum(bag.size for bag in bags)
    expected = {"features.bin": last.offset + int(np.prod(last.shape)) * cohort.dtype.itemsize}
    expected |= {"positions.bin": 8 * count} if cohort.unit else {}
    expected |= {"truth.bin": count} if (path / "truth.bin").exists() else {}
    for name, size in expected.items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise wrong_file(path / name, f"{size} bytes, as the manifest says", str(found))
    if "truth.bin" in expected:
        truth = np.frombuffer((path / "truth.bin").read_bytes(), np.int8).astype(np.int32)
        cohort = dataclasses.replace(cohort, instance_label=truth)
    return cohort


def _from_manifest(path: Path, content: dict[str, Any]) -> tuple[list[PackedBag], Cohort]:
    if content["format"] != FORMAT:
        raise wrong_file(path / MANIFEST, f"format {FORMAT}", str(content["format"]))
    dtype, shape, bags, first = np.dtype(content["dtype"]), tuple(content["shape"]), [], 0
    for bag in content["bags"]:
        about = {name: bag[name] for name in ("name", "group", "label", "split", "offset", "sha256")}
        bags.append(PackedBag(**about, folder=path, shape=(bag["size"], *shape), dtype=dtype, first=first,
                              has_positions=bool(content["unit"])))  # fmt: skip
        first += bag["size"]
    about = {name: content[name] for name in ("name", "unit", "patch_size", "source")}
    lists: dict[str, Any] = {name: tuple(content[name]) for name in ("class_names", "notes")}
    return bags, Cohort(bags=tuple(bags), shape=shape, dtype=dtype, **about, **lists)


@checked
def verify(cohort: Cohort) -> None:
    """Reads a packed cohort once, and compares the hash of every bag with the manifest.

    Raises:
        InputError: names the first bag that is not what was written.
    """
    for bag in cohort.bags:
        if isinstance(bag, PackedBag) and hashlib.sha256(bag.read()[0].data).hexdigest() != bag.sha256:
            raise wrong_file(bag.folder / "features.bin", f"bag {bag.name!r} as it was written", "other bytes")
