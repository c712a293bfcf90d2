"""How results are judged honestly: folds, what is chosen on which part of them, and means with their errors.

A repeat of a cross-validation cuts the bags into F folds. Each fold is the test set of one member once, which is
trained on a part of the others and chosen (its epoch, its threshold) on the rest of them. Folds times repeats are the
members of one ensemble, each with its own bags.

Axes: B bags, R repeats, S members (R * folds, repeat by repeat), T, V and W places for training, validation and test
bags.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from mil_jax import metrics
from mil_jax.bags import ABSENT, UNKNOWN, Bags, Values
from mil_jax.errors import InputError, as_array, check_index, check_number, check_whole, checked
from mil_jax.intervals import bootstrap_interval
from mil_jax.model import Prediction
from mil_jax.sampling import Splits


class Folds(NamedTuple):
    """Which bags each member trains on, is chosen on and is judged on; -1 in a place without a bag."""

    train: np.ndarray
    """[S, T], as many for every member."""
    val: np.ndarray
    """[S, V]."""
    test: np.ndarray
    """[S, W]; in a repeat, every bag is in one test set."""


@checked
def cross_validation(
    key: Key[Array, ""], label: Int[np.ndarray | Array, " B"], *, folds: int, repeats: int, val_share: float = 0.2
) -> Folds:
    """Draws stratified folds: every part of every fold has its share of each class, up to one bag.

    Args:
        key: decides the draw.
        label: [B] the class of each bag.
        folds: F, at least 2.
        repeats: draws of folds, at least 1.
        val_share: about the share of the bags outside the test fold that a member is chosen on; the training sets are
            of one size, so this one gives way by a bag.

    Raises:
        InputError: a number out of range, or a class with too few bags for every part to have one.
    """
    label = as_array("label", label, whole=True)
    _check_folds(label, folds, repeats, val_share)
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    per_repeat = [_fold_of_bags(draw, label, folds) for _ in range(repeats)]
    outside = len(label) - -(-len(label) // folds)
    train_count = outside - max(round(val_share * outside), 1)
    if train_count < len(np.unique(label)):
        raise InputError("val_share", val_share, f"expected to leave a bag of each class of {outside} to learn from")
    members = [
        (*_cut(draw, label, np.flatnonzero(fold_of != fold), train_count), np.flatnonzero(fold_of == fold))
        for fold_of in per_repeat
        for fold in range(folds)
    ]
    return Folds(*(stack_places(part) for part in zip(*members, strict=True)))


def _check_folds(label: np.ndarray, folds: int, repeats: int, val_share: float) -> None:
    check_whole("repeats", repeats, 1)
    check_number("val_share", val_share, 0, 1, ends="()")
    if not label.size or label.min() < 0 or label.max() > len(label):
        raise InputError("label", label.tolist()[:5], "expected a class 0, 1, … for each bag")
    fewest = int(np.bincount(label)[np.unique(label)].min())
    if len(np.unique(label)) < 2 or fewest < 3:
        raise InputError("label", np.bincount(label).tolist(), "expected at least two classes of three bags")
    check_whole("folds", folds, 2, fewest)


def _fold_of_bags(draw: np.random.Generator, label: np.ndarray, folds: int) -> np.ndarray:
    """The fold of each bag [B]: the bags of each class are dealt out one by one, where the class before ended."""
    order = np.concatenate([draw.permutation(np.flatnonzero(label == value)) for value in np.unique(label)])
    fold_of = np.empty(len(label), int)
    fold_of[order] = np.arange(len(label)) % folds
    return draw.permutation(folds)[fold_of]


def _cut(draw: np.random.Generator, label: np.ndarray, bags: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of the bags, the first of a given number, with about the same share of each class."""
    # A bag's place in its class, as a share of it: the bags with small ones are a stratified sample.
    place = np.empty(len(bags))
    for value in np.unique(label[bags]):
        of_class = np.flatnonzero(label[bags] == value)
        place[draw.permutation(of_class)] = (np.arange(len(of_class)) + draw.uniform()) / len(of_class)
    order = np.argsort(place, kind="stable")
    return np.sort(bags[order[:first]]), np.sort(bags[order[first:]])


