"""The experiments on folds and repeats, small: tables and figures; test_experiments has what they refuse."""

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import rows_of
from PIL import Image

from mil_jax.arrays import bags_from_arrays
from mil_jax.errors import InputError
from mil_jax.model import Prediction
from mil_jax.protocols import Folds, judge_folds, split_bags
from mil_jax.run.study import print_rows, summary_row
from mil_jax.training import FitConfig

classic: Any = importlib.import_module("classic_benchmarks")
colon: Any = importlib.import_module("colon")
paper: Any = importlib.import_module("paper_mnist_bags")

TINY = {"hidden": (8,), "attention_units": 4}
QUICK = {
    **TINY, "datasets": ("stand_in",), "fit": FitConfig(epochs=12, patience=20),
    "hyper": classic.HyperConfig(learning_rate=0.02, l2=None, class_weights=False, standardize=True),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("cache")


def run(script: Any, **options: Any) -> tuple[list[dict[str, str]], Path, str]:
    """Rows of results.csv, the folder, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        out = script.main(script.Config(**options))
    return rows_of(out / "results.csv"), out, screen.getvalue()


def test_classic_benchmarks(tables: Path, tmp_path: Path) -> None:
    """A table of one's own stands under its own name and beside no published number."""
    options = {"poolings": ("gated_attention", "instance_max"), "folds": 3, "repeats": 2, "out": tmp_path / "run"}
    rows, out, screen = run(classic, data_dir=tables, **QUICK, **options)
    assert [row["pooling"] for row in rows] == ["gated_attention", "instance_max"]
    for row in rows:
        assert float(row["auc"]) > 0.9, "an easy problem"
        assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"]) <= 1
        assert float(row["accuracy_se"]) >= 0 and int(row["fits"]) == 6
        assert row["dataset"] == "stand_in" and not row["published"]
    assert "empty slots" in screen and "chosen on validation bags" in screen and "published" not in screen
    assert (out / "figures" / "accuracy.png").exists()
    config = json.loads((out / "config.json").read_text())
    assert len(config["data"]["stand_in"]) == 64 and config["paths"] == {"data_dir": str(tables)}
    with pytest.raises(InputError, match="out"):
        run(classic, data_dir=tables, **QUICK, **options)


def test_a_choice_on_the_test_folds_is_named(tables: Path, tmp_path: Path) -> None:
    """Labels that have nothing to do with the features: an honest choice cannot beat chance by much, this one does."""
    draw, lines = np.random.default_rng(1), (tables / "stand_in.csv").read_text().splitlines()
    shuffled = draw.permutation(24) % 2
    cells = [line.split(",") for line in lines]
    (tmp_path / "stand_in.csv").write_text("".join(f"{shuffled[int(c[1])]},{','.join(c[1:])}\n" for c in cells))
    options = {**QUICK, "poolings": ("attention",), "folds": 3, "repeats": 3, "data_dir": tmp_path}
    honest, *_ = run(classic, **options, out=tmp_path / "honest")
    leaky, _, screen = run(classic, **options, choose_on_test=True, out=tmp_path / "leaky")
    chosen = "accuracy_chosen_threshold"
    assert float(leaky[0][chosen]) > max(float(honest[0][chosen]), 0.6)
    assert "which is no result" in screen


def test_paper_mnist_bags(tmp_path: Path) -> None:
    rows, out, _ = run(
        paper, datasets=("mnist-sample",), poolings=("attention",), train_bags=(4,), val_bags=4, test_bags=6,
        repeats=2, **TINY, fit=FitConfig(epochs=1), out=tmp_path / "run",
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


def test_colon(tissue: Path, tmp_path: Path) -> None:
    options = {"poolings": ("attention",), "folds": 2, "val_share": 0.3, "fit": FitConfig(epochs=1)}
    (row,), out, screen = run(colon, data_dir=tissue, **TINY, **options, out=tmp_path / "run")
    assert {"precision", "recall", "f1", "nucleus_auc", "score_nucleus_auc", "pooled_nucleus_auc"} <= row.keys()
    assert "nan" not in screen
    with Image.open(out / "figures" / "image_attention.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 100


# ---- rows ----


def test_no_error_is_shown_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [summary_row({"pooling": name}, {"auc": np.array([0.5])}) for name in ("attention", "instance_max")]
    print_rows("Test folds", rows, ("pooling",), ("auc",))
    printed = capsys.readouterr().out
    assert "│ 0.500 │" in printed and "nan" not in printed


def test_folds_are_put_together_bag_by_bag() -> None:
    """Two repeats of two folds; the score of a bag is 0.1 times its number plus 0.01 times its member's."""
    bags = bags_from_arrays([np.ones((1, 2), np.float32)] * 5, [0, 0, 1, 1, 1])
    test = np.array([[0, 3, -1], [1, 2, 4], [2, 0, 1], [4, 3, -1]])
    folds = Folds(test, test, test)
    score = np.where(test >= 0, 0.1 * test + 0.01 * np.arange(4)[:, None], 0.9)
    predicted = Prediction(*(np.stack([1 - score, score], axis=-1), score[..., None], score[..., None]))
    crossed = judge_folds(predicted, predicted, split_bags(bags, folds), folds)
    assert crossed.label.tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_allclose(crossed.probability, [[0, 0.11, 0.21, 0.3, 0.41], [0.02, 0.12, 0.22, 0.33, 0.43]])
    assert not crossed.called.any() and crossed.called_by_choice.mean() > 0.5  # at thresholds that suit the scores
    assert crossed.right.tolist() == [1, 1, 0, 0, 0]
    assert crossed.scores()["accuracy"].tolist() == [0.4, 0.4] and crossed.scores()["auc"].tolist() == [1, 1]


def test_an_empty_folder_name_is_refused() -> None:
    with pytest.raises(InputError, match="out"):
        classic.Config(out=Path())
