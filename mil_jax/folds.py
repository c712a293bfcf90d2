"""Folds of bags that belong to groups, such as the slides of a patient: drawn so that no group is cut, or given.

A plan says which bags each fit learns from, is chosen on and is judged on. A fit is trained by several members, which
differ by their keys, and once for each setting that is tried.

Axes: B bags, F fits (folds of all rounds), G settings, M members of a fit, S = G * F * M members in all.
"""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from mil_jax.errors import InputError, as_array, check_number, check_whole, checked
from mil_jax.protocols import Folds, stack_places


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which bags each of F fits is for.

    Attributes:
        folds: the bags of each fit, -1 in a place without one.
        round: the round of each fit [F]; inside a round, a bag is judged once at most.
        holdout: bags that no fit sees [H].
    """

    folds: Folds
    round: Int[np.ndarray, " F"]
    holdout: Int[np.ndarray, " H"]

    @property
    def fits(self) -> int:
        """F."""
        return len(self.round)

    @property
    def rounds(self) -> int:
        """R."""
        return int(self.round.max()) + 1

    def tested(self) -> Int[np.ndarray, " T"]:
        """The bags that some fit is judged on, ascending."""
        return np.unique(self.folds.test[self.folds.test >= 0])

    def repeated(self, settings: int, members: int) -> Folds:
        """The bags of S = G * F * M members: setting by setting, fit by fit."""
        return Folds(*(np.tile(np.repeat(part, members, axis=0), (settings, 1)) for part in self.folds))


@checked
def draw_plan(
    key: Key[Array, ""],
    label: Int[np.ndarray, " B"],
    groups: Sequence[str],
    *,
    folds: int = 5,
    repeats: int = 1,
    val_share: float = 0.2,
    holdout: float = 0.0,
) -> Plan:
    """Draws F = folds * repeats fits, stratified by class, that cut no group (scikit-learn's StratifiedGroupKFold).

    Args:
        key: decides the draw.
        label: [B] the class of each bag.
        groups: [B] what belongs together; a name for each bag where nothing does.
        folds: parts that the bags are cut into, each the test set of one fit of a round.
        repeats: rounds.
        val_share: about the share of the bags outside the test fold that a fit is chosen on.
        holdout: about the share of all bags that no fit sees.

    Raises:
        InputError: a number out of range, or a class with fewer groups than there are folds.
    """
    label = as_array("label", label, whole=True)
    check_whole("folds", folds, 2)
    check_whole("repeats", repeats, 1)
    check_number("val_share", val_share, 0, 0.5, ends="(]")
    check_number("holdout", holdout, 0, 0.5, ends="[]")
    if len(groups) != len(label):
        raise InputError("groups", len(groups), f"expected the group of each of {len(label)} bags")
    names = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    kept, held = np.arange(len(label)), np.empty(0, int)
    if holdout:
        kept, held = _cut(draw, label, names, kept, holdout)
    _check_groups_of_classes(label[kept], names[kept], folds)
    fits = []
    for _ in range(repeats):
        for rest, test in _parts(draw, label, names, kept, folds):
            fits.append((*_cut(draw, label, names, rest, val_share), test))
    for train, val, test in fits:
        if len(np.unique(label[train])) < len(np.unique(label)) or not len(val) or not len(test):
            expected = "expected bags of every class to learn from, and others, in each fold: fewer folds, more bags"
            raise InputError("folds", folds, expected)
    stacked = Folds(*(stack_places(part) for part in zip(*fits, strict=True)))
    return Plan(stacked, np.repeat(np.arange(repeats), folds), held)


@checked
def given_plan(folds: Folds) -> Plan:
    """The plan of folds that somebody else has drawn: one round where no bag is tested twice, else one for each."""
    tests = folds.test[folds.test >= 0]
    disjoint = len(np.unique(tests)) == len(tests)
    return Plan(folds, np.zeros(len(folds.test), int) if disjoint else np.arange(len(folds.test)), np.empty(0, int))


def _check_groups_of_classes(label: np.ndarray, groups: np.ndarray, folds: int) -> None:
    pairs = np.unique(np.stack([label, groups]), axis=1)
    count = Counter(pairs[0].tolist())
    if len(count) < 2:
        raise InputError("label", sorted(count), "expected bags of two classes or more")
    rare = min(count, key=lambda value: count[value])
    if count[rare] < folds:
        expected = f"expected at most {count[rare]}, the groups with a bag of class {rare}"
        raise InputError("folds", folds, expected)


def _parts(
    draw: np.random.Generator, label: np.ndarray, groups: np.ndarray, bags: np.ndarray, parts: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The bags without each part, and the part."""
    from sklearn.model_selection import StratifiedGroupKFold  # it takes a second to load

    cut = StratifiedGroupKFold(parts, shuffle=True, random_state=int(draw.integers(2**31)))
    with warnings.catch_warnings():  # a rare class has no bag in some of the parts
        warnings.simplefilter("ignore", UserWarning)
        split = list(cut.split(bags, label[bags], groups[bags]))
    return [(bags[rest], bags[part]) for rest, part in split]


def _cut(
    draw: np.random.Generator, label: np.ndarray, groups: np.ndarray, bags: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The bags without about such a share of them, and the share."""
    most = min(len(np.unique(groups[bags])), int(np.bincount(label[bags]).max()))  # what can be dealt out to parts
    if most < 2:
        raise InputError(
            "groups", len(np.unique(groups)), "expected more groups, to choose on one and to learn from others"
        )
    parts = min(max(round(1 / share), 2), most)
    return _parts(draw, label, groups, bags, parts)[0]


@checked
def check_taught(folds: Folds, label: Int[np.ndarray, " B"], class_names: Sequence[str]) -> None:
    """Refuses folds of which one has no bag of a class to learn from.

    Raises:
        InputError: names the fit and the class.
    """
    for fit, train in enumerate(folds.train):
        missing = set(range(len(class_names))) - set(np.asarray(label)[train[train >= 0]].tolist())
        if missing:
            raise InputError(
                "splits", fit, f"expected training bags of every class, got none of {class_names[min(missing)]!r}"
            )


@checked
def check_uncut(folds: Folds, groups: Sequence[str]) -> None:
    """Refuses folds that cut a group.

    Raises:
        InputError: names the group, the fit and the two parts.
    """
    for fit, parts in enumerate(zip(*folds, strict=True)):
        place: dict[str, str] = {}
        for name, part in zip(folds._fields, parts, strict=True):
            for bag in map(int, part[part >= 0]):
                first = place.setdefault(groups[bag], name)
                if first != name:
                    expected = (
                        f"expected all its bags in one part of split {fit}, got some in {first} and some in {name}"
                    )
                    raise InputError("group", groups[bag], expected)
