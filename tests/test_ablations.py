"""The ablations as a user runs them, small: what they leave, and that their numbers agree.

All share the shapes of their ensembles where they can, so that few programs are compiled.
"""

import contextlib
import dataclasses
import html
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rows_of
from PIL import Image

from mil_jax import comparison, datasets
from mil_jax.run import ablation, findings

# Eight members in all, each with as many steps in an epoch, and as many bags in each set: mostly one program.
BAGS, EPOCHS = 40, 2
SMALL: dict[str, dict[str, Any]] = {
    "gating": {"members": 8, "patience": 2}, "bag_size": {"members": 8, "sizes": (3,)},
    "regularization": {"members": 4, "l2": (0.0, 10.0), "measured_at": (1,)},
    "ensemble_size": {"members": 8, "largest": 4}, "digits": {"members": 2, "classes": (1, 0, 7, 8), "patience": 2},
    "imbalance": {"members": 2, "shares": (0.4,), "train_bags": BAGS // 2},
}  # fmt: skip
scripts: dict[str, Any] = {name: importlib.import_module(name) for name in SMALL}
POINTS = {"gating": 2, "bag_size": 2, "regularization": 4, "ensemble_size": 3, "digits": 4, "imbalance": 4}
FACTORS = {
    "gating": {"attention"}, "bag_size": {"size", "head"}, "regularization": {"l2", "epoch"},
    "ensemble_size": {"size"}, "digits": {"class"}, "imbalance": {"share", "treatment"},
}  # fmt: skip


def small(name: str, **more: Any) -> Any:
    """A script's config, small."""
    sizes = {"train_bags": BAGS, "val_bags": BAGS, "test_bags": BAGS, "epochs": EPOCHS}
    return scripts[name].Config(**sizes | SMALL[name] | more)


pytestmark = pytest.mark.usefixtures("cache")


@dataclasses.dataclass(frozen=True)
class Ended:
    """An ablation that came to its end: its folder, and what it printed."""

    path: Path
    printed: str

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(), parse_constant=pytest.fail)

    @property
    def results(self) -> list[dict[str, str]]:
        return rows_of(self.path / "results.csv")

    def column(self, measure: str, **factors: str) -> np.ndarray:
        """What the seeds scored at a point [S]."""
        return np.array([float(r[measure]) for r in self.results if all(r[f] == v for f, v in factors.items())])


