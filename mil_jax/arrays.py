"""Bags of a person's own: arrays and lists, or what was read from files, checked and made into `Bags`.

Axes: N instances in the pool, B bags, K slots per bag.
"""

from collections.abc import Sequence

import numpy as np

from mil_jax.bags import UNKNOWN, Bags, View
from mil_jax.datasets import BagSet
from mil_jax.errors import LARGEST, InputError, as_array, checked
from mil_jax.memory import aligned_empty


def bags_from_arrays(
    bags: Sequence[np.ndarray], labels: Sequence[int] | np.ndarray, instance_labels: Sequence[np.ndarray] | None = None
) -> Bags:
    """Makes `Bags` of the reader's own data: one array `[K_i, ...]` per bag, and one label per bag.

    Args:
        bags: B arrays; the bags may differ in length, the instances not in shape or dtype. Arrays of uint8 are
            pixels, which the model sees as 0 … 1; all others are features, kept as float32.
        labels: [B] the class of each bag, 0, 1, …
        instance_labels: B arrays [K_i] of 1, 0 or -1, where they are known; a bag of class 0 has no 1.

    Raises:
        InputError: no bags, an empty bag, instances of different shapes, values that are not finite, labels
            that are not whole numbers from 0, or counts that differ.
    """
    arrays = [_bytes_or_floats(i, bag) for i, bag in enumerate(_listed("bags", bags))]
    label = _class_numbers(arrays, labels)
    _check_arrays(arrays)
    sizes = np.array([len(bag) for bag in arrays])
    truth = None if instance_labels is None else _join_instance_labels(instance_labels, sizes, label)
    pool = aligned_empty((int(sizes.sum()), *arrays[0].shape[1:]), arrays[0].dtype)
    return bags_in_order(np.concatenate(arrays, out=pool), sizes, label, truth)


def _listed(argument: str, values: object) -> list[object]:
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str):
        raise InputError(argument, type(values).__name__, "expected a list with an array for each bag")
    return list(values)


def _bytes_or_floats(number: int, values: object) -> np.ndarray:
    try:
        bag = np.asarray(values)
    except ValueError:
        raise InputError(f"bags[{number}]", "ragged", "expected an array [instances, ...]") from None
    if bag.dtype.kind not in "biuf":
        raise InputError(f"bags[{number}]", str(bag.dtype), "expected numbers")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return bag if bag.dtype == np.uint8 else bag.astype(np.float32, copy=False)


def _class_numbers(arrays: list[np.ndarray], labels: object) -> np.ndarray:
    if not arrays:
        raise InputError("bags", [], "expected at least one bag")
    label = as_array("labels", labels, whole=True)
    if label.shape != (len(arrays),):
        raise InputError("labels", label.shape, f"expected one for each of the {len(arrays)} bags")
    if label.min() < 0 or label.max() > LARGEST:
        raise InputError("labels", label.tolist()[:5], "expected whole numbers 0, 1, …")
    return label.astype(np.int32)


def _check_arrays(arrays: list[np.ndarray]) -> None:
    for i, bag in enumerate(arrays):
        if bag.ndim < 2 or not bag.size:
            raise InputError(f"bags[{i}]", bag.shape, "expected an array [instances, ...] with an instance")
        if bag.shape[1:] != arrays[0].shape[1:]:
            raise InputError(f"bags[{i}]", bag.shape, f"expected instances of shape {arrays[0].shape[1:]}, as bags[0]")
        if bag.dtype != arrays[0].dtype:
            raise InputError(f"bags[{i}]", str(bag.dtype), f"expected {arrays[0].dtype}, as bags[0]")
        if not np.isfinite(bag).all():
            raise InputError(f"bags[{i}]", "NaN or infinite", "expected finite values")


def _join_instance_labels(instance_labels: Sequence[np.ndarray], sizes: np.ndarray, label: np.ndarray) -> np.ndarray:
    parts = [np.asarray(part) for part in _listed("instance_labels", instance_labels)]
    shapes, expected = [part.shape for part in parts], [(size,) for size in sizes.tolist()]
    if shapes != expected:
        raise InputError("instance_labels", shapes[:5], f"expected the bags' sizes {expected[:5]}")
    joined = np.concatenate(parts)
    if not np.isin(joined, (-1, 0, 1)).all():
        raise InputError("instance_labels", np.unique(joined).tolist()[:5], "expected 1, 0, or -1 for unknown")
    for i, part in enumerate(parts):
        if label[i] == 0 and (part == 1).any():
            raise InputError(f"instance_labels[{i}]", part.tolist()[:5], "expected no 1 in a bag of class 0")
    return joined.astype(np.int32)


@checked
def bags_from_set(data: BagSet) -> Bags:
    """The bags of a data set whose instances stand bag by bag."""
    return bags_in_order(data.x, np.asarray(data.sizes), data.label, data.instance_label)


def bags_in_order(pool: np.ndarray, sizes: np.ndarray, label: np.ndarray, truth: np.ndarray | None) -> Bags:
    """Bags of the given sizes [B] whose instances [N, ...], with their labels [N], stand one bag after the other."""
    mask = np.arange(sizes.max()) < sizes[:, None]
    rows, instance_label = np.zeros(mask.shape, np.int32), np.full(mask.shape, UNKNOWN, np.int32)
    rows[mask] = np.arange(sizes.sum())
    if truth is not None:
        instance_label[mask] = truth
    return Bags(pool, View(rows, mask, np.asarray(label, np.int32), instance_label))
