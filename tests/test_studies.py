"""The experiments with repeats as a user runs them, small: tables, figures, what they refuse."""

import contextlib
import csv
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import commands_here
from PIL import Image

from mil_jax.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
classic: Any = importlib.import_module("classic_benchmarks")
colon: Any = importlib.import_module("colon")
paper: Any = importlib.import_module("paper_mnist_bags")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache folder, in which the compiled programs of all runs are kept; programs compile in less time."""
    with commands_here(tmp_path_factory.mktemp("cache"), quick=True):
        yield


def run(script: Any, **options: Any) -> tuple[list[dict[str, str]], Path, str]:
    """Rows of results.csv, the folder, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        out = script.main(script.Config(**options))
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file)), out, screen.getvalue()


def test_classic_benchmarks(tables: Path, tmp_path: Path):
    rows, out, screen = run(
        classic, data_dir=tables, datasets=("musk1",), poolings=("gated_attention", "instance_max"), folds=3, repeats=2,
        hidden=(8,), attention_units=4, epochs=12, learning_rate=0.02, out=tmp_path / "run",
    )  # fmt: skip
    assert [row["pooling"] for row in rows] == ["gated_attention", "instance_max"]
    for row in rows:
        assert float(row["auc"]) > 0.9, "an easy problem"
        assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"]) <= 1
        assert float(row["accuracy_se"]) >= 0
        assert int(row["fits"]) == 6
    assert "empty slots" in screen
    assert (out / "figures" / "accuracy.png").exists()
    config = json.loads((out / "config.json").read_text())
    assert len(config["data"]["musk1"]) == 64
    assert "chosen on validation bags" in screen
    with pytest.raises(InputError, match=r"it holds a run already: choose another folder$"):
        run(classic, data_dir=tables, datasets=("musk1",), folds=3, out=out)


def test_a_choice_on_the_test_folds_is_named(tables: Path, tmp_path: Path):
    """Labels that have nothing to do with the features: an honest choice cannot beat chance by much, this one does."""
    draw, lines = np.random.default_rng(1), (tables / "musk1.csv").read_text().splitlines()
    shuffled = draw.permutation(24) % 2
    cells = [line.split(",") for line in lines]
    (tmp_path / "musk1.csv").write_text("".join(f"{shuffled[int(c[1])]},{','.join(c[1:])}\n" for c in cells))
    quick = {
        "datasets": ("musk1",), "poolings": ("attention",), "folds": 3, "repeats": 3, "hidden": (8,),
        "attention_units": 4, "epochs": 12, "learning_rate": 0.02, "data_dir": tmp_path,
    }  # fmt: skip
    honest, *_ = run(classic, **quick, out=tmp_path / "honest")
    leaky, _, screen = run(classic, **quick, choose_on_test=True, out=tmp_path / "leaky")
    chosen = "accuracy_chosen_threshold"
    assert float(leaky[0][chosen]) > max(float(honest[0][chosen]), 0.6)
    assert "which is no result" in screen


def test_paper_mnist_bags(tmp_path: Path):
    rows, out, _ = run(
        paper, datasets=("mnist-sample",), poolings=("attention",), train_bags=(4,), val_bags=4, test_bags=6,
        repeats=2, hidden=(8,), attention_units=4, epochs=1, out=tmp_path / "run",
    )  # fmt: skip
    assert [int(row["train_bags"]) for row in rows] == [4]
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
    assert (out / "figures" / "auc_mnist-sample_10.png").exists()


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small images with a few nuclei each, half of them with an epithelial one."""
    folder, draw = tmp_path_factory.mktemp("colon"), np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = ["image,class,x,y\n"]
    for i in range(1, 9):
        Image.fromarray(draw.integers(0, 256, (60, 60, 3), np.uint8)).save(folder / "images" / f"img{i}.png")
        for nucleus in range(3):
            kind = "epithelial" if i % 2 and nucleus < 2 else "fibroblast"
            lines.append(f"img{i},{kind},{draw.integers(1, 60)},{draw.integers(1, 60)}\n")
    (folder / "nuclei.csv").write_text("".join(lines))
    return folder


def test_colon(tissue: Path, tmp_path: Path):
    rows, out, _ = run(
        colon, data_dir=tissue, poolings=("attention",), folds=2, val_share=0.3, hidden=(8,), attention_units=4,
        epochs=1, out=tmp_path / "run",
    )  # fmt: skip
    (row,) = rows
    assert {"precision", "recall", "f1", "nucleus_auc", "score_nucleus_auc", "pooled_nucleus_auc"} <= row.keys()
    with Image.open(out / "figures" / "image_attention.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 100


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (classic, {}, "data_dir = None"),
        (classic, {"data_dir": Path(), "datasets": ("musk9",)}, "datasets"),
        (classic, {"data_dir": Path(), "repeats": 0}, "repeats = 0: use at least 1"),
        (classic, {"data_dir": Path(), "poolings": ()}, "poolings"),
        (colon, {}, "data_dir = None"),
        (paper, {"mean_sizes": (7,)}, "mean_sizes"),
        (paper, {"train_bags": (1,)}, "train_bags"),
    ],
)
def test_what_cannot_be_run_is_refused(script: Any, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        run(script, **options)
