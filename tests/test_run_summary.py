"""A run of one's own bags, from the bags to the folder and back: what it holds, says, and does of members that diverge.

The bags are of features, of three classes and of several sizes.
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_bits, message_of, rows_of

import mil_jax as mil
from mil_jax.errors import RunError
from mil_jax.run import experiment, screen
from mil_jax.run import fit as run_fit
from mil_jax.run.config import Compute
from mil_jax.run.processes import Interrupted
from mil_jax.run.saved import load_finished
from mil_jax.run.summary import DIVERGED, Summary
from mil_jax.text import Table

CLASSES = ("benign", "grade 1", "grade 2")


def bags_of(seed: int) -> mil.Bags:
    """18 bags of 2 to 4 instances of 5 features, one of them a million times as large; each class has its direction."""
    draw, labels = np.random.default_rng(seed), np.arange(18) % 3
    bags = [draw.normal(size=(2 + i % 3, 5)) * [1e6, 1, 1, 1, 1] for i in range(18)]
    for bag, label in zip(bags, labels, strict=True):
        bag[0, 1 + label] += 4
    return mil.bags_from_arrays([bag.astype(np.float32) for bag in bags], labels)


CONFIG = mil.RunConfig(
    members=2, model=mil.ModelConfig(hidden=(6,), attention_units=4, head="sum"), fit=mil.FitConfig(epochs=4),
    hyper=mil.HyperConfig(learning_rate=0.02, standardize=True), compute=Compute(devices=1), plot_bags=0,
)  # fmt: skip
PROBLEM = mil.Problem("tissue", mil.Splits(bags_of(1), bags_of(2), bags_of(3)), CLASSES)


pytestmark = pytest.mark.usefixtures("cache")


def run(out: Path, rates: tuple[float, ...] = (), **changes: Any) -> str:
    """Runs in a folder, with a learning rate for each member where given; what was printed comes back."""
    printed, make_hyper = io.StringIO(), experiment.make_hyper

    def with_rates(*args: Any) -> Any:
        hyper = make_hyper(*args)
        return dataclasses.replace(hyper, learning_rate=jnp.array(rates, jnp.float32)) if rates else hyper

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(experiment, "make_hyper", with_rates)
        assert mil.run_bags(dataclasses.replace(CONFIG, out=out, **changes), PROBLEM) == out
    return printed.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, which was moved afterwards, and what it printed."""
    folder = tmp_path_factory.mktemp("own")
    printed = run(folder / "run")
    return Path(shutil.move(folder / "run", folder / "moved")), printed


FIGURES = {
    "attention_statistics", "confusion_matrix", "learning_curves", "one_against_rest", "reliability",
    "reliability_of_members",
}  # fmt: skip
FILES = {
    "config.json", "metrics.jsonl", "metrics.csv", "summary.json", "members.csv", "attention.npz", "report.html",
    "log.txt", ".lock", "figures", "checkpoint",
}  # fmt: skip


def test_the_folder_is_complete(whole):
    """And says what the bags were, in the words of whoever made them."""
    path, printed = whole
    assert {file.name for file in path.iterdir()} == FILES
    assert {file.stem for file in (path / "figures").iterdir()} == FIGURES
    config = json.loads((path / "config.json").read_text())
    assert (config["experiment"], config["data"]["name"], config["classes"]) == ("own_bags", "tissue", list(CLASSES))
    assert len(config["data"]["content_hash"]) == 64 and config["instances"] == {"shape": [5], "pixels": False}
    page = (path / "report.html").read_text()
    for name in (*CLASSES, "tissue"):
        assert name in printed and name in page


def test_loaded_from_elsewhere_it_predicts_the_same(whole):
    """The standardiser is part of the run: without it, a feature of a million would decide everything."""
    loaded, arrays = mil.load_run(whole[0]), load_finished(whole[0]).arrays
    assert loaded.class_names == CLASSES and loaded.members.scaler is not None
    predicted = mil.predict(loaded.model, loaded.members, PROBLEM.splits.test)
    np.testing.assert_allclose(predicted.probability, arrays["probability"], atol=1e-6)
    np.testing.assert_allclose(predicted.attention, arrays["attention"], atol=1e-6)
    np.testing.assert_array_equal(arrays["mask"], PROBLEM.splits.test.mask)
    assert loaded.summary and loaded.summary.ensemble["test_accuracy"] > 0.6


