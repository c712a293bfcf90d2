"""A small cohort made of the package's digits, so that every command for bags from files works without any.

A slide is a bag of 40 to 80 digits that lie on a grid, a patient has two of them, and a patient is positive if their
slides hold a 1. As on real slides a few patches decide.
"""

import numpy as np

from mil_jax.datasets import SAMPLE, load
from mil_jax.datasets.cohort import BagSource, Cohort, cohort_of_arrays

PATIENTS, SLIDES, SIZES, SHARE = 60, 2, (40, 80), 0.05
SIDE = 28  # pixels of a digit, and of a place on the grid


def digits_cohort(seed: int) -> Cohort:
    """120 bags of two classes, in 60 groups, with positions and the truth of every instance."""
    digits = load(SAMPLE).train
    draw = np.random.default_rng([seed, 1])  # not JAX's: a command loads its bags before JAX starts
    ones, others = np.flatnonzero(digits.label == 1), np.flatnonzero(digits.label != 1)
    sources, truths = [], []
    for patient in range(PATIENTS):
        for slide in range(SLIDES):
            size = int(draw.integers(*SIZES, endpoint=True))
            count = patient % 2 * max(round(SHARE * size), 1)
            rows = draw.permutation(np.concatenate([draw.choice(ones, count), draw.choice(others, size - count)]))
            place = np.arange(size)
            position = np.stack([place % 10, place // 10], axis=1).astype(np.float32) * SIDE
            name, group = f"patient{patient:02d}_slide{slide}", f"patient{patient:02d}"
            sources.append(BagSource(name=name, group=group, label=patient % 2, arrays=(digits.x[rows], position)))
            truths.append((digits.label[rows] == 1).astype(np.int32))
    return cohort_of_arrays(
        "digits", sources, ("negative", "positive"), unit="px", patch_size=float(SIDE),
        instance_label=np.concatenate(truths), source="a cohort made of MNIST digits that are part of the package",
    )  # fmt: skip
