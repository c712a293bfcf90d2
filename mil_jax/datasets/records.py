"""The records that every loader returns: a pool of instances, and a data set of two such pools.

Host side and NumPy only. An image stays uint8 until the compiled step gathers it into a bag.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Shaped


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


def content_hash(train: Instances, test: Instances) -> str:
    """Returns the SHA-256, in hexadecimal, of the two pools' types, shapes and values."""
    digest = hashlib.sha256()
    for array in (train.x, train.label, test.x, test.label):
        # Little-endian whatever the machine, so that the same data has the same hash everywhere.
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{stored.dtype.str}{stored.shape}".encode())
        digest.update(stored.data)
    return digest.hexdigest()
