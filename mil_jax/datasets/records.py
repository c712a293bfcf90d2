"""The records that loaders return: pools of instances to draw bags from, or bags as the world has them.

Host side and NumPy only. An image stays uint8 until the compiled step gathers it into a bag.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Shaped

UNKNOWN = -1  # the label of an instance that nobody has labelled


@dataclass(frozen=True, eq=False)
class Instances:
    """A pool of labelled instances.

    Attributes:
        x: uint8 images ``[N, H, W]`` or ``[N, H, W, 3]``, or float features ``[N, F]``.
        label: the class of each instance.
    """

    x: Shaped[np.ndarray, "N ..."]
    label: Int32[np.ndarray, " N"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training pool and a test pool that share no instance.

    Attributes:
        name: the name that ``load`` was asked for.
        train: the training pool.
        test: the test pool.
        class_names: a name for each class, in the order of the labels.
        content_hash: SHA-256 of the arrays, whichever way they were read.
        source: a sentence for people: where the arrays were read from.
    """

    name: str
    train: Instances
    test: Instances
    class_names: tuple[str, ...]
    content_hash: str
    source: str


@dataclass(frozen=True, eq=False)
class BagSet:
    """B bags of N instances in all, as somebody collected them; those of a bag stand together, bag after bag.

    Attributes:
        name: what the set is called.
        x: ``[N, ...]`` uint8 images, or float32 features ``[N, D]``.
        sizes: how many instances each bag has, at least 1; they sum to N.
        label: the class of each bag, from 0.
        bag_names: what each bag is called where it was read from.
        instance_label: 1 for an instance that makes its bag positive, 0 for another, -1 if unknown.
        instance_class: a class of each instance, an index of ``instance_class_names``; None where there is none.
        instance_class_names: a name for each such class.
        position: where an instance was in the whole that its bag was cut from (x, y), for maps; None if unknown.
        source: a sentence for people: where the arrays were read from.
        content_hash: SHA-256 of the arrays, whichever way they were read.
    """

    name: str
    x: Shaped[np.ndarray, "N ..."]
    sizes: Int32[np.ndarray, " B"]
    label: Int32[np.ndarray, " B"]
    bag_names: tuple[str, ...]
    instance_label: Int32[np.ndarray, " N"]
    instance_class: Int32[np.ndarray, " N"] | None
    instance_class_names: tuple[str, ...]
    position: Float32[np.ndarray, "N 2"] | None
    source: str
    content_hash: str


def build_bag_set(
    name: str,
    x: Shaped[np.ndarray, "N ..."],
    sizes: Sequence[int],
    label: Sequence[int],
    bag_names: Sequence[str],
    source: str,
    *,
    instance_label: Int32[np.ndarray, " N"] | None = None,
    instance_class: Int32[np.ndarray, " N"] | None = None,
    instance_class_names: tuple[str, ...] = (),
    position: Float32[np.ndarray, "N 2"] | None = None,
) -> BagSet:
    """Returns the record of bags that have been read and checked, with its hash; see ``BagSet`` for the fields."""
    if instance_label is None:
        instance_label = np.full(len(x), UNKNOWN, np.int32)
    sizes_array, label_array = np.asarray(sizes, np.int32), np.asarray(label, np.int32)
    return BagSet(
        name=name,
        x=x,
        sizes=sizes_array,
        label=label_array,
        bag_names=tuple(bag_names),
        instance_label=instance_label,
        instance_class=instance_class,
        instance_class_names=instance_class_names,
        position=position,
        source=source,
        content_hash=bag_set_hash(x, sizes_array, label_array, instance_label, instance_class, position),
    )


def content_hash(train: Instances, test: Instances) -> str:
    """Returns the SHA-256, in hexadecimal, of the two pools' types, shapes and values."""
    return _hash(train.x, train.label, test.x, test.label)


def bag_set_hash(
    x: Shaped[np.ndarray, "N ..."],
    sizes: Int32[np.ndarray, " B"],
    label: Int32[np.ndarray, " B"],
    instance_label: Int32[np.ndarray, " N"],
    instance_class: Int32[np.ndarray, " N"] | None = None,
    position: Float32[np.ndarray, "N 2"] | None = None,
) -> str:
    """Returns the SHA-256, in hexadecimal, of the types, shapes and values of a ``BagSet``'s arrays.

    Names are left out: the same bags have the same hash, whatever a file calls them.
    """
    return _hash(x, sizes, label, instance_label, *(a for a in (instance_class, position) if a is not None))


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        # Little-endian whatever the machine, so that the same data has the same hash everywhere.
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{stored.dtype.str}{stored.shape}".encode())
        digest.update(stored.data)
    return digest.hexdigest()
