"""Settings compared over the same seeds: what each seed scored at each point, and the paired differences.

A seed decides all that is drawn, the same at every point, so that a difference between two points is taken seed by
seed: its interval tells what another draw of everything could change.

Axes: P points, S seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from mil_jax.evaluation import mean_and_spread
from mil_jax.intervals import mean_intervals

Row = dict[str, Any]
Band = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Point:
    """What the seeds scored at one setting."""

    name: str
    """As tables say it."""
    factors: Mapping[str, object]
    """The columns that tell it from other points."""
    scores: Mapping[str, np.ndarray]
    """Each measure's values [S]; NaN where a seed does not define it."""
    against: str = ""
    """The name of the point that it is compared with; empty for none."""
    differences: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Each measure's paired differences [S] to that."""

    def rows(self) -> list[Row]:
        """A row for each seed."""
        columns = {name: np.asarray(values).tolist() for name, values in self.scores.items()}
        count = len(next(iter(columns.values())))
        return [{**self.factors, "seed": i, **{name: columns[name][i] for name in columns}} for i in range(count)]


def compare(point: Point, reference: Point) -> Point:
    """The point with its differences to the reference, seed by seed."""
    differences = {name: values - reference.scores[name] for name, values in point.scores.items()}
    return dataclasses.replace(point, against=reference.name, differences=differences)


def compare_all(points: Sequence[Point]) -> list[Point]:
    """The points, all but the first with their differences to the first."""
    return [points[0], *(compare(point, points[0]) for point in points[1:])]


def by_point(scores: Mapping[str, np.ndarray], points: int) -> list[dict[str, np.ndarray]]:
    """The scores [P * S] of one ensemble as those of its points [S]."""
    parts = {name: np.split(values, points) for name, values in scores.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(points)]


def tabulate(points: Sequence[Point], measures: Sequence[str], seed: int = 0) -> list[Row]:
    """A row for each measure and point: mean, standard deviation, 95 % interval, and the difference with its own."""
    pairs = [(measure, point) for measure in measures for point in points]
    nothing = np.array([np.nan])
    columns = [point.scores[measure] for measure, point in pairs]
    differences = [point.differences.get(measure, nothing) for measure, point in pairs]
    means, lows, highs = intervals([*columns, *differences], seed)
    rows = []
    for i, (measure, point) in enumerate(pairs):
        j = len(pairs) + i
        spread = mean_and_spread(np.asarray(columns[i]))[1]
        row = {"measure": measure, "point": point.name, **point.factors, "seeds": len(columns[i]), "mean": means[i]}
        row |= {"standard_deviation": spread, "low": lows[i], "high": highs[i], "against": point.against}
        rows.append(row | {"difference": means[j], "difference_low": lows[j], "difference_high": highs[j]})
    return rows


def intervals(columns: Sequence[np.ndarray], seed: int) -> tuple[list[float], list[float], list[float]]:
    """Mean, low and high of each column's defined values, by a bootstrap of 95 %; columns may differ in length."""
    longest = max(map(len, columns))
    filled = [np.pad(np.asarray(c, np.float32), (0, longest - len(c)), constant_values=np.nan) for c in columns]
    values = np.stack(filled)
    mean, low, high = map(np.asarray, _mean_intervals(values, ~np.isnan(values), jax.random.key(seed)))
    return mean.tolist(), low.tolist(), high.tolist()


_mean_intervals = jax.jit(mean_intervals)


def row_of(rows: Sequence[Row], measure: str, point: str) -> Row:
    """The row of a measure at a point."""
    return next(row for row in rows if row["measure"] == measure and row["point"] == point)


def band(rows: Sequence[Row], measure: str, names: Sequence[str]) -> Band:
    """Mean, low and high at the named points, for a line with a band."""
    chosen = [row_of(rows, measure, name) for name in names]
    middle, low, high = (np.array([row[part] for row in chosen]) for part in ("mean", "low", "high"))
    return middle, low, high
