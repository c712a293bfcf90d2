"""Four problems on bags of digits in which it is known what each digit says, also against a class (Hense et al. 2024).

The problems of xMIL (arXiv 2406.04280): the standard one, two concepts that make four classes, evidence for and against
that is weighed, and pairs of which either digit alone says nothing. A bag has 30 digits: each of the ten is kept with
probability 1/2, and the digits of the bag are drawn from those that were kept, so that bags differ in what they lack.

Axes: N instances in the pool, B bags, K slots per bag, C classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Array, Int, Key

from mil_jax.datasets import Instances
from mil_jax.errors import InputError, check_whole, checked
from mil_jax.known_answers.records import KnownBags, generator, make_known

Digits = Literal["smil", "four_bags", "pos_neg", "adjacent_pairs"]
DIGITS: tuple[Digits, ...] = get_args(Digits)
Present = Int[np.ndarray, "B 10"]


@dataclasses.dataclass(frozen=True)
class DigitProblem:
    """What makes a bag of digits of a class, and what a digit says."""

    classes: int
    """C."""
    label: Callable[[Present], Int[np.ndarray, " B"]]
    """The classes of bags, from how often they hold each digit."""
    evidence: Callable[[Present], Int[np.ndarray, "B 10 C"]]
    """What each digit says of each class in such a bag."""


def _has(counts: Present, *digits: int) -> np.ndarray:
    return np.asarray(counts[:, digits].sum(axis=1) > 0)


def _for_and_against(positive: np.ndarray) -> np.ndarray:
    return np.stack([-positive, positive], axis=-1)


def _of_digits(counts: Present, signs: dict[int, int]) -> np.ndarray:
    """What each digit says for class 1, the same in all bags [B, 10]."""
    return np.broadcast_to([signs.get(digit, 0) for digit in range(10)], counts.shape)


def _four_evidence(counts: Present) -> np.ndarray:
    eight, nine = (_of_digits(counts, {digit: 1}) for digit in (8, 9))
    return np.stack([-eight - nine, eight - nine, nine - eight, eight + nine], axis=-1)


def _paired(counts: Present) -> np.ndarray:
    """1 for a digit from 0 to 4 whose neighbour there is in the bag too, [B, 10]."""
    present = counts[:, :5] > 0
    pair = present[:, :-1] & present[:, 1:]
    return np.pad(np.pad(pair, [(0, 0), (0, 1)]) | np.pad(pair, [(0, 0), (1, 0)]), [(0, 0), (0, 5)]).astype(int)


SIGNS: dict[int, int] = {4: 1, 6: 1, 8: 1, 5: -1, 7: -1, 9: -1}
PROBLEMS: dict[Digits, DigitProblem] = {
    "smil": DigitProblem(
        2, lambda counts: _has(counts, 9), lambda counts: _for_and_against(_of_digits(counts, {9: 1}))
    ),
    "four_bags": DigitProblem(4, lambda counts: _has(counts, 8) + 2 * _has(counts, 9), _four_evidence),
    "pos_neg": DigitProblem(
        2,
        lambda counts: np.asarray((counts * _of_digits(counts, SIGNS)).sum(axis=1) > 0),
        lambda counts: _for_and_against(_of_digits(counts, SIGNS)),
    ),
    "adjacent_pairs": DigitProblem(
        2, lambda counts: np.asarray(_paired(counts).any(axis=1)), lambda counts: _for_and_against(_paired(counts))
    ),
}


@checked
def digit_bags(key: Key[Array, ""], digits: Instances, problem: Digits, *, count: int, bag_size: int = 30) -> KnownBags:
    """Draws bags of digits with their classes and the evidence of each digit.

    Args:
        key: decides the draw.
        digits: the pool, with classes 0 to 9 in it; an instance may be in a bag twice, as in the paper.
        problem: `smil`, is there a 9? `four_bags`, is there no 8 and no 9, an 8, a 9, or both? `pos_neg`, are there
            more of 4, 6, 8 than of 5, 7, 9? `adjacent_pairs`, are there two neighbours among 0 to 4?
        count: B.
        bag_size: K.

    Raises:
        InputError: a number below 1, a problem that there is not, or a pool without one of the digits.
    """
    check_whole("count", count, 1)
    check_whole("bag_size", bag_size, 1)
    of_digit = [np.flatnonzero(digits.label == digit) for digit in range(10)]
    if missing := [digit for digit, rows in enumerate(of_digit) if not len(rows)]:
        raise InputError("digits", missing, "expected a pool with instances of each digit 0 to 9")
    draw = generator(key)
    kind = draw_kinds(draw, count, bag_size)
    rows = np.empty(kind.shape, int)
    for digit, instances in enumerate(of_digit):
        at = kind == digit
        rows[at] = instances[draw.integers(0, len(instances), at.sum())]
    counts = (kind[:, :, None] == np.arange(10)).sum(axis=1)
    of_bag = PROBLEMS[problem].evidence(counts)
    evidence = of_bag[np.arange(count)[:, None], kind]
    label = PROBLEMS[problem].label(counts).astype(int)
    return make_known(digits.x, rows, label, kind, evidence, tuple("0123456789"))


def draw_kinds(draw: np.random.Generator, count: int, bag_size: int) -> Int[np.ndarray, "B K"]:
    """Digits by hierarchical sampling: each kept with probability 1/2, at least one of them; uniform among those."""
    # Sets of digits but the empty one, as numbers of ten bits.
    kept = (draw.integers(1, 2**10, count)[:, None] >> np.arange(10)) & 1
    place = (draw.uniform(size=(count, bag_size)) * kept.sum(axis=1)[:, None]).astype(int)
    return (kept.cumsum(axis=1)[:, None, :] <= place[:, :, None]).sum(axis=-1)
