"""The records that loaders return: pools of instances to draw bags from, or bags as the world has them.

Host side and NumPy only. An image stays uint8 until the compiled step gathers it into a bag. ``Instances`` and
``BagSet`` check themselves, whoever makes them: what is at odds with their description is an InputError.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Shaped

from mil_jax.errors import LARGEST, InputError
from mil_jax.memory import is_finite

UNKNOWN = -1  # the label of an instance that nobody has labelled, and of an empty slot of a bag


@dataclass(frozen=True, eq=False)
class Instances:
    """A pool of labelled instances."""

    x: Shaped[np.ndarray, "N ..."]
    """uint8 images ``[N, H, W]`` or ``[N, H, W, 3]``, or float features ``[N, F]``."""
    label: Int32[np.ndarray, " N"]
    """The class of each instance, from 0."""

    def __post_init__(self) -> None:
        _set(self, label=_whole("label", self.label, len(_values(self.x))))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training pool and a test pool that share no instance."""

    name: str
    """The name that ``load`` was asked for."""
    train: Instances
    test: Instances
    class_names: tuple[str, ...]
    """A name for each class, in the order of the labels."""
    content_hash: str
    """SHA-256 of the arrays, whichever way they were read."""
    source: str
    """A sentence for people: where the arrays were read from."""


@dataclass(frozen=True, eq=False, kw_only=True)
class BagSet:
    """B bags of N instances in all, as somebody collected them; those of a bag stand together, bag after bag."""

    name: str
    """What the set is called."""
    x: Shaped[np.ndarray, "N ..."]
    """``[N, ...]`` uint8 images, or float features ``[N, D]``; float16 and float32 stay, others become float32."""
    sizes: Int32[np.ndarray, " B"]
    """How many instances each bag has, at least 1; they sum to N."""
    label: Int32[np.ndarray, " B"]
    """The class of each bag, from 0."""
    bag_names: tuple[str, ...]
    """What each bag is called where it was read from."""
    source: str
    """A sentence for people: where the arrays were read from."""
    class_names: tuple[str, ...] = ()
    """What each label says; empty where nobody knows."""
    instance_label: Int32[np.ndarray, " N"] = field(default_factory=lambda: np.empty(0, np.int32))
    """1 for an instance that makes its bag positive, 0 for another, -1 if unknown, as all are where it is not given."""
    instance_class: Int32[np.ndarray, " N"] | None = None
    """A class of each instance, an index of ``instance_class_names``; None where there is none."""
    instance_class_names: tuple[str, ...] = ()
    """A name for each such class."""
    position: Float32[np.ndarray, "N 2"] | None = None
    """Where an instance was in the whole that its bag was cut from (x, y), for maps; None if unknown."""
    content_hash: str = field(init=False)
    """SHA-256 of the arrays, whichever way they were read. Names are left out: the same bags have the same hash,
    whatever a file calls them."""

    def __post_init__(self) -> None:
        _check_texts(self)
        x = _values(self.x)
        sizes = _whole("sizes", self.sizes, len(self.bag_names), low=1)
        if not len(x) == sizes.sum() > 0:
            raise InputError("sizes", sizes[:5].tolist(), f"expected {len(x)} instances in all, and at least one bag")
        label = _whole("label", self.label, len(sizes), high=len(self.class_names) - 1 if self.class_names else LARGEST)
        truth, kind, position = self.instance_label, self.instance_class, self.position
        truth = np.full(len(x), UNKNOWN) if np.size(truth) == 0 else truth
        truth = _whole("instance_label", truth, len(x), low=-1, high=1)
        if (truth[np.repeat(label, sizes) == 0] == 1).any():
            raise InputError("instance_label", 1, "expected 0 or -1 in a bag of label 0")
        if kind is not None:
            kind = _whole("instance_class", kind, len(x), high=len(self.instance_class_names) - 1)
        if position is not None:
            position = _values(position, "position").astype(np.float32, copy=False)
            if position.shape != (len(x), 2):
                raise InputError("position", position.shape, f"expected the shape ({len(x)}, 2)")
        arrays = {"x": x, "sizes": sizes, "label": label, "instance_label": truth}
        optional = {"instance_class": kind, "position": position}
        given = (array for array in optional.values() if array is not None)
        _set(self, **arrays, **optional, content_hash=_hash(*arrays.values(), *given))


def content_hash(train: Instances, test: Instances) -> str:
    """Returns the SHA-256, in hexadecimal, of the two pools' types, shapes and values."""
    return _hash(train.x, train.label, test.x, test.label)


def _set(record: Any, **fields: Any) -> None:
    """Sets what a frozen record makes of its fields."""
    for name, value in fields.items():
        object.__setattr__(record, name, value)


def _check_texts(bags: BagSet) -> None:
    names = ("bag_names", "class_names", "instance_class_names")
    for argument, kind in (("name", str), ("source", str), *((argument, tuple) for argument in names)):
        value = getattr(bags, argument)
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in value) or value == "":
            raise InputError(argument, value, f"expected {'a text' if kind is str else 'a tuple of texts'}")


def _values(x: Any, argument: str = "x") -> np.ndarray:
    """The array, its floats as float16 or float32."""
    if not isinstance(x, np.ndarray) or x.ndim < 2 or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        got = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        raise InputError(argument, got, "expected an array [N, ...] of bytes or floats")
    with np.errstate(over="ignore"):
        x = x if x.dtype in (np.uint8, np.float16) else x.astype(np.float32, copy=False)
    if x.dtype != np.uint8 and not is_finite(x):
        raise InputError(argument, "NaN or infinite", "expected finite numbers of single precision")
    return x


def _whole(argument: str, values: Any, count: int, low: int = 0, high: int = LARGEST) -> np.ndarray:
    """Returns ``count`` whole numbers of a range, as int32."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    whole = array.dtype.kind in "biu" and array.shape == (count,)
    if not whole or (count and not low <= array.min() <= array.max() <= high):
        raise InputError(argument, array.ravel()[:5].tolist(), f"expected {count} whole numbers from {low} to {high}")
    return array.astype(np.int32)


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        # Little-endian whatever the machine, so that the same data has the same hash everywhere.
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{stored.dtype.str}{stored.shape}".encode())
        digest.update(stored.data)
    return digest.hexdigest()