def stack_places(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of bags [S, places], -1 in the places behind the end of a short one."""
    most = max(map(len, parts))
    return np.stack([np.pad(part, (0, most - len(part)), constant_values=-1) for part in parts])


@checked
def own_bags(bags: Bags, index: Int[np.ndarray, "S M"]) -> Bags:
    """Bags with a member axis: member s has those at `index[s]`, none where that is -1; below is an InputError."""
    count = len(bags.label)
    expected = f"expected folds of these {count} bags: 0 to {count - 1}, or -1 for no bag"
    check_index("index", index, count, expected, least=-1)
    absent, at = index < 0, np.maximum(index, 0)

    def pick(values: Any, blank: Any) -> np.ndarray:
        values = np.asarray(values)
        return np.where(absent.reshape(*absent.shape, *[1] * (values.ndim - 1)), blank, values[at]).astype(values.dtype)

    view, blanks = bags.view, {"rows": 0, "mask": False, "label": ABSENT, "instance_label": UNKNOWN}
    picked = {name: pick(getattr(view, name), blank) for name, blank in blanks.items()}
    return Bags(bags.pool, dataclasses.replace(view, **picked))


@checked
def split_bags(bags: Bags, folds: Folds) -> Splits:
    """The bags of all members, each set with a leading axis S."""
    return Splits(*(own_bags(bags, part) for part in folds))


def join_points(points: Sequence[Splits]) -> Splits:
    """The bags of the members of several points, or settings, as those of one ensemble: [P * S, B, K]."""
    return Splits(*(
        Bags(parts[0].pool, jax.tree.map(lambda *leaves: np.concatenate(leaves), *(part.view for part in parts)))
        for parts in zip(*points, strict=True)
    ))  # fmt: skip


@checked
def choose_threshold(probability: Float[np.ndarray, " B"], label: Int[np.ndarray, " B"]) -> float:
    """The probability from which on a bag is called positive that classifies most of these bags right.

    It lies in the middle between two of their probabilities; of equally good ones, that nearest to 0.5. Places without
    a bag, of label -1, do not count.

    Raises:
        InputError: probabilities of several classes, or ones that are not from 0 to 1.
    """
    given, classes = as_array("probability", probability), as_array("label", label, whole=True)
    if given.shape != classes.shape:
        raise InputError("probability", given.shape, f"expected the positive class alone, {classes.shape}")
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("probability", "not from 0 to 1", "expected probabilities")
    present = classes >= 0
    score, truth = given.astype(float)[present], classes[present] > 0
    edges = np.unique(np.concatenate([[0.0, 1.0], score]))
    candidates = np.concatenate([[0.5], (edges[1:] + edges[:-1]) / 2])
    right = ((score >= candidates[:, None]) == truth).sum(axis=1)
    best = candidates[right == right.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def pool_repeats(values: Shaped[Values, "S W"], test: Int[np.ndarray, "S W"], repeats: int) -> np.ndarray:
    """Values of test bags, put in the order of the bags: [repeats, B]; in a repeat every bag is judged once."""
    folds = len(test) // repeats
    pooled = np.empty((repeats, test.max() + 1, *values.shape[2:]), values.dtype)
    for member, (of_member, bags) in enumerate(zip(np.asarray(values), test, strict=True)):
        pooled[member // folds, bags[bags >= 0]] = of_member[bags >= 0]
    return pooled


@dataclasses.dataclass(frozen=True, eq=False)
class Crossed:
    """What a cross-validation says of every bag, once in each repeat."""

    label: Int[np.ndarray, " B"]
    """[B]."""
    probability: Float[np.ndarray, "R B"]
    """[R, B] of the positive class, by the member whose test bag it was."""
    called: Bool[np.ndarray, "R B"]
    """[R, B] whether it was called positive at 0.5."""
    called_by_choice: Bool[np.ndarray, "R B"]
    """[R, B] the same at the threshold that the member chose on its validation bags."""
    test: Prediction
    """The members' predictions of their own test bags."""

    @property
    def right(self) -> Float[np.ndarray, " B"]:
        """In which share of the repeats a bag was classified right."""
        return (self.called == self.label).mean(axis=0)

    def scores(self) -> dict[str, Float[np.ndarray, " R"]]:
        """Scores of each repeat, over all its bags."""
        label, called = jnp.asarray(self.label), self.called.astype(np.int32)

        def by_repeat(metric: Callable[..., Any], values: np.ndarray) -> np.ndarray:
            return np.array([float(metric(jnp.asarray(of_repeat), label)) for of_repeat in values])

        return {
            "accuracy": (self.called == self.label).mean(axis=1),
            "auc": by_repeat(metrics.roc_auc, self.probability),
            "precision": by_repeat(metrics.precision, called),
            "recall": by_repeat(metrics.recall, called),
            "f1": by_repeat(metrics.f1, called),
            "accuracy_chosen_threshold": (self.called_by_choice == self.label).mean(axis=1),
        }


def judge_folds(val: Prediction, test: Prediction, splits: Splits, folds: Folds) -> Crossed:
    """Puts the predictions of all test folds together; each member's threshold comes from its own validation bags."""
    repeats = int(np.sum(folds.test == 0))  # in a repeat, every bag is in one test set
    thresholds = [
        choose_threshold(probability[:, 1], label)
        for probability, label in zip(np.asarray(val.probability), np.asarray(splits.val.label), strict=True)
    ]
    positive = np.asarray(test.probability)[..., 1]
    by_choice = positive >= np.array(thresholds)[:, None]
    pool = partial(pool_repeats, test=folds.test, repeats=repeats)
    return Crossed(pool(splits.test.label)[0], pool(positive), pool(positive >= 0.5), pool(by_choice), test)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over repeats and how sure it is."""

    mean: float
    """Over repeats."""
    standard_error: float
    """Of that mean, over repeats; NaN for one repeat. Repeats share their bags: it tells what another draw of folds and
    seeds would change, and not what other bags would."""
    low: float
    """Lower end of the bootstrap interval of 95 % over bags: what other bags would change."""
    high: float
    """Its upper end."""


@checked
def estimate(by_repeat: Num[np.ndarray, " R"], by_bag: Num[np.ndarray, " B"] | None = None) -> Estimate:
    """Mean and standard error of a score over repeats [R]; with the score's mean per bag [B], its interval."""
    values = as_array("by_repeat", by_repeat).astype(float)
    if not len(values):
        raise InputError("by_repeat", [], "expected the score of at least one repeat")
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    low, high = (float("nan"),) * 2
    if by_bag is not None:
        low, high = map(float, bootstrap_interval(as_array("by_bag", by_bag).astype(np.float32), jax.random.key(0)))
    return Estimate(float(values.mean()), error, low, high)