def run(name: str, out: Path, **more: Any) -> Ended:
    """Runs an ablation in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert scripts[name].main(small(name, out=out, **more)) == out
    return Ended(out, printed.getvalue())


# ---- what they leave and say ----


@pytest.mark.parametrize("names", [[name for name in SMALL if name != "ensemble_size"], ["ensemble_size"]])
def test_ablations(names: list[str], tmp_path: Path) -> None:
    """One test for the scripts that share programs: however tests are dealt to processes, nothing is compiled twice."""
    for name in names:
        done = run(name, tmp_path / name / "run")
        check_folder(name, done)
        check_numbers(name, done)
        MORE_CHECKS[name](done)


def check_folder(name: str, done: Ended) -> None:
    """All files, figures with something on them, and the tables on screen and page, which asks for nothing else."""
    files = {"config.json", "results.csv", "summary.json", "figures", "report.html", "log.txt", ".lock"}
    assert {path.name for path in done.path.iterdir()} == files
    config = done.read("config.json")
    assert config["experiment"] == f"ablations/{name}"
    assert config["options"]["members"] == SMALL[name]["members"] and config["options"]["epochs"] == EPOCHS
    assert config["data"]["content_hash"] == datasets.load("mnist-sample").content_hash
    page, figures = (done.path / "report.html").read_text(), list((done.path / "figures").iterdir())
    assert page.startswith("<!DOCTYPE html>") and "http" not in page
    assert page.count("data:image/png") >= len(figures)
    for figure in figures:
        with Image.open(figure) as image:
            gray = np.asarray(image.convert("L"))
        assert min(gray.shape) >= 200 and gray.max() == 255 and gray.min() < 120
    for measure in small(name).measures:
        title = findings.heading(scripts[name].Config.labels[measure])
        assert f"\n{title}" in done.printed and title in html.unescape(page)
    assert done.printed.endswith(f"folder: {done.path}\n")
    assert "…" not in done.printed and "nan" not in done.printed


def check_numbers(name: str, done: Ended) -> None:
    """A tidy row for each seed of each point, and a table whose numbers are those of the rows."""
    results, factors = done.results, FACTORS[name]
    assert set(results[0]) >= factors | {"seed", *ablation.MEASURES}
    assert len({tuple(row[factor] for factor in factors) for row in results}) == POINTS[name]
    assert len({(*(row[factor] for factor in factors), row["seed"]) for row in results}) == len(results)
    for row in done.read("summary.json")["rows"]:
        of_point = [r for r in results if all(r[f] == str(row[f]) for f in factors)]
        values = np.array([float(r[row["measure"]]) for r in of_point if r[row["measure"]]])
        assert len(of_point) == row["seeds"] >= 2
        if not len(values):
            assert row["mean"] is None
            continue
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
        assert row["low"] - 1e-6 <= row["mean"] <= row["high"] + 1e-6
        assert row["standard_deviation"] == pytest.approx(values.std(ddof=1), rel=1e-4, abs=1e-6)
        if row["difference"] is not None:
            assert row["against"] and row["difference_low"] - 1e-6 <= row["difference"] <= row["difference_high"] + 1e-6


def row_of(done: Ended, measure: str, point: str) -> dict[str, Any]:
    return comparison.row_of(done.read("summary.json")["rows"], measure, point)


def check_gating(done: Ended) -> None:
    """Differences are paired by seed; tables show the measures that were asked for."""
    gated, plain = (done.column("loss", attention=name) for name in ("gated", "not gated"))
    row = row_of(done, "loss", "not gated")
    assert row["against"] == "gated" and row["difference"] == pytest.approx((plain - gated).mean(), rel=1e-4)
    chosen = run("gating", done.path.with_name("chosen"), measures=("positive_mass",))
    assert "Weight on positive instances" in chosen.printed and "Test AUC\n" not in chosen.printed
    assert chosen.results == done.results


def check_bag_size(done: Ended) -> None:
    """Of bags of 3 with one 1 at least, 1/3 and somewhat more of the instances are a 1."""
    chance = done.column("hit_by_chance", size="3", head="sum")
    assert ((chance >= 1 / 3) & (chance < 0.5)).all()
    np.testing.assert_array_equal(chance, done.column("hit_by_chance", size="3", head="concat"))


def check_regularization(done: Ended) -> None:
    """Strong L2 on few bags makes all weights equal, and a warning says so."""
    assert {row["epoch"] for row in done.results} == {"1", "2"}
    assert all(np.isfinite(done.column("train_loss", l2=l2)).all() for l2 in ("0.0", "10.0"))
    assert done.column("normalized_entropy", l2="10.0", epoch="2").mean() > 0.99
    assert any("collapsed for 4 of 4 seeds" in text for text in done.read("summary.json")["warnings"])
    assert "warning: L2 10, epoch" in (done.path / "log.txt").read_text()


def check_ensemble_size(done: Ended) -> None:
    """Large ensembles are compared with the mean of their own members."""
    alone, four = done.column("loss", size="1"), done.column("loss", size="4")
    assert len(alone) == 8 and len(four) == 2
    row = row_of(done, "loss", "4")
    assert row["difference"] == pytest.approx((four - alone.reshape(2, 4).mean(axis=1)).mean(), rel=1e-4)
    assert row["difference"] < 0, "the loss is convex"


def check_digits(done: Ended) -> None:
    """The map holds mean weights; the same seed gives the same results."""
    summary = done.read("summary.json")
    negative = np.array(summary["weight_by_class_negative_bags"], float)
    assert negative.shape == (4, 10)
    for row, positive in zip(negative, summary["classes"], strict=True):
        assert np.isnan(row[positive]) and not np.isnan(np.delete(row, positive)).any()
    assert 0.2 < np.nanmean(negative) < 0.45
    again = run("digits", done.path.with_name("again"))
    assert again.results == done.results
    for figure in (done.path / "figures").iterdir():
        assert (again.path / "figures" / figure.name).read_bytes() == figure.read_bytes()


def check_imbalance(done: Ended) -> None:
    """Every treatment changes something, from the same bags."""
    treatments = scripts["imbalance"].TREATMENTS
    assert len({tuple(done.column("loss", treatment=treatment)) for treatment in treatments}) == 4


MORE_CHECKS = {name: globals()[f"check_{name}"] for name in SMALL}


# ---- intervals, thresholds and repeated bags ----


def test_intervals_of_columns_of_different_lengths() -> None:
    rng = np.random.default_rng(0)
    long, short = rng.normal(size=30), np.array([1.0, np.nan, 2.0])
    mean, low, high = comparison.intervals([long, short, np.array([np.nan])], 0)
    assert mean[:2] == pytest.approx([long.mean(), 1.5], rel=1e-5) and np.isnan(mean[2])
    assert (low[1], high[1]) == (1.0, 2.0)
    assert low[0] < mean[0] < high[0] and high[0] - low[0] == pytest.approx(2 * 1.96 * long.std() / 30**0.5, rel=0.2)


def test_the_threshold_is_the_best_of_all() -> None:
    rng, best = np.random.default_rng(0), scripts["imbalance"].best_threshold
    for _ in range(50):
        score, label = rng.integers(0, 12, 30) / 12, (rng.random(30) < 0.3).astype(int)
        label[:2] = 0, 1

        def f1(threshold: float, score: Any = score, label: Any = label) -> float:
            called = score >= threshold
            return 2 * (called & (label == 1)).sum() / (called.sum() + label.sum())

        threshold = best(score, label)
        assert threshold in score and f1(threshold) == pytest.approx(max(map(f1, np.unique(score))))


def test_oversampling_leaves_no_bag_out_and_evens_the_classes() -> None:
    label = np.array([0, 0, 1, 0, 0, 0, 1, 0])
    index = scripts["imbalance"].oversampled(label)
    assert len(index) == 16 and set(index) == set(range(8)) and label[index].mean() == 0.5
    every = scripts["imbalance"].twice(label)
    assert len(every) == 16 and (np.bincount(every) == 2).all()
