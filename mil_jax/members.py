"""Trained members of a model, and what fits together: bags, members and models.

Axes: S members.
"""

from typing import Any

import jax
import numpy as np

from mil_jax.bags import Bags, InstanceKind, Scaler
from mil_jax.errors import InputError
from mil_jax.model import MIL, joins, param_shapes
from mil_jax.record import record, static


@record
class Members:
    """S trained members of a model: all that predicting needs."""

    params: Any
    """Parameters, with a leading axis S."""
    scaler: Scaler | None
    """How the features that they see are standardised, with a leading axis S; None for as they are."""
    kind: InstanceKind = static()
    """The kind of instances that they were trained on."""

    @property
    def count(self) -> int:
        """S."""
        return len(jax.tree.leaves(self.params)[0])


def check_full(model: MIL, bags: Bags) -> None:
    """Refuses, by an InputError, bags with empty slots that a concatenating head cannot take."""
    if joins(model) and not np.asarray(bags.mask).all():
        raise InputError("mask", "bags with empty slots", "expected full bags of one size, or the head 'sum'")


def check_members(model: MIL, members: Members, bags: Bags) -> None:
    """Refuses, by an InputError, members of another model, trained on other instances, or that cannot take the bags."""
    if members.kind != bags.kind:
        raise InputError("bags", str(bags.kind), f"expected {members.kind}, which the members were trained on")
    if bags.by_member and bags.rows.shape[0] != members.count:
        raise InputError("bags", bags.rows.shape, f"expected bags of {members.count} members, or shared ones")
    check_full(model, bags)
    expected = _shapes(param_shapes(model, bags.slots, bags.kind.shape))
    given = _shapes(jax.tree.map(lambda leaf: leaf[0], members.params))
    if expected == given:
        return
    names = sorted({name for name, _ in expected.items() ^ given.items()})
    if joins(model) and names == ["head/kernel"]:
        size = "the bag size that the members were trained on (or the head 'sum')"
        raise InputError("bag_size", bags.slots, f"expected {size}")
    raise InputError("members", names, "expected parameters of this model: these arrays differ")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
