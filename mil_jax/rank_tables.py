"""Methods compared over several data sets by their ranks (Demšar 2006).

Axes: D data sets, P methods.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mil_jax.errors import InputError, check_number, checked


@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """Mean ranks, 1 for the best, and which differences they tell."""

    mean: Float[np.ndarray, " P"]
    """The mean rank of each method."""
    chi2: float
    """Friedman's statistic, with P - 1 degrees of freedom; corrected for ties."""
    p: float
    """Of Iman and Davenport's F, which is less conservative: whether there is any difference at all."""
    critical: float
    """Nemenyi's critical difference: two methods whose mean ranks differ by it or more differ."""

    def cliques(self) -> list[tuple[int, ...]]:
        """The largest sets of methods that no difference tells apart, best first; each by the methods' numbers."""
        order = np.argsort(self.mean, kind="stable")
        runs = [
            tuple(int(i) for i in order[start:] if self.mean[i] - self.mean[order[start]] < self.critical)
            for start in range(len(order))
        ]
        return [run for i, run in enumerate(runs) if len(run) > 1 and (i == 0 or run[-1] != runs[i - 1][-1])]


@checked
def compare_ranks(scores: Float[np.ndarray, "D P"], level: float = 0.05) -> Ranks:
    """Ranks methods on each data set, higher scores first, and compares the mean ranks.

    Ties share their mean rank. The critical difference is q sqrt(P (P + 1) / (6 D)) with q the quantile of the
    studentised range of P means and infinite degrees of freedom, divided by sqrt(2) (equations 5 to 7).

    Raises:
        InputError: fewer than two data sets or methods, or a score that is not finite.
    """
    from scipy.stats import chi2, f, rankdata, studentized_range

    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise InputError("scores", values.shape, "expected two or more data sets and methods")
    if not np.isfinite(values).all():
        raise InputError("scores", "NaN or infinite", "expected a score of each method on each data set")
    check_number("level", level, 0, 1, ends="()")
    sets, methods = values.shape
    ranks = rankdata(-values, axis=1)
    mean = ranks.mean(axis=0)
    spread = ((ranks - (methods + 1) / 2) ** 2).sum() / (sets * (methods - 1))  # P (P + 1) / 12 without ties
    statistic = sets * ((mean - (methods + 1) / 2) ** 2).sum() / spread if spread > 0 else 0.0
    rest = sets * (methods - 1) - statistic
    if rest <= 1e-9:  # all sets rank alike
        p = float(chi2.sf(statistic, methods - 1))
    else:
        p = float(f.sf((sets - 1) * statistic / rest, methods - 1, (methods - 1) * (sets - 1)))
    quantile = studentized_range.ppf(1 - level, methods, np.inf) / np.sqrt(2)
    return Ranks(mean, float(statistic), p, float(quantile * np.sqrt(methods * (methods + 1) / (6 * sets))))


def table_of_scores(
    rows: Sequence[dict[str, str]], data_set: str, method: str, score: str
) -> tuple[list[str], list[str], Float[np.ndarray, "D P"]]:
    """Data sets, methods and scores [D, P] of the rows of a table, as CSV has them.

    Raises:
        InputError: a column that is not there, no number, or a data set without one of the methods, or with one twice.
    """
    for name in (data_set, method, score):
        if not rows or name not in rows[0]:
            raise InputError(name, list(rows[0]) if rows else [], "expected a column of the table")
    sets, methods = (list(dict.fromkeys(row[name] for row in rows)) for name in (data_set, method))
    values = np.full((len(sets), len(methods)), np.nan)
    for row in rows:
        place = sets.index(row[data_set]), methods.index(row[method])
        if np.isfinite(values[place]):
            raise InputError(method, row[method], f"expected one row for it on {row[data_set]}")
        try:
            values[place] = float(row[score])
        except ValueError:
            raise InputError(score, row[score], f"expected a number for {row[method]} on {row[data_set]}") from None
    return sets, methods, values
