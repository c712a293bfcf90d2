"""Is A better than B, how sure is that, and how many seeds would tell?

What is compared are paired scores: A and B by the same seeds, on the same folds of the same bags. The folds of a
cross-validation share training bags, so that their differences are not independent; the tests here are those that know
of it. Host side, NumPy and SciPy, double precision. What is not finite is refused, never left out in silence.

Axes: B bags, D data sets, F fits (folds of all repeats), P methods, S seeds, W resamples.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mil_jax.errors import InputError, check_number, check_whole, checked
from mil_jax.scores import ranking_scores


def check_scores(argument: str, values: object, least: int = 2) -> Float[np.ndarray, " N"]:
    """The scores in double precision; an InputError for fewer than `least`, and for one that is not a number."""
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or len(scores) < least:
        raise InputError(argument, scores.shape, f"expected a list of {least} or more scores")
    if not np.isfinite(scores).all():
        raise InputError(argument, "NaN or infinite", "expected a score of every seed and fold: a member diverged")
    return scores


# ---- one difference ----


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference and what a t-test says of it."""

    mean: float
    """Of A - B."""
    low: float
    """Of the 95 % interval."""
    high: float
    """Its other end."""
    p: float
    """Two-sided: the probability of a difference as large where there is none."""


def _scale(differences: np.ndarray, ratio: float) -> float:
    """sqrt((1 / n + n_test / n_train) s²): the standard error of the mean of differences that share training bags."""
    return math.sqrt((1 / len(differences) + ratio) * differences.var(ddof=1))


