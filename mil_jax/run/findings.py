"""What an ablation leaves: a row for each seed, tables with intervals, figures, and a report with bags to browse.

```
config.json     every option, the versions, the data's name and hash
results.csv     what each seed scored at each point
summary.json    the tables, and a warning for each point where attention has collapsed
figures/*.png
report.html     all of it on one page
log.txt         when it was written, and the warnings
```

Axes: S seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import report
from mil_jax.collapse import WHAT_TO_TRY
from mil_jax.comparison import Band, Point, Row, band, row_of
from mil_jax.ensemble import predict
from mil_jax.members import Members
from mil_jax.model import MIL
from mil_jax.run.ablation import Ablation
from mil_jax.run.config import settings
from mil_jax.run.processes import placement_of
from mil_jax.run.screen import print_table, say, say_seconds
from mil_jax.run.study import open_study
from mil_jax.sampling import BagsConfig, sample_bags
from mil_jax.text import Table

GALLERY_BAGS = 60

NOTE = (
    "Mean, standard deviation and 95 % bootstrap interval (low, high) over seeds; differences are taken seed by seed. "
    "Attention statistics are means over the positive test bags. Intervals are not corrected for their number."
)

COLUMNS = ("", "mean", "s. d.", "low", "high", "against", "diff.", "low", "high")

Figures = Mapping[str, tuple[Any, str]]  # by name, each with its caption


# ---- parts ----


def strips(
    study: Ablation, rows: Sequence[Row], points: Sequence[Point]
) -> dict[str, dict[str, tuple[np.ndarray, Any, Any]]]:
    """The panels of `plots.seeds_by_group`: the measures shown, and what each seed scored at each point."""
    return {
        study.config.labels[measure]: {
            point.name: (point.scores[measure], *(row_of(rows, measure, point.name)[end] for end in ("low", "high")))
            for point in points
        }
        for measure in study.config.measures
    }


def panels(study: Ablation, rows: Sequence[Row], lines: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Band]]:
    """The panels of `plots.panels_with_band`: the measures shown, and a line over the names of some points for each."""
    return {
        study.config.labels[measure]: {name: band(rows, measure, points) for name, points in lines.items()}
        for measure in study.config.measures
    }


def gallery_of(
    study: Ablation, mil: MIL, members: Members, title: str, positive_class: int, bag_size: int = 3
) -> report.Gallery:
    """A part of the report: bags that no member has learned from, with the weights and predictions of all."""
    pool, law = study.data.test, BagsConfig(bag_size, positive_class=positive_class)
    drawn = sample_bags(jax.random.fold_in(study.key, 2), pool.x, pool.label, law, count=GALLERY_BAGS)
    predicted = predict(mil, members, drawn, placement_of(study.config.compute, members.count))
    return report.Gallery(
        title, drawn.pool, drawn.rows, drawn.mask, drawn.label, drawn.instance_label,
        attention=predicted.attention, probability=predicted.probability,
        caption=f"{GALLERY_BAGS} bags drawn from the test instances, predicted by {members.count} seeds",
    )  # fmt: skip


# ---- the whole ----


def conclude(
    study: Ablation,
    points: Sequence[Point],
    rows: Sequence[Row],
    figures: Figures,
    *,
    gallery: report.Gallery | None = None,
    more: Mapping[str, Any] = {},
    note: str = NOTE,
) -> Path:
    """Writes results.csv of all points, summary.json, figures and report.html, and prints the tables.

    Tables show the rows, `tabulate` of some points; summary.json holds `more` besides, and the report the gallery.
    """
    shown = {row["point"] for row in rows}
    warnings = collapses([point for point in points if point.name in shown])
    seconds = study.watch.read()
    tables = [table_of(study, rows, measure) for measure in study.config.measures]
    content = {"name": study.data.name, "content_hash": study.data.content_hash}
    with open_study(study, content) as run:
        for sentence in warnings:
            run.note(f"warning: {sentence}")
        run.write_csv("results.csv", [row for point in points for row in point.rows()])
        for name, (figure, _) in figures.items():
            run.write_figure(name, figure)
        if run.writes:
            parts = [*pictures(study.out, figures), *tables, *([gallery] if gallery else [])]
            run.write_text("report.html", page(study, [*warnings, note], parts, seconds["total"]))
        run.write_json("summary.json", {"warnings": warnings, "rows": list(rows), **more, "seconds": seconds})
    for table in tables:
        print_table(table)
    say(note)
    for sentence in warnings:
        say(f"warning: {sentence}")
    say_seconds(seconds)
    say(f"folder: {study.out}")
    return study.out


def collapses(points: Sequence[Point]) -> list[str]:
    """A sentence for each point where attention has collapsed for some seeds."""
    return [
        f"{point.name}: attention has collapsed for {count} of {len(point.scores['collapsed'])} seeds; "
        f"try {WHAT_TO_TRY}"
        for point in points if (count := int(np.nansum(point.scores["collapsed"])))
    ]  # fmt: skip


def table_of(study: Ablation, rows: Sequence[Row], measure: str) -> Table:
    """The table of a measure, a row for each point."""
    of_point = ("point", "mean", "standard_deviation", "low", "high")
    of_pair = ("against", "difference", "difference_low", "difference_high")
    cells = [
        [*(row[name] for name in of_point), *(row[name] if row["against"] else "" for name in of_pair)]
        for row in rows if row["measure"] == measure
    ]  # fmt: skip
    return Table(heading(study.config.labels[measure]), COLUMNS, cells)


def heading(text: str) -> str:
    """The text with a capital letter in front; AUC stays AUC."""
    return text[:1].upper() + text[1:]


def pictures(out: Path, figures: Figures) -> list[report.Picture]:
    """The figures of a folder as parts of its report."""
    return [
        report.Picture(heading(name.replace("_", " ")), (out / "figures" / f"{name}.png").read_bytes(), caption)
        for name, (_, caption) in figures.items()
    ]


def page(study: Ablation, remarks: Sequence[str], parts: Sequence[report.Part], seconds: float) -> str:
    """The report as HTML."""
    title, *text = study.question.strip().split("\n\n")
    about = report.Text("About", [*(" ".join(paragraph.split()) for paragraph in text[:1]), *remarks])
    options, _ = settings(study.config)
    about_run = report.Settings("Settings", options | {"data": study.data.source, "seconds": round(seconds, 1)})
    return report.render(title, [about, *parts, about_run], subtitle=study.data.name)
