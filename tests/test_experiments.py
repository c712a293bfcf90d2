"""The experiments as a user runs them, small: what they leave, that they repeat, how they stop, what they refuse."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_bits, command_here, rows_of
from PIL import Image

from mil_jax import datasets
from mil_jax.errors import RunError
from mil_jax.model import ModelConfig
from mil_jax.run import experiment, study
from mil_jax.run.config import Compute, fields_of
from mil_jax.run.folder import RunFolder
from mil_jax.run.saved import FinishedRun, load_finished, load_run, read_log, saved_options
from mil_jax.sampling import BagsConfig
from mil_jax.training import FitConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path[:0] = [str(EXPERIMENTS), str(EXPERIMENTS / "ablations")]
ABLATIONS = ("gating", "bag_size", "regularization", "ensemble_size", "digits", "imbalance")
RUNS = ("mnist_bags", "own_bags", "classic_benchmarks", "colon", "paper_mnist_bags", "sweep", "seed_spread")
SCRIPTS: dict[str, Any] = {name: importlib.import_module(name) for name in (*RUNS, *ABLATIONS)}
mnist_bags, sweep, seed_spread = SCRIPTS["mnist_bags"], SCRIPTS["sweep"], SCRIPTS["seed_spread"]
report_command: Any = importlib.import_module("mil_jax.report.__main__")

# As many bags in each set, so that one program judges them all.
MEMBERS, EPOCHS, BAGS, BAG_SIZE = 2, 10, 40, 3
SMALL: dict[str, Any] = {
    "members": MEMBERS, "bags": BagsConfig(train_bags=BAGS, val_bags=BAGS, test_bags=BAGS),
    "fit": FitConfig(epochs=EPOCHS), "model": ModelConfig(attention_units=8),
}  # fmt: skip
CONFIG = mnist_bags.Config(**SMALL, plot_bags=1)
FIGURES = {
    "attention_statistics", "bags_after_training", "bags_before_training", "confusion_matrix", "learning_curves",
    "precision_recall_curve", "reliability", "reliability_of_members", "roc_curve",
}  # fmt: skip
SAME = ("metrics.jsonl", "metrics.csv", "members.csv", "attention.npz", *(f"figures/{name}.png" for name in FIGURES))


def options_of(config: Any, **more: object) -> list[str]:
    """The command line that says what a config says, where it differs from the defaults."""
    default = {name: value for name, value, _ in fields_of(type(config)())}
    changed = {name: value for name, value, _ in fields_of(config) if value != default[name]} | more
    return [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", str(value))]


pytestmark = pytest.mark.usefixtures("cache")


def run_here(script: Any, config: Any, out: Path) -> str:
    """Runs an experiment in this process; what it printed comes back."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert script.main(dataclasses.replace(config, out=out)) == out
    return printed.getvalue()


