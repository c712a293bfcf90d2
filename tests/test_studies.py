"""The experiments on folds and repeats, small: tables and figures; test_experiments has what they refuse."""

import contextlib
import importlib
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import rows_of
from PIL import Image

from mil_jax.arrays import bags_from_arrays
from mil_jax.errors import InputError
from mil_jax.model import Prediction
from mil_jax.protocols import Folds, judge_folds, split_bags
from mil_jax.run import cross_validation, fit
from mil_jax.run.config import Compute
from mil_jax.run.folder import RunFolder, open_run
from mil_jax.run.processes import Interrupted
from mil_jax.run.saved import read_rows
from mil_jax.run.search import Search
from mil_jax.run.study import print_rows, summary_row
from mil_jax.training import FitConfig

classic: Any = importlib.import_module("classic_benchmarks")
colon: Any = importlib.import_module("colon")
paper: Any = importlib.import_module("paper_mnist_bags")

TINY = {"hidden": (8,), "attention_units": 4}
QUICK = {
    **TINY, "datasets": ("stand_in",), "fit": FitConfig(epochs=12, patience=20),
    "search": Search("standard", learning_rates=(0.02,), weight_decays=(0.0,), class_weights=False),
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("cache")


def run(script: Any, **options: Any) -> tuple[list[dict[str, str]], Path, str]:
    """Rows of results.csv, the folder, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as screen:
        out = script.main(script.Config(**options))
    return rows_of(out / "results.csv"), out, screen.getvalue()


OPTIONS = {
    **QUICK, "poolings": ("gated_attention", "instance_max"), "folds": 3, "repeats": 2,
    "compute": Compute(checkpoint_every=1),
}  # fmt: skip
GO_ON = Compute(resume=True)


@contextlib.contextmanager
def ticking() -> Iterator[None]:
    """Training goes by a clock that ticks when it is read, so that seconds are the same in all runs, too."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
        yield


@pytest.fixture(scope="module")
def whole(cache: Path, tables: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small benchmark that was not stopped: its folder, and what it printed."""
    with ticking():
        return run(classic, data_dir=tables, **OPTIONS, out=tmp_path_factory.mktemp("whole") / "run")[1:]


def test_classic_benchmarks(whole: tuple[Path, str], tables: Path) -> None:
    """A table of one's own stands under its own name and beside no published number."""
    out, screen = whole
    rows = rows_of(out / "results.csv")
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
        run(classic, data_dir=tables, **OPTIONS, out=out)


# ---- stopping and going on ----


class Killed(BaseException):
    """As if the process had been killed: nobody catches it."""


def die(*arguments: Any) -> None:
    raise Killed


def assert_same(out: Path, whole: Path) -> None:
    """The same rows, to the last digit, seconds included; the same figures; and nothing else is left."""
    names = ["results.csv", "figures/accuracy.png"]
    assert [name for name in names if (out / name).read_bytes() != (whole / name).read_bytes()] == []
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_killed_study_goes_on_where_it_stood(
    whole: tuple[Path, str], tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside a row, when it was trained, and when it was kept but not in results.csv; stopped in the next."""
    out, saved = tmp_path / "run", list[tuple[str, int]]()
    save, act = RunFolder.save_progress, {}

    def watched(folder: RunFolder, epoch: int, *arguments: Any) -> None:
        act.get((folder.progress.name, epoch), lambda: None)()
        saved.append((folder.progress.name, epoch))
        save(folder, epoch, *arguments)

    def sitting(resume: bool = True, **options: Any) -> list[tuple[str, int]]:
        saved.clear()
        with ticking():
            run(classic, **{**OPTIONS, "data_dir": tables, "out": out, "compute": Compute(resume=resume), **options})
        return saved

    monkeypatch.setattr(RunFolder, "save_progress", watched)
    act["row-001", 4] = die
    with pytest.raises(Killed):
        sitting(resume=False)
    assert not (out / "results.csv").exists()
    act.clear()
    for module, name, epochs in ((cross_validation, "judge_folds", range(4, 13)), (RunFolder, "write_csv", [])):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, die)
            sitting()
        assert saved == [("row-001", epoch) for epoch in epochs]
    assert not (out / "results.csv").exists() and len(read_rows(out)) == 1
    act["row-002", 4] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match="rows that were measured and the first 5 epochs of the next one; go on with"):
        sitting()
    assert saved == [("row-002", epoch) for epoch in range(1, 6)] and len(rows_of(out / "results.csv")) == 1
    act.clear()
    with pytest.raises(InputError, match="folds = 4: expected 3, with which the run was started"):
        sitting(folds=4)
    assert sitting() == [("row-002", epoch) for epoch in range(6, 13)]
    assert_same(out, whole[0])
    with pytest.raises(InputError, match="expected a run that was stopped: this one has come to its end"):
        sitting()


# Another process, which the system kills when it has written a part of a checkpoint.
ANOTHER = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path[:0] = sys.argv[1:3]
import test_studies
save = np.savez
def half(file, **arrays):
    if "row-002/000005" in file.name:
        file.write(b"PK")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, **arrays)
np.savez = half
with test_studies.ticking():
    test_studies.run(test_studies.classic, **test_studies.OPTIONS, data_dir=Path(sys.argv[3]), out=Path(sys.argv[4]))
"""


def test_killed_by_the_system(whole: tuple[Path, str], cache: Path, tables: Path, tmp_path: Path) -> None:
    here, out = Path(__file__).parent, tmp_path / "run"
    command = [sys.executable, "-c", ANOTHER, *map(str, (here, here.parent / "experiments", tables, out))]
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with ticking():
        run(classic, **{**OPTIONS, "compute": GO_ON}, data_dir=tables, out=out)
    assert "from the checkpoint of epoch 4" in (out / "log.txt").read_text()
    assert_same(out, whole[0])


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    """Numbers to the last digit, of their types; what is not a number, and what there is none of."""
    row = {"a": 0.1 + 0.2, "b": 3, "c": None, "d": "x, y", "e": math.nan, "f": np.float32(0.1), "g": np.int64(2)}
    with open_run(tmp_path, {"options": {}, "data": {}}, {}) as folder:
        folder.write_rows([row])
    (read,) = read_rows(tmp_path)
    assert repr(read) == repr(row | {"f": float(np.float32(0.1)), "g": 2})
    (tmp_path / "progress" / "rows.json").write_text("[{")
    with pytest.raises(InputError, match=r"expected the rows of a study in progress/rows\.json"):
        read_rows(tmp_path)


# ---- what they find ----


def test_a_setting_is_chosen_in_each_fold(
    whole: tuple[Path, str], tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the loss on its validation bags; the members of a setting have the numbers that they have alone."""
    seen = dict[str, np.ndarray]()

    def second(val_loss: np.ndarray, settings: int, fits: int) -> np.ndarray:
        seen["loss"] = val_loss.reshape(settings, fits)
        return np.ones(fits, int)

    search = replace(QUICK["search"], learning_rates=(0.1, 0.02))
    options = {**OPTIONS, "poolings": ("gated_attention",), "data_dir": tables, "search": search}
    names = ["chosen_standard_rate_0.1_decay_0", "chosen_standard_rate_0.02_decay_0"]
    (row,), _, screen = run(classic, **options, out=tmp_path / "free")
    assert sum(int(row[name]) for name in names) == 6 and "fits in which a setting was chosen" in screen
    with monkeypatch.context() as patch:
        patch.setattr(cross_validation.crossing, "choose_settings", second)
        (forced,), *_ = run(classic, **options, out=tmp_path / "forced")
    counts = [int((seen["loss"].argmin(axis=0) == setting).sum()) for setting in (0, 1)]
    assert [int(row[name]) for name in names] == counts and [forced.pop(name) for name in names] == ["0", "6"]
    alone = rows_of(whole[0] / "results.csv")[0]
    assert forced.pop("fits") == "12" and alone.pop("fits") == "6" and forced.pop("seconds") and alone.pop("seconds")
    assert forced == alone


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


def test_paper_mnist_bags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "datasets": ("mnist-sample",), "poolings": ("attention",), "train_bags": (4,), "val_bags": 4, "test_bags": 6,
        "repeats": 2, **TINY, "fit": FitConfig(epochs=1), "out": tmp_path / "run",
    }  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(Killed):  # when the row was kept, and the figure not drawn
        patch.setattr(paper, "draw_curves", die)
        run(paper, **options)
    rows, out, _ = run(paper, **options, compute=GO_ON)
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


def test_colon(tissue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"poolings": ("attention",), "folds": 2, "val_share": 0.3, "fit": FitConfig(epochs=1)}
    options |= {"data_dir": tissue, **TINY, "out": tmp_path / "run"}
    with monkeypatch.context() as patch, pytest.raises(Killed):  # without its picture, the row does not count
        patch.setattr(colon, "draw_image", die)
        run(colon, **options)
    (row,), out, screen = run(colon, **options, compute=GO_ON)
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
