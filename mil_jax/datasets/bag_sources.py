"""Bags, and how to read each of them when it is wanted: a cohort may be larger than memory.

Axes: B bags, N instances in all, K instances of a bag, D features.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mil_jax.datasets.feature_files import FeatureFile, read_file
from mil_jax.datasets.records import UNKNOWN, BagSet
from mil_jax.errors import InputError
from mil_jax.memory import aligned_empty

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
        """Instances [K, ...] and positions [K, 2]; the places in several files are not those of one whole.

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

    @cached_property
    def label(self) -> np.ndarray:
        """[B]."""
        return np.array([bag.label for bag in self.bags], np.int32)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[B] instances of each."""
        return np.array([bag.size for bag in self.bags], np.int32)

    groups = property(lambda self: tuple(bag.group for bag in self.bags), doc="[B].")
    bag_names = property(lambda self: tuple(bag.name for bag in self.bags), doc="[B].")
    split = property(lambda self: tuple(bag.split for bag in self.bags), doc="[B] parts of a given split.")

    @property
    def content_hash(self) -> str:
        """SHA-256 of names, groups, labels, sizes and types; of what the files hold, their lengths in bytes."""
        digest = hashlib.sha256(f"{self.class_names}{self.shape}{self.dtype}".encode())
        for bag in self.bags:
            lengths = [file.length for file in bag.files]
            digest.update(f"{bag.name}|{bag.group}|{bag.label}|{bag.size}|{lengths}\n".encode())
            if bag.arrays is not None:
                digest.update(np.ascontiguousarray(bag.arrays[0]).data)
        return digest.hexdigest()

    def read(self, index: Sequence[int] | np.ndarray | None = None, out: np.ndarray | None = None) -> BagSet:
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
        count = int(sizes.sum())
        x = self._room(count) if out is None else out[:count]
        position = self.fill(chosen, x)
        label = np.array([max(bag.label, 0) for bag in bags], np.int32)
        return BagSet(
            name=self.name, x=x, sizes=sizes, label=label,
            bag_names=tuple(bag.name for bag in bags), source=self.source or self.name,
            class_names=self.class_names, position=position, instance_label=self._truth(chosen),
        )  # fmt: skip

    def fill(self, index: Sequence[int] | np.ndarray, x: np.ndarray) -> np.ndarray | None:
        """Reads bags one after the other into the first rows of `x`, in this order; what comes back are positions.

        Raises:
            InputError: a file that cannot be read, or is not what it was.
        """
        ends = np.cumsum([self.bags[i].size for i in index])
        position = np.empty((ends[-1], 2), np.float32) if self.unit else None
        for i, end in zip(index, ends, strict=True):
            here = slice(end - self.bags[i].size, end)
            x[here], places = self.bags[i].read()  # no name keeps the bag while the next one is read
            if position is not None:
                position[here] = places
        return position

    def _room(self, count: int) -> np.ndarray:
        try:
            return aligned_empty((count, *self.shape), self.dtype)
        except (MemoryError, ValueError):
            got = f"{count} x {' x '.join(map(str, self.shape))} {self.dtype}"
            raise InputError("features", got, "expected instances that fit into memory; train in windows") from None

    def _truth(self, chosen: Sequence[int]) -> np.ndarray:
        if self.instance_label is None:
            return np.full(sum(self.bags[i].size for i in chosen), UNKNOWN, np.int32)
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