def results_of(path: Path) -> dict[str, Any]:
    """The summary without the seconds."""
    content = json.loads((path / "summary.json").read_text(), parse_constant=pytest.fail)
    return {name: value for name, value in content.items() if name != "seconds"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The small experiment, run in this process: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("here") / "run"
    return out, run_here(mnist_bags, CONFIG, out)


@pytest.fixture(scope="module")
def here(printed: tuple[Path, str]) -> FinishedRun:
    return load_finished(printed[0])


class Reached(BaseException):
    """A command has come this far: nobody catches it."""


# ---- what it leaves and says ----


def test_config_and_summary_have_what_is_documented(here):
    decide_nothing = {"out", "plot_bags", "report", "tensorboard", "data_dir", "manual_dir", *vars(Compute())}
    options = {name: value for name, value, _ in fields_of(CONFIG) if name not in decide_nothing}
    assert here.config["options"] == json.loads(json.dumps(options))
    assert here.config["data"] == {"name": "mnist-sample", "content_hash": datasets.load("mnist-sample").content_hash}
    assert {"python", "jax", "numpy", "flax", "optax", "mil_jax", "device"} <= set(here.config["versions"])
    of_the_ensemble = {"test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc"}
    of_a_member = of_the_ensemble | {"seed", "best_epoch", "epochs_run", "parameters"} | {
        f"{name}_{of}" for name in ("train", "val", "test") for of in ("loss", "accuracy", "auc", "precision")
    }  # fmt: skip
    assert [row["seed"] for row in here.summary.members] == list(range(MEMBERS))
    for row in (*here.summary.members, here.summary.mean):
        assert set(row) >= of_a_member
    assert set(here.summary.ensemble) >= of_the_ensemble
    assert {"train_*", "val_*", "test_*"} <= set(here.summary.which_is_which)
    assert set(here.summary.seconds) == {"data", "compile", "train", "evaluate", "plots", "total"}
    assert here.summary.seconds["total"] >= here.summary.seconds["train"] > 0


def test_the_numbers_agree_with_one_another(here):
    """Summary, log and attention file tell the same story; so do groups of bags and sizes of ensembles."""
    arrays, whole, details = here.arrays, here.summary.ensemble, here.summary.test_details
    probability, label, weight = arrays["probability"], arrays["label"], arrays["attention"]
    top = weight.argmax(axis=-1)[..., None]
    hit = np.take_along_axis(np.broadcast_to(arrays["instance_label"], weight.shape), top, axis=-1)[..., 0]
    for i, row in enumerate(here.summary.members):
        loss = -np.log(np.take_along_axis(probability[i], label[:, None], axis=-1)).mean()
        assert row["test_accuracy"] == pytest.approx((probability[i].argmax(axis=-1) == label).mean(), rel=1e-6)
        assert row["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["instance_hit_at_1"] == pytest.approx(hit[i, label == 1].mean(), rel=1e-6)
        curve = [line["val_loss"] for line in here.log if line["member"] == i]
        assert (row["epochs_run"], row["best_epoch"]) == (len(curve), 1 + int(np.argmin(curve)))
        assert row["best_val_loss"] == min(curve)
    together = probability.mean(axis=0).argmax(axis=-1) == label
    assert whole["test_accuracy"] == pytest.approx(together.mean(), rel=1e-6)
    mean = np.mean([row["test_loss"] for row in here.summary.members])
    assert here.summary.mean["test_loss"] == pytest.approx(mean, rel=1e-6)
    of_positive = {row["statistic"]: row for row in details["attention"] if row["bags"] == "positive"}
    for name in ("entropy", "hit_at_1", "instance_auc"):
        row = of_positive[name]
        assert row["mean"] == pytest.approx(whole[f"positive_bags_{name}"], rel=1e-5)
        assert row["low"] <= row["mean"] <= row["high"] and row["count"] == label.sum()
    gains = {(row["size"], row["score"]): row["mean"] for row in details["ensemble_size"]}
    assert gains[MEMBERS, "bags_loss"] == pytest.approx(whole["test_loss"], rel=1e-5)
    assert {row["statistic"] for row in details["agreement"]} >= {"rank_agreement", "jensen_shannon", "top_stability"}
    assert 0 <= details["disagreement"]["votes"] <= 0.5


def test_the_log_and_the_arrays_have_what_is_documented(here):
    expected = [(epoch, member) for epoch in range(1, EPOCHS + 1) for member in range(MEMBERS)]
    assert [(line["epoch"], line["member"]) for line in here.log] == expected
    wanted = {"train_loss", "val_loss", "val_accuracy", "positive_bags_hit_at_1", "positive_bags_positive_mass"} | {
        f"{label}_bags_{name}"
        for label in ("positive", "negative")
        for name in ("normalized_entropy", "effective_instances", "largest_weight")
    }
    assert all(set(line) >= wanted for line in here.log)
    arrays, per_bag = here.arrays, (BAGS, BAG_SIZE)
    assert {name: array.shape for name, array in arrays.items()} == {
        "attention": (MEMBERS, *per_bag), "probability": (MEMBERS, BAGS, 2), "rows": per_bag, "mask": per_bag,
        "label": (BAGS,), "instance_label": per_bag,
    }  # fmt: skip
    for name in ("attention", "probability"):
        np.testing.assert_allclose(arrays[name].sum(axis=-1), 1, atol=1e-6)
    assert (arrays["label"] == arrays["instance_label"].max(axis=-1)).all() and set(arrays["label"]) == {0, 1}


def test_tables_and_figures(here):
    """The log and the members as CSV say what the JSON says; no figure is blank."""
    members = [row | {"warnings": "; ".join(row["warnings"])} for row in here.summary.members]
    for name, rows in (("metrics.csv", here.log), ("members.csv", members)):
        expected = [{column: "" if value is None else str(value) for column, value in row.items()} for row in rows]
        assert rows_of(here.path / name) == expected
    assert {path.stem for path in (here.path / "figures").iterdir()} == FIGURES
    for path in (here.path / "figures").iterdir():
        with Image.open(path) as image:
            gray = np.asarray(image.convert("L"))
        assert min(gray.shape) >= 200 and gray.max() == 255 and gray.min() < 100
        assert 0.005 < np.mean(gray < 250) < 0.9


def test_it_says_what_it_does(printed, here):
    text = printed[1]
    for name, part in mnist_bags.draw_bags(CONFIG, datasets.load("mnist-sample"))._asdict().items():
        positive = int(part.label.sum())
        assert re.search(r" *│ *".join(map(str, (name, BAGS, positive, BAGS - positive))), text)
    assert re.search(rf"total *│ *│ *{here.summary.mean['parameters']:,}", text)
    assert text.count("\nepoch ") == EPOCHS
    for row in ("member 0", "member 1", "mean of members", "standard deviation", "ensemble"):
        assert f"│ {row}" in text
    assert re.search(rf"│ ensemble .*{here.summary.ensemble['test_accuracy']:.4f}", text)
    assert text.endswith(f"run folder: {here.path}\n")


def test_the_report_and_that_it_is_made_again(here, tmp_path):
    """The same page, from the run folder and the data set alone; with event files where asked for."""
    page = (here.path / "report.html").read_text()
    assert page.count("<article ") == BAGS and page.count("<i ") == BAGS * BAG_SIZE
    assert page.count('wrong" id=') == round(BAGS * (1 - here.summary.ensemble["test_accuracy"]))
    copy = Path(shutil.copytree(here.path, tmp_path / here.path.name))
    (copy / "report.html").unlink()
    assert command_here(report_command, str(copy), "--tensorboard") == (0, [f"report: {copy / 'report.html'}"])
    assert (copy / "report.html").read_text() == page
    assert {path.name for path in (copy / "tensorboard").iterdir()} == {"mean", "member_000", "member_001"}


def test_every_choice_at_once(tmp_path):
    """Another head, no gate, draws of bags that differ by member, batches; and event files, and no report."""
    options = options_of(
        dataclasses.replace(CONFIG, plot_bags=0), epochs=1, head="sum", pooling="attention", batch_size=7, vary="bags",
        positive_class=9, out=tmp_path,
    )  # fmt: skip
    assert command_here(mnist_bags, *options, "--no-class-weights", "--tensorboard", "--no-report")[0] == 0
    one, other = load_finished(tmp_path).summary.members
    assert one["train_loss"] != other["train_loss"]
    assert one["parameters"] == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 8 + 8 + 64 * 2 + 2
    assert np.isfinite([one["test_loss"], other["test_loss"]]).all()
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"mean", "member_000", "member_001"}
    assert not (tmp_path / "report.html").exists()
    assert saved_options(tmp_path)["tensorboard"] and not saved_options(tmp_path)["report"]


# ---- stopping and going on ----


@contextlib.contextmanager
def resumed_until(epoch: int, out: Path, cache: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Starts `python experiments/mnist_bags.py` as a user would, and waits for an epoch; it ends with the test."""
    with subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / "mnist_bags.py"), "--out", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cache,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    ) as process:  # fmt: skip
        late = threading.Timer(300, process.kill)  # which ends the waiting, too
        late.start()
        try:
            assert process.stdout and process.stderr
            numbers = (re.match(r"epoch +(\d+)/", line) for line in process.stdout)
            if not any(number and int(number[1]) >= epoch for number in numbers):
                pytest.fail(f"epoch {epoch} never ended: {process.stderr.read()}")
            yield process
        finally:
            late.cancel()
            process.kill()  # does nothing where it has ended


def test_stopped_killed_and_resumed_it_ends_as_if_nothing_had_happened(here, cache, tmp_path, monkeypatch):
    """Stopped by Ctrl-C; resumed and killed; resumed and interrupted after training; resumed: the same bytes."""
    out, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    whole = (here.path / "metrics.jsonl").read_bytes()
    with resumed_until(2, out, cache, *options_of(CONFIG)) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    epochs = len(read_log(out)) // MEMBERS
    assert process.returncode == 130 and 2 <= epochs < EPOCHS
    assert err.splitlines()[-1] == (
        f"stopped: {out} keeps the log of {epochs} epochs and, in checkpoint/, the best parameters so far; "
        "go on with --resume"
    )
    assert whole.startswith(log.read_bytes())

    resume = partial(command_here, mnist_bags, "--resume", "--out", str(out))
    with resumed_until(6, out, cache, "--resume") as process:
        process.send_signal(signal.SIGSTOP)  # so that it is running for as long as it takes to be in its way
        status, lines = resume()
    assert status == 2 and lines[-1].startswith(
        f"error: --out {out}: expected another folder: another process is running in it"
    )
    assert len(read_log(out)) >= 6 * MEMBERS and whole.startswith(log.read_bytes())

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment.summary, "judge", interrupt)
        status, lines = resume()
    assert (status, lines[-1]) == (130, f"stopped: {out} keeps what was complete; go on with --resume")
    assert log.read_bytes() == whole

    assert resume()[0] == 0
    assert [name for name in SAME if (out / name).read_bytes() != (here.path / name).read_bytes()] == []
    assert results_of(out) == results_of(here.path)
    assert_same_bits(load_run(out).members.params, load_run(here.path).members.params)
    assert not (out / "progress").exists()
    notes = [line.split("  ", 1)[1] for line in (out / "log.txt").read_text().splitlines()]
    assert notes[0] == "started" and notes.count("resumed") == 3
    assert sum(note.startswith("from the checkpoint of epoch") for note in notes) == 3
    before = sorted(out.rglob("*"))
    status, lines = resume()
    assert status == 2 and "this one has come to its end" in lines[0] and sorted(out.rglob("*")) == before


# ---- the others that train on digits ----


def test_sweep(here, tmp_path):
    """The point is chosen on validation bags; one whose seeds diverge is named, in no mean, and never the best."""
    out, config = tmp_path / "run", sweep.Config(**SMALL | {"members": 1}, learning_rates=(1e-3,), l2=(1e38, 0.01))
    text = run_here(sweep, dataclasses.replace(config, one_by_one=True), out)
    assert json.loads((out / "summary.json").read_text())["seconds"]["one_by_one"] > 0
    rows, content = rows_of(out / "results.csv"), results_of(out)
    assert [(row["learning_rate"], row["l2"]) for row in rows] == [("0.001", "1e+38"), ("0.001", "0.01")]
    assert [row["diverged"] for row in rows] == ["1", "0"] and rows[0]["val_loss"] == rows[0]["test_accuracy"] == ""
    assert content["chosen"] == content["grid"][1] and "learning rate 0.001, L2 0.01; there" in text
    assert content["chosen"]["test_loss"] == pytest.approx(here.summary.members[0]["test_loss"], rel=1e-6)
    assert "warning: learning rate 0.001, L2 1e+38: 1 seeds diverged" in text and "nan" not in text
    assert {path.stem for path in (out / "figures").iterdir()} == {"val_loss", "normalized_entropy"}
    line = next(line for line in text.splitlines() if "1e+38" in line and "│" in line)
    assert line.count("–") == 5
    with pytest.raises(RunError, match="diverged at all points"):
        run_here(sweep, dataclasses.replace(config, l2=(1e38,)), tmp_path / "all")


def test_seed_spread(here, tmp_path, monkeypatch):
    """Each ensemble leaves a run folder of its own; the members are those of mnist_bags.

    Killed in the second ensemble, it trains that to its end, and the first one not again.
    """
    config = seed_spread.Config(**SMALL, vary=("order", "init,order", "bags"))
    save = RunFolder.save_progress

    def die(run: RunFolder, epoch: int, *arguments: Any) -> None:
        if (run.path.name, epoch) == ("init-order", 6):
            raise Reached
        save(run, epoch, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Reached):
        patch.setattr(RunFolder, "save_progress", die)
        run_here(seed_spread, config, tmp_path / "run")
    text = run_here(seed_spread, dataclasses.replace(config, compute=Compute(resume=True)), tmp_path / "run")
    notes = {name: (tmp_path / "run" / name / "log.txt").read_text() for name in ("order", "init-order")}
    assert "resumed" not in notes["order"] and "from the checkpoint of epoch 5" in notes["init-order"]
    rows = results_of(tmp_path / "run")["rows"]
    assert len(rows) == 3 * len(seed_spread.SCORES)
    runs = {name: load_finished(tmp_path / "run" / name).summary for name in ("order", "init-order", "bags")}
    assert runs["init-order"].members == here.summary.members
    for row in rows:
        values = [member[row["score"]] for member in runs[row["varied"].replace(",", "-")].members]
        assert row["mean"] == pytest.approx(np.mean(values)) and row["low"] <= row["standard_deviation"] <= row["high"]
        assert row["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
        assert row["varied"] in text


# ---- what they refuse ----

NEEDS: dict[str, list[str]] = {"classic_benchmarks": ["--data-dir", "."], "colon": ["--data-dir", "."]}
REFUSED = [
    ("mnist_bags", "--bag-size 100000"), ("mnist_bags", "--positive-class 11"), ("mnist_bags", "--train-bags -1"),
    ("mnist_bags", "--dataset mnits"), ("mnist_bags", "--dataset mnist --manual-dir /proc/nothing"),
    ("mnist_bags", "--devices 99"), ("mnist_bags", "--vary weather"), ("mnist_bags", "--coordinator a:1"),
    ("mnist_bags", "--seed -1"), ("mnist_bags", "--epochs 0"), ("mnist_bags", "--train-bags 0"),
    *(("classic_benchmarks", f"--datasets stand_in {option}") for option in ("--folds 1", "--folds 99",
      "--val-share 0.99", "--learning-rates 0.0", "--learning-rates nan", "--repeats 0", "--data-dir None",
      "--poolings")),
    ("classic_benchmarks", "--datasets nothing"), ("colon", "--data-dir /dev/null"), ("colon", "--dropout 1.0"),
    ("colon", "--data-dir None"), ("paper_mnist_bags", "--datasets foo"), ("paper_mnist_bags", "--mean-sizes 7"),
    ("paper_mnist_bags", "--train-bags 1"), ("sweep", "--dataset foo"), ("sweep", "--learning-rates nan"),
    ("sweep", "--l2 inf"), ("sweep", "--l2 -1.0"), ("seed_spread", "--dataset foo"), ("seed_spread", "--members 1"),
    ("seed_spread", "--vary weather"), ("gating", "--positive-class 10"), ("bag_size", "--sizes 3 3"),
    ("bag_size", "--sizes 99999"), ("bag_size", "--sizes"), ("bag_size", "--positive-share 1.0"),
    ("regularization", "--l2 -0.1"), ("ensemble_size", "--members 8 --largest 5"), ("digits", "--classes 1 10"),
    ("digits", "--classes 1"), ("imbalance", "--shares 0.0"), ("imbalance", "--shares 0.001"),
    *((name, f"--{option}") for name in ABLATIONS
      for option in ("dataset foo", "members 1", "measures", "measures auc acu", "measures weather")),
    ("own_bags", "--folds 99"), ("own_bags", "--repeats 0"), ("own_bags", "--holdout 0.7"),
    ("own_bags", "--learning-rates nan"), ("own_bags", "--features /proc/nothing"),
    *((name, "--resume") for name in SCRIPTS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), REFUSED, ids=[" ".join(case) for case in REFUSED])
def test_a_refused_option_leaves_no_folder(name, options, tables, tmp_path):
    """One line that names the value, exit status 2, and nothing written, so that the corrected command runs."""
    needs = [word if word != "." else str(tables) for word in NEEDS.get(name, [])]
    status, lines = command_here(SCRIPTS[name], *needs, *options.split(), "--out", str(tmp_path / "run"))
    option, *values = options.split("--")[-1].split()
    refused = re.match(r"error: (?:--)?(\S+) (.*): expected ", lines[-1])
    assert status == 2 and refused and refused[1] in (option, "dataset", "bag_size"), lines
    assert not values or values[-1] in refused[2]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_taken_stays_as_it_is(here, tmp_path):
    (tmp_path / "file").write_text("something")
    for script in SCRIPTS.values():
        for out in (here.path, tmp_path / "file", tmp_path / "file" / "run"):
            status, lines = command_here(script, *NEEDS.get(script.__name__, []), "--out", str(out))
            assert status == 2 and len(lines) == 1 and lines[0].startswith(f"error: --out {out}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_says_every_option_and_its_default():
    status, lines = command_here(mnist_bags, "--help")
    text, names = re.sub(r"[\s│]+", " ", " ".join(lines)), [name for name, *_ in fields_of(CONFIG)]
    assert status == 0 and text.count("(default: ") == len(names)
    assert all(f"--{name.replace('_', '-')}" in text for name in names)


# ---- what people type by mistake ----

NONSENSE = (
    "", " ", "nan", "-1", "0", "inf", "1e30", "x", "99999999999999999999", "/dev/null", "None", "\udcff", "x" * 300,
    "[1]", "~nobody/x",
)  # fmt: skip
CALLS = 200  # of the 6,000 that there are


def test_nonsense_is_refused_in_words_or_taken(tmp_path, monkeypatch):
    """Any option of any script with any nonsense: exit status 2 without a traceback, or the run would begin."""

    def reach(*args: Any) -> None:
        raise Reached

    monkeypatch.chdir(tmp_path)
    for module in (study, experiment, sweep):
        monkeypatch.setattr(module, "start_jax", reach)
    options = [(script, name) for script in SCRIPTS.values() for name, *_ in fields_of(script.Config())]
    cases = [(script, name, value) for script, name in options for value in NONSENSE]
    answers = set()
    for script, name, value in random.Random(0).sample(cases, CALLS):
        try:
            status, lines = command_here(script, *NEEDS.get(script.__name__, []), f"--{name.replace('_', '-')}", value)
        except Reached:
            status, lines = 0, []
        assert status in (0, 2) and "Traceback" not in " ".join(lines), (script.__name__, name, value)
        answers.add(status)
    assert answers == {0, 2} and not any(tmp_path.iterdir())
