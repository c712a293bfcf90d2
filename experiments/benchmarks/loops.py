"""What the benchmarks of one network against loops in PyTorch share: ratios, the counted limit, figure and table."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import measure
import numpy as np
from measure import Case, Measured, Row, Task

from mil_jax.run.screen import print_table, say
from mil_jax.text import DASH, Table

BEST = "PyTorch, the fastest loop"


def compare(config: Any, task: Task, cases: Sequence[Case], title: str, name: str) -> None:
    """Measures all cases, of which the first is mil_jax's; writes results.json, results.csv and the figure, prints.

    Args:
        config: the benchmark's options, among them `rounds` and `out`.
        task: what all train on.
        cases: what to measure.
        title: of the table; times are milliseconds per member and step.
        name: of the figure.
    """
    measured = measure.measure_in_rounds(cases, task, config.rounds)
    rows, ours = measure.summarize(measured.all), cases[0].way.name
    loops = {case.way.name for case in cases if not case.way.name.startswith(ours)}
    limit, ratios = limit_of(measured), times_as_long(rows, ours, len(loops))
    more = {"limit_us": limit, "times_as_long_by_members": ratios}
    folder = measure.write_measured(config, measured, rows, **more)
    folder.write_figure(name, draw(rows, limit, ours))
    print_rows(title, rows, limit, ratios, ours)
    say(f"{measured.seconds:.0f} seconds; results: {config.out}")


def limit_of(measured: Measured) -> float:
    """Microseconds of a step per member if it were nothing but products of large matrices, the median over rounds."""
    details = [one.details for one in measured.all if one.details]
    return 1e6 * median(of_one["operations"] / of_one["operations_per_second"] for of_one in details)


def times_as_long(rows: Sequence[Row], ours: str, loop_count: int) -> dict[int, dict[str, float]]:
    """For each S of mil_jax, the times of PyTorch as multiples of it, and of its fastest loop if all of them ran."""
    loops = {row.way: row.train_us for row in rows if not row.way.startswith(ours)}
    loops |= {BEST: min(loops.values())} if 0 < len(loops) == loop_count else {}
    times = {row.members: row.train_us for row in rows if row.way == ours}
    return {members: {way: us / time for way, us in loops.items()} for members, time in times.items()}


def draw(rows: Sequence[Row], limit: float, ours: str) -> Any:
    """The figure: time per member against S, a level line for each loop and for the limit."""
    from mil_jax import plots

    by_size: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.way.startswith(ours):
            by_size.setdefault(row.way, {})[row.members] = row.train_us / 1e3
    sizes = np.array(sorted(by_size[ours]))
    series = {
        way: np.array([times[size] for size in sizes]) for way, times in by_size.items() if len(times) == len(sizes)
    }
    level = {row.way: row.train_us / 1e3 for row in rows if not row.way.startswith(ours)} | {
        "the counted limit": limit / 1e3
    }
    series |= {name: np.full(len(sizes), time) for name, time in level.items()}
    return plots.loglog_lines(sizes, series, "members, S", "milliseconds per member and step")


def print_rows(title: str, rows: Sequence[Row], limit: float, ratios: dict[int, dict[str, float]], ours: str) -> None:
    """The table, and what follows from it."""
    most = max(ratios, default=None)
    cells = []
    for row in rows:
        times = [f"{us / 1e3:.1f}" for us in (row.train_us, row.train_us_low, row.train_us_high)]
        ratio = DASH if most is None or row.way.startswith(ours) else f"{ratios[most][row.way]:.2f}"
        cells.append((row.way, row.members, *times, ratio, f"{row.train_us / limit:.1f}", round(row.peak_memory_mib)))
    columns = ("", "S", "ms", "fastest", "slowest", f"x mil_jax, S = {most}", "x limit", "peak MiB")
    print_table(
        Table(
            f"{title}, milliseconds per member and step",
            columns,
            cells,
            f"medians over rounds; the counted limit is {limit / 1e3:.1f} ms",
        )
    )
    for members, of_size in ratios.items():
        if BEST in of_size:
            say(f"{BEST}: {of_size[BEST]:.2f} times as long as mil_jax with S = {members}")