def test_interrupted_and_resumed_it_ends_with_the_same_bits(whole, tmp_path, monkeypatch):
    out, text = tmp_path / "run", screen.losses_text
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="log of 1 epochs"):
        patch.setattr(run_fit, "losses_text", lambda info: os.kill(os.getpid(), signal.SIGTERM) or text(info))
        run(out)
    other = dataclasses.replace(PROBLEM, splits=PROBLEM.splits._replace(val=bags_of(4)))
    go_on = dataclasses.replace(CONFIG, out=out, compute=Compute(devices=1, resume=True))
    assert "the data that the run was started with" in message_of(mil.run_bags, go_on, other)
    run(out, compute=go_on.compute)
    for name in FILES - {".lock", "log.txt", "config.json", "summary.json", "report.html", "figures", "checkpoint"}:
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    one, same = load_finished(out).summary, load_finished(whole[0]).summary
    assert dataclasses.replace(one, seconds={}) == dataclasses.replace(same, seconds={})
    assert_same_bits(vars(mil.load_run(out).members)["params"], mil.load_run(whole[0]).members.params)


# ---- members that diverge ----


def test_a_member_that_diverged_is_named_and_counts_nowhere(tmp_path):
    printed = run(tmp_path / "run", rates=(0.02, 1e30), report=False)
    summary, arrays = load_finished(tmp_path / "run").summary, load_finished(tmp_path / "run").arrays
    good, gone = summary.members
    assert (good["diverged"], gone["diverged"], gone["warnings"]) == (False, True, [DIVERGED])
    assert gone["test_loss"] is None and np.isnan(arrays["probability"][1]).all()
    for name in ("test_loss", "test_accuracy", "best_val_loss", "instance_auc"):
        assert summary.mean[name] == good[name] and summary.standard_deviation[name] is None
    for name in ("test_loss", "test_auc", "val_accuracy"):
        assert summary.ensemble[name] == pytest.approx(good[name], rel=1e-6)
    assert [row["diverged"] for row in rows_of(tmp_path / "run" / "members.csv")] == ["False", "True"]
    line = next(line for line in printed.splitlines() if "member 1" in line)
    assert "diverged" in line and line.count("–") == 5
    assert "1 of 2 members diverged: they are in no mean and not in the ensemble" in printed
    assert f"warning: Member 1: {DIVERGED}" in printed


def test_where_all_diverged_the_folder_is_complete_and_the_run_fails(tmp_path):
    with pytest.raises(RunError, match=r"training diverged in all members; .* try a lower learning rate"):
        run(tmp_path / "run", rates=(1e30, 1e30))
    finished = load_finished(tmp_path / "run")
    assert {file.name for file in finished.path.iterdir()} == FILES
    assert all(row["diverged"] for row in finished.summary.members) and finished.summary.mean["test_loss"] is None


# ---- what a summary says ----


def test_only_so_many_members_are_shown_and_warnings_name_theirs():
    rows = [{"seed": i, "test_loss": 0.5, "warnings": ["Odd."] if i else []} for i in range(3)]
    summary = Summary(rows, {"test_loss": 0.5}, {}, {})
    table = summary.results_table(2)
    assert [row[0] for row in table.rows] == [
        "member 0", "member 1", "mean of members", "standard deviation", "ensemble"
    ]  # fmt: skip
    assert table.caption == "the first 2 of 3 members; summary.json has all"
    assert summary.warnings() == ["Member 1, 2: Odd."]
    assert [row["warnings"] for row in summary.rows()] == ["", "Odd.", "Odd."]


# ---- the screen ----


def test_the_stopwatch_adds_up(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = screen.Stopwatch()
    for _ in range(2):
        with watch.phase("plots"):
            pass
    watch.add("compile", 0.5)
    assert watch.read() == {"plots": 6.0, "compile": 0.5, "total": 20.0}


def test_the_screen_is_plain_where_there_is_no_terminal(capsys, monkeypatch):
    rows = [("train", 1000, 0.12345, True), ("test", 20, float("nan"), "sum")]
    screen.print_table(Table("Results", ("set", "bags", "loss", "more"), rows, "A caption"))
    with screen.epoch_progress(20) as show:
        show(1, "val loss 0.5" + "0" * 200)
        show(2, "val loss 0.4")
    screen.say("run folder: " + "deep/" * 50 + "[red]")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Results" and "A caption" in lines
    assert "│ train │ 1,000 │ 0.1235 │ yes  │" in lines and "│ test  │    20 │      – │ sum  │" in lines
    assert "epoch   1/20  val loss 0.5" + "0" * 200 in lines and "epoch   2/20  val loss 0.4" in lines
    assert lines[-1] == "run folder: " + "deep/" * 50 + "[red]"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    screen.say("hello")  # of several processes only the first one prints
    assert capsys.readouterr().out == ""