@checked
def corrected_t_test(differences: Float[np.ndarray, " F"], test_per_train: float) -> Difference:
    """The corrected resampled t-test (Nadeau and Bengio 2003): t = mean / sqrt((1 / n + n_test / n_train) s²).

    Args:
        differences: A - B of each fit, folds of all repeats.
        test_per_train: test bags for each training bag; 0 for independent differences, which is the plain paired test.

    Raises:
        InputError: fewer than two differences, or one that is not finite.
    """
    from scipy.stats import t

    values = check_scores("differences", differences)
    check_number("test_per_train", test_per_train, 0)
    mean, scale, law = values.mean(), _scale(values, test_per_train), t(len(values) - 1)
    half = law.ppf(0.975) * scale
    p = 2 * law.sf(abs(mean) / scale) if scale > 0 else float(mean == 0)
    return Difference(float(mean), float(mean - half), float(mean + half), float(p))


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Probabilities, given the differences; they sum to 1."""

    a_better: float
    """A is better than B by more than the region of practical equivalence."""
    equivalent: float
    """They differ by no more than that."""
    b_better: float
    """B is better than A by more than that."""


@checked
def bayesian_t_test(differences: Float[np.ndarray, " F"], test_per_train: float, rope: float = 0.01) -> Posterior:
    """The Bayesian correlated t-test (Corani and Benavoli 2015; Benavoli et al. 2017, section 4.1).

    With correlation rho = n_test / (n_test + n_train) between fits, the mean difference is distributed as Student's t
    of n - 1 degrees of freedom around the mean, with scale² (1 / n + rho / (1 - rho)) s².

    Args:
        differences: A - B of each fit.
        test_per_train: rho / (1 - rho); 0 for independent differences.
        rope: half the width of the region of practical equivalence.

    Raises:
        InputError: fewer than two differences, one that is not finite, or numbers below 0.
    """
    from scipy.stats import t

    values = check_scores("differences", differences)
    check_number("test_per_train", test_per_train, 0)
    check_number("rope", rope, 0)
    mean, scale = values.mean(), _scale(values, test_per_train)
    if scale == 0:  # all differences are the same
        above, below = float(mean > rope), float(mean < -rope)
    else:
        law = t(len(values) - 1, loc=mean, scale=scale)
        above, below = float(law.sf(rope)), float(law.cdf(-rope))
    return Posterior(above, max(1 - above - below, 0.0), below)


@checked
def win_rate(a: Float[np.ndarray, " S"], b: Float[np.ndarray, " S"], paired: bool = True) -> float:
    """How often A scores higher than B, ties counting one half: of the same seed, or of any two seeds.

    Raises:
        InputError: no seed, other numbers of them, or a score that is not finite.
    """
    a, b = check_scores("a", a, 1), check_scores("b", b, 1)
    if paired and len(a) != len(b):
        raise InputError("b", len(b), f"expected {len(a)} seeds, as many as of a")
    gap = a - b if paired else a[:, None] - b
    return float(((gap > 0) + (gap == 0) / 2).mean())


@checked
def seeds_needed(differences: Float[np.ndarray, " S"], power: float = 0.8, level: float = 0.05) -> int | None:
    """How many seeds a paired t-test needs to tell this difference; None where it needs more than a million.

    The smallest number for which the two-sided test at `level` finds a difference of this mean and standard deviation
    with probability `power` (noncentral t).

    Raises:
        InputError: fewer than two seeds, a score that is not finite, or probabilities that are none.
    """
    from scipy.stats import nct, t

    values = check_scores("differences", differences)
    for name, value in (("power", power), ("level", level)):
        check_number(name, value, 0, 1, ends="()")
    mean, deviation = abs(values.mean()), values.std(ddof=1)
    if mean == 0:
        return None
    if deviation <= 1e-12 * mean:
        return 2

    def tells(count: int) -> bool:
        edge, shift = t.ppf(1 - level / 2, count - 1), mean / deviation * math.sqrt(count)
        if shift > 30 + edge:  # where the noncentral t would lose its digits, the power is 1
            return True
        wrong_side = np.nan_to_num(nct.cdf(-edge, count - 1, shift))  # where it is next to 0, SciPy may give NaN
        return bool(nct.sf(edge, count - 1, shift) + wrong_side >= power)

    low, high = 1, 2
    while not tells(high):
        low, high = high, 2 * high
        if low > 10**6:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle, high)
    return high


# ---- over groups and seeds ----


@dataclasses.dataclass(frozen=True, eq=False)
class Judgements:
    """What the seeds of A and of B say of the same bags."""

    a: Float[np.ndarray, "S B"]
    """Probability of the positive class."""
    b: Float[np.ndarray, "S B"]
    """The same of B; seed s is that of A."""
    label: Int[np.ndarray, " B"]
    """0 or 1."""
    fold: Int[np.ndarray, "S B"]
    """Which fit judged the bag; AUCs are taken inside each, as other fits may be calibrated otherwise."""
    groups: Sequence[str]
    """What belongs together [B], such as the slides of a patient."""

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            values = getattr(self, name)
            if np.shape(values) != np.shape(self.fold) or np.shape(values)[1:] != np.shape(self.label):
                raise InputError(name, np.shape(values), f"expected {np.shape(self.fold)}, of the same seeds and bags")
            if not np.isfinite(values).all():
                raise InputError(name, "NaN or infinite", "expected a probability of every bag: a member diverged")
        if len(self.groups) != len(self.label):
            raise InputError("groups", len(self.groups), f"expected one for each of the {len(self.label)} bags")


def auc_in_folds(
    probability: Float[np.ndarray, " B"], label: Int[np.ndarray, " B"], fold: Int[np.ndarray, " B"],
    weight: Float[np.ndarray, "W B"],
) -> Float[np.ndarray, " W"]:  # fmt: skip
    """The mean AUC over the folds that hold bags of both classes, for each weighting of the bags; NaN for none."""
    areas = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for one in np.unique(fold):
            own = fold == one
            areas.append(ranking_scores(probability[own], label[own] > 0, weight[:, own])[0])
    known = np.isfinite(areas)
    return np.where(known, areas, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


@checked
def bootstrap_difference(judged: Judgements, key: Key[Array, ""], resamples: int = 1000) -> tuple[float, float, float]:
    """Difference of the mean AUC over seeds, A - B, with a 95 % interval over groups and seeds: (mean, low, high).

    A resample draws groups, and seeds, with replacement, the same ones for A and B: the interval tells what other
    groups and other seeds would change together. It does not tell what other training bags would change, which the
    tests over folds do.

    Raises:
        InputError: fewer than two seeds or groups.
    """
    check_whole("seeds", len(judged.a), 2)
    names, number = np.unique(np.asarray(judged.groups, dtype=str), return_inverse=True)
    check_whole("groups", len(names), 2)
    draw, seeds = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist()), len(judged.a)
    counts = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weight = np.concatenate([np.ones((1, len(number))), counts[:, number]]).astype(float)
    of_seeds = draw.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    gap = np.stack([
        auc_in_folds(a, judged.label, fold, weight) - auc_in_folds(b, judged.label, fold, weight)
        for a, b, fold in zip(judged.a, judged.b, judged.fold, strict=True)
    ])  # fmt: skip
    if not np.isfinite(gap[:, 0]).all():
        raise InputError("label", np.unique(judged.label).tolist(), "expected bags of both classes in a fold")
    known = np.isfinite(gap[:, 1:]).all(axis=0)
    resampled = (of_seeds[known] * gap[:, 1:].T[known]).sum(axis=1) / seeds
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(gap[:, 0].mean()), float(low), float(high)


# ---- what choosing pretends ----


@checked
def best_of(scores: Float[np.ndarray, " S"], count: int) -> float:
    """The expected best of `count` seeds, over all subsets of that size: Σ_i C(i - 1, n - 1) / C(S, n) x_(i).

    Minus the mean, it is what a table of best seeds is too good by.

    Raises:
        InputError: no seed, a score that is not finite, or a number that is not from 1 to S.
    """
    values = np.sort(check_scores("scores", scores, 1))
    check_whole("count", count, 1, len(values))
    share = [math.comb(i, count - 1) / math.comb(len(values), count) for i in range(len(values))]
    return float(np.dot(share, values))


@checked
def choice_gap(val_loss: Float[np.ndarray, "S F"], test: Float[np.ndarray, "S F"]) -> float:
    """By how much a seed that is chosen on the test bags of a fit scores better there than one chosen on its own loss.

    Mean over fits of max_s test[s] - test[argmin_s val_loss[s]]; 0 for one seed.

    Raises:
        InputError: arrays of other shapes, or what is not finite.
    """
    if np.shape(val_loss) != np.shape(test) or np.ndim(test) != 2:
        raise InputError("test", np.shape(test), f"expected [seeds, fits], {np.shape(val_loss)}")
    for name, values in (("val_loss", val_loss), ("test", test)):
        check_scores(name, np.ravel(values), 1)
    honest = np.take_along_axis(test, val_loss.argmin(axis=0)[None], axis=0)[0]
    return float((test.max(axis=0) - honest).mean())
