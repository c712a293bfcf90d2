"""Algorithmic unit tests: does a model respect the assumption of multiple instance learning?

In the three tests of Raff and Holt (2023, arXiv 2310.17867, algorithms 1 to 3) a bag is positive because of what it
holds, and never because of what it lacks. Each has a trap: a cue that is right in training and wrong in the test. In
two of them it is poison, an instance that stands far from all others, in negative bags of the training law and in
positive bags of the test law: a model that takes its absence for a sign of a positive bag has a training AUC near 1 and
a test AUC far below 0.5. In the third, it is the number of instances of a concept.

Axes: B bags, K slots per bag, F features, Q kinds of instances.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Array, Int, Key

from mil_jax.errors import check_whole, checked
from mil_jax.known_answers.records import KnownBags, generator, make_known, paired_labels, shuffled_kinds

Test = Literal["single_concept", "multi_concept", "false_frequency"]
TESTS: tuple[Test, ...] = get_args(Test)
Law = Literal["train", "test"]

KINDS = ("background", "first concept", "second concept", "poison")
BACKGROUND, FIRST, SECOND, POISON = range(4)
SPECIFIC = (0, 1, 1, 0)  # the evidence of each kind for class 1
# Mean and standard deviation of every feature, by kind.
NORMALS: dict[Test, tuple[tuple[float, float], ...]] = {
    "single_concept": ((0, 1), (0, 3), (1, 1), (-10, 0.1)),
    "multi_concept": ((0, 1), (2, 0.1), (3, 0.1), (-10, 0.1)),
    "false_frequency": ((0, 1), (2, 0.1), (3, 0.1), (-10, 0.1)),
}


@checked
def raff_holt(key: Key[Array, ""], test: Test, law: Law, *, count: int, features: int = 16) -> KnownBags:
    """Draws the bags of a test; of each two, one is positive.

    All have 1 to 9 instances of background N(0, 1). A positive bag besides has, in `single_concept`, 1 to 3 instances,
    each of N(0, 3) or N(1, 1) with probability 1/2; in `multi_concept`, 1 to 3 of N(2, 0.1) and 1 to 3 of N(3, 0.1); in
    `false_frequency`, one of each of these two. A negative bag has, in `multi_concept`, one instance of one of the two
    concepts; in `false_frequency`, one in training and 35 to 44 in the test; which concept it is, is drawn. The numbers
    in N are mean and standard deviation of each feature. The authors leave the number of background instances of
    `single_concept` open: it is that of the others here.

    Args:
        key: decides the draw.
        test: which of the three.
        law: of the training bags, or of the test bags, where the trap is set the other way round.
        count: B.
        features: F.

    Raises:
        InputError: a number below 1, or a test or a law that there is not.
    """
    check_whole("count", count, 1)
    check_whole("features", features, 1)
    draw = generator(key)
    label = paired_labels(draw, count)
    kind = shuffled_kinds(draw, counts_of(draw, test, label > 0, law == "train"))
    mask = kind >= 0
    mean, deviation = np.array(NORMALS[test]).T[:, kind[mask]]
    pool = (mean[:, None] + deviation[:, None] * draw.standard_normal((len(mean), features))).astype(np.float32)
    rows = np.zeros(kind.shape, int)
    rows[mask] = np.arange(len(pool))
    positive = np.array(SPECIFIC)[kind]
    return make_known(pool, rows, label, kind, np.stack([-positive, positive], axis=-1), KINDS)


def counts_of(draw: np.random.Generator, test: Test, positive: np.ndarray, training: bool) -> Int[np.ndarray, "B Q"]:
    """How many instances of each kind the bags hold, given which of them are positive."""
    count = len(positive)
    counts = np.zeros((count, len(KINDS)), int)
    counts[:, BACKGROUND] = draw.integers(1, 10, count)
    which = draw.integers(0, 2, count)[:, None] == (0, 1)  # the one concept that a negative bag has
    if test == "single_concept":
        total = draw.integers(1, 4, count)
        first = draw.binomial(total, 0.5)
        of_positive, of_negative = np.stack([first, total - first], axis=1), np.zeros((count, 2), int)
    elif test == "multi_concept":
        of_positive, of_negative = draw.integers(1, 4, (count, 2)), which
    else:
        times = np.ones(count, int) if training else draw.integers(35, 45, count)
        of_positive, of_negative = np.ones((count, 2), int), which * times[:, None]
    counts[:, FIRST : SECOND + 1] = np.where(positive[:, None], of_positive, of_negative)
    if test != "false_frequency":
        counts[:, POISON] = positive != training
    return counts
