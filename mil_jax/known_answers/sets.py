"""Bags of several problems and seeds as those of one ensemble, so that one program trains all of them.

The G groups of an ensemble are problems, or one problem with several numbers of training bags. Member s * G + g is seed
s in group g: whatever the pooling, a seed has the same bags. Training bags are a seed's own, validation and test bags
are shared by the seeds of a group.

Axes: S seeds, G groups, B bags, K slots per bag.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from mil_jax.bags import ABSENT, Bags
from mil_jax.datasets import Dataset, Instances
from mil_jax.known_answers.digit_problems import PROBLEMS, Digits, digit_bags
from mil_jax.known_answers.raff_holt import POISON, TESTS, raff_holt
from mil_jax.known_answers.records import KnownBags, join
from mil_jax.known_answers.shifted_mean import ShiftedMean, bayes_auc, shifted_mean
from mil_jax.sampling import split_pool

TRAPS = ("looks at the poison", "looks at the poison", "counts")  # of the three tests
ASKED, ASKED_OF_DIGITS, BELOW_CEILING = 0.75, 0.9, 0.05


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many bags are drawn of a problem."""

    train: int
    val: int
    test: int


@dataclasses.dataclass(frozen=True)
class Group:
    """One problem of an ensemble."""

    problem: str
    """Its name."""
    train_bags: int
    """Bags that a seed learns from."""
    asked: float
    """The test AUC from which on a seed passes."""
    trap: str = ""
    """What it means if a seed has learned and ranks the test bags the wrong way round; empty without a trap."""
    ceiling: float = np.nan
    """The highest AUC that there is; NaN where it is 1, or nobody knows."""
    order_blind_ceiling: float = np.nan
    """The highest one without a look at the order of the instances."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sets:
    """What S * G members are trained, chosen and judged on."""

    groups: tuple[Group, ...]
    """G."""
    train: KnownBags
    """Each member's own; with a label of -1 in places without a bag."""
    val: KnownBags
    """The same for all seeds of a group."""
    test: KnownBags
    """The same for all seeds of a group."""
    poison: int | None = None
    """The kind of instance that no model may look at; None where there is none."""

    @property
    def classes(self) -> int:
        """C."""
        return self.test.evidence.shape[-1]


Draw = Callable[[Key[Array, ""], str, int], KnownBags]


def draw_sets(
    key: Key[Array, ""], seeds: int, counts: Counts, draws: Sequence[Draw]
) -> tuple[KnownBags, KnownBags, KnownBags]:
    """Training, validation and test bags of S * G members, by a law for each group: `draw(key, part, count)`."""
    key_train, *key_shared = jax.random.split(key, 3)

    def groups(key: Array, part: str, count: int) -> list[KnownBags]:
        return [draw(jax.random.fold_in(key, i), part, count) for i, draw in enumerate(draws)]

    own = [groups(jax.random.fold_in(key_train, seed), "train", counts.train) for seed in range(seeds)]
    train = join([part for of_seed in own for part in of_seed])
    val, test = (groups(*part) for part in zip(key_shared, ("val", "test"), (counts.val, counts.test), strict=True))
    return train, join(val * seeds), join(test * seeds)


def raff_holt_sets(key: Key[Array, ""], seeds: int, counts: Counts, features: int = 16) -> Sets:
    """The three tests of Raff and Holt; validation bags follow the training law."""

    def draw(test: Any, key: Array, part: str, count: int) -> KnownBags:
        return raff_holt(key, test, "test" if part == "test" else "train", count=count, features=features)

    parts = draw_sets(key, seeds, counts, [partial(draw, test) for test in TESTS])
    groups = [Group(test, counts.train, ASKED, trap) for test, trap in zip(TESTS, TRAPS, strict=True)]
    return Sets(tuple(groups), *parts, poison=POISON)


def shifted_mean_sets(
    key: Key[Array, ""], seeds: int, law: ShiftedMean, train_bags: Sequence[int], val: int, test: int
) -> Sets:
    """The shifted mean, with a group for each number of training bags: the smaller sets are parts of the largest."""
    key_train, key_val, key_test, key_ceiling = jax.random.split(key, 4)
    largest = shifted_mean(key_train, law, count=max(train_bags), members=seeds)
    ceiling, blind = (bayes_auc(key_ceiling, law, ordered=ordered) for ordered in (True, False))
    groups = [
        Group(f"shifted_mean_{law.delta:g}", count, blind - BELOW_CEILING, "", ceiling, blind) for count in train_bags
    ]
    held_out = shifted_mean(key_val, law, count=val), shifted_mean(key_test, law, count=test)
    return Sets(tuple(groups), first_bags(largest, train_bags), *held_out)


def first_bags(known: KnownBags, counts: Sequence[int]) -> KnownBags:
    """The bags of S members as those of S * G, of which each has the first `counts[g]` of its seed's."""
    groups = len(counts)
    spread = jax.tree.map(lambda leaf: np.repeat(leaf, groups, axis=0), (known.bags.view, known.kind, known.evidence))
    view, kind, evidence = spread
    absent = np.arange(view.label.shape[1]) >= np.tile(counts, len(known.kind))[:, None]
    view = dataclasses.replace(view, label=np.where(absent, ABSENT, view.label).astype(np.int32))
    return KnownBags(Bags(known.bags.pool, view), kind, evidence, known.kinds)


def digit_sets(key: Key[Array, ""], seeds: int, counts: Counts, data: Dataset, problems: Sequence[Digits]) -> Sets:
    """Digit problems of as many classes; validation and test bags hold the halves of the data's test instances."""
    key_halves, key_bags = jax.random.split(key)
    halves = split_pool(key_halves, len(data.test.label), 0.5)
    val, test = (Instances(data.test.x[half], data.test.label[half]) for half in halves)
    pools = {"train": data.train, "val": val, "test": test}

    def draw(problem: Digits, key: Array, part: str, count: int) -> KnownBags:
        return digit_bags(key, pools[part], problem, count=count)

    parts = draw_sets(key_bags, seeds, counts, [partial(draw, problem) for problem in problems])
    return Sets(tuple(Group(problem, counts.train, ASKED_OF_DIGITS) for problem in problems), *parts)


def digit_groups() -> list[list[Digits]]:
    """The digit problems that have as many classes as one another, which can be trained together."""
    numbers = dict.fromkeys(problem.classes for problem in PROBLEMS.values())
    return [[name for name, problem in PROBLEMS.items() if problem.classes == classes] for classes in numbers]


def principal_components(data: Dataset, count: int) -> Dataset:
    """The data with each image as its first principal components, fitted on the training instances: frozen features.

    The problems are about pooling; features that see a digit are given, as in the paper, where a network trained on
    other images makes them.
    """
    flat = [np.asarray(part.x, np.float64).reshape(len(part.x), -1) / 255 for part in (data.train, data.test)]
    mean = flat[0].mean(axis=0)
    _, axes = np.linalg.eigh((flat[0] - mean).T @ (flat[0] - mean))
    features = [((part - mean) @ axes[:, ::-1][:, :count]).astype(np.float32) for part in flat]
    train, test = (Instances(x, part.label) for x, part in zip(features, (data.train, data.test), strict=True))
    return dataclasses.replace(data, train=train, test=test)


def by_group(values: Float[np.ndarray, " SG"], groups: int) -> list[Float[np.ndarray, " S"]]:
    """Values of the members as those of the seeds of each group."""
    return list(np.asarray(values).reshape(-1, groups).T)
