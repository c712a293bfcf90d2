"""The experiment as a user runs it, small: what it leaves, that it repeats, how it stops, and what it refuses.

One run in this process and one as a command are compared file by file; what is cheap is checked in this process.
"""

import contextlib
import csv
import dataclasses
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import commands_here
from mil_jax.cli import Compute
from PIL import Image

from mil_jax import cli, datasets, ensemble, runs
from mil_jax.bags import Splits

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
mnist_bags: Any = importlib.import_module("mnist_bags")
report_command: Any = importlib.import_module("mil_jax.report.__main__")

# As many bags in each set, so that one program judges them all.
MEMBERS, EPOCHS, BAGS, BAG_SIZE = 2, 10, 40, 3
SMALL = mnist_bags.Config(
    members=MEMBERS, train_bags=BAGS, val_bags=BAGS, test_bags=BAGS, epochs=EPOCHS, attention_units=8, plot_bags=1
)  # fmt: skip

FIGURES = {
    "attention_statistics", "bags_after_training", "bags_before_training", "confusion_matrix", "learning_curves",
    "precision_recall_curve", "reliability", "reliability_of_members", "roc_curve",
}  # fmt: skip

# What the issue asks of `summary.json`, at least.
OF_A_MEMBER = {
    "seed", "best_epoch", "epochs_run", "parameters", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "test_auc", "instance_hit_at_1", "instance_auc",
}  # fmt: skip
OF_THE_ENSEMBLE = {"test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc"}
SECONDS = {"data", "compile", "train", "evaluate", "plots", "total"}
ALL_SETS = {f"{name}_{of}" for name in ("train", "val", "test") for of in ("loss", "accuracy", "auc", "precision")}


def options_of(config: Any, **more: object) -> list[str]:
    """The command line that says what a config says, where it differs from the defaults."""
    default = mnist_bags.Config()
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "compute"}
    changed = {name: value for name, value in given.items() if value != getattr(default, name)} | more
    return [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def start_command(*options: str, cache: Path) -> subprocess.Popen[str]:
    """Starts `python experiments/mnist_bags.py` as a user would."""
    return subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / "mnist_bags.py"), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cache,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip


def wait_for_epoch(process: subprocess.Popen[str], epoch: int) -> None:
    """Reads what the command prints until it shows that the epoch, or a later one, has ended."""
    assert process.stdout
    for line in process.stdout:
        ended = re.match(r"epoch +(\d+)/", line)
        if ended and int(ended[1]) >= epoch:
            return
    assert process.stderr
    pytest.fail(f"epoch {epoch} never ended: {process.stderr.read()}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Waits for the end: (exit status, what it printed, lines on stderr)."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()  # does nothing to one that has ended
    return process.returncode, out, err.splitlines()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder, in which the compiled programs of all runs are kept."""
    cache = tmp_path_factory.mktemp("cache")
    with commands_here(cache):
        yield cache


@dataclasses.dataclass(frozen=True)
class Ended:
    """A run that came to its end: its folder, and what it printed."""

    path: Path
    printed: str

    def read(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(), parse_constant=pytest.fail)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line, parse_constant=pytest.fail) for line in self.log.splitlines()]

    @property
    def log(self) -> bytes:
        return (self.path / "metrics.jsonl").read_bytes()

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "attention.npz") as arrays:
            return dict(arrays)

    @property
    def results(self) -> dict[str, Any]:
        """The summary without the seconds."""
        return {name: value for name, value in self.read("summary.json").items() if name != "seconds"}


def run_here(config: Any) -> Ended:
    """Runs the experiment in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        path = mnist_bags.main(config)
    assert path == config.out
    return Ended(path, printed.getvalue())


def command_here(*options: str, module: Any = mnist_bags) -> tuple[int, list[str]]:
    """Runs the command in this process: (exit status, the lines that it printed on stdout and stderr)."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *options])
        try:
            with contextlib.redirect_stdout(printed):
                cli.command(
                    module.Config, module.main, module.__doc__, runs.saved_options if module is mnist_bags else None
                )
            status = 0
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return status, printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The small experiment, run in this process."""
    return run_here(dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("here") / "run"))


@pytest.fixture(scope="module")
def commanded(here: Ended, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The same by its command, in a process of its own."""
    out = tmp_path_factory.mktemp("commanded") / "runs" / "small"
    status, printed, err = finish(start_command(*options_of(SMALL, out=out), cache=cache))
    assert status == 0, err
    return Ended(out, printed)


# ---- what it leaves and says ----


def test_the_folder(here: Ended) -> None:
    assert {path.name for path in here.path.iterdir()} == {
        "config.json", "metrics.jsonl", "metrics.csv", "summary.json", "members.csv", "attention.npz", "report.html",
        "log.txt", ".lock", "figures", "checkpoint",
    }  # fmt: skip
    assert {path.name for path in (here.path / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}


def test_the_config_says_everything(here: Ended) -> None:
    config = here.read("config.json")
    decide_nothing = ("compute", "out", "data_dir", "manual_dir", "report", "tensorboard")
    options = {k: v for k, v in dataclasses.asdict(SMALL).items() if k not in decide_nothing}
    assert config["options"] == options
    assert config["paths"] == {"data_dir": None, "manual_dir": None}
    assert config["data"] == {"name": "mnist-sample", "content_hash": datasets.load("mnist-sample").content_hash}
    versions = config["versions"]
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert {"python", "flax", "optax", "mil_jax"} <= set(versions)
    assert versions["device"] == jax.devices()[0].device_kind


def test_the_summary_has_what_was_asked_for(here: Ended) -> None:
    summary = here.read("summary.json")
    assert len(summary["members"]) == MEMBERS
    for row in (*summary["members"], summary["mean"]):
        assert set(row) >= OF_A_MEMBER | ALL_SETS
    assert set(summary["ensemble"]) >= OF_THE_ENSEMBLE
    assert set(summary["seconds"]) == SECONDS
    assert summary["seconds"]["total"] >= summary["seconds"]["train"] > 0
    assert [row["seed"] for row in summary["members"]] == [0, 1]
    assert {"train_*", "val_*", "test_*"} <= set(summary["which_is_which"])


def test_the_numbers_agree_with_one_another(here: Ended) -> None:
    """Summary, log and attention file tell the same story."""
    summary, arrays = here.read("summary.json"), here.arrays
    probability, label = arrays["probability"], arrays["label"]
    right = probability.argmax(axis=-1) == label
    positive = label == 1
    hit = np.take_along_axis(
        np.broadcast_to(arrays["instance_label"], arrays["attention"].shape),
        arrays["attention"].argmax(axis=-1)[..., None], axis=-1,
    )[..., 0]  # fmt: skip
    for i, row in enumerate(summary["members"]):
        assert row["test_accuracy"] == pytest.approx(right[i].mean(), rel=1e-6)
        loss = -np.log(np.take_along_axis(probability[i], label[:, None], axis=-1)).mean()
        assert row["test_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["instance_hit_at_1"] == pytest.approx(hit[i, positive].mean(), rel=1e-6)
        curve = [line["val_loss"] for line in here.lines if line["member"] == i]
        assert row["epochs_run"] == len(curve)
        assert row["best_epoch"] == 1 + int(np.argmin(curve))
        assert row["best_val_loss"] == min(curve)
    together = probability.mean(axis=0).argmax(axis=-1) == label
    assert summary["ensemble"]["test_accuracy"] == pytest.approx(together.mean(), rel=1e-6)
    mean = np.mean([row["test_loss"] for row in summary["members"]])
    assert summary["mean"]["test_loss"] == pytest.approx(mean, rel=1e-6)


def test_the_details_agree_with_the_rest(here: Ended) -> None:
    """By groups of bags and by sizes of ensembles, the same numbers come out as by other ways."""
    summary = here.read("summary.json")
    details, whole = summary["test_details"], summary["ensemble"]
    of_positive = {row["statistic"]: row for row in details["attention"] if row["bags"] == "positive"}
    for name in ("entropy", "hit_at_1", "instance_auc"):
        row = of_positive[name]
        assert row["mean"] == pytest.approx(whole[f"positive_bags_{name}"], rel=1e-5)
        assert row["low"] <= row["mean"] <= row["high"] and row["count"] == here.arrays["label"].sum()
    gains = {(row["size"], row["score"]): row["mean"] for row in details["ensemble_size"]}
    assert gains[MEMBERS, "bags_loss"] == pytest.approx(whole["test_loss"], rel=1e-5)
    assert {row["statistic"] for row in details["agreement"]} >= {"rank_agreement", "jensen_shannon", "top_stability"}
    assert 0 <= details["disagreement"]["votes"] <= 0.5


def test_the_log_has_a_line_for_each_member_and_epoch(here: Ended) -> None:
    expected = [(epoch, member) for epoch in range(1, EPOCHS + 1) for member in range(MEMBERS)]
    assert [(line["epoch"], line["member"]) for line in here.lines] == expected
    wanted = {"train_loss", "val_loss", "val_accuracy"} | {
        f"{label}_bags_{name}"
        for label in ("positive", "negative")
        for name in ("normalized_entropy", "effective_instances", "largest_weight")
    }
    assert all(set(line) >= wanted | {"positive_bags_hit_at_1", "positive_bags_positive_mass"} for line in here.lines)


def test_the_attention_of_the_test_bags(here: Ended) -> None:
    arrays = here.arrays
    shapes = {name: array.shape for name, array in arrays.items()}
    per_bag = (BAGS, BAG_SIZE)
    assert shapes == {
        "attention": (MEMBERS, *per_bag), "probability": (MEMBERS, BAGS, 2), "rows": per_bag,
        "label": (BAGS,), "instance_label": per_bag,
    }  # fmt: skip
    np.testing.assert_allclose(arrays["attention"].sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(arrays["probability"].sum(axis=-1), 1, atol=1e-6)
    assert (arrays["label"] == arrays["instance_label"].max(axis=-1)).all()
    assert set(arrays["label"]) == {0, 1}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_figures_are_not_blank(name: str, here: Ended) -> None:
    with Image.open(here.path / "figures" / f"{name}.png") as image:
        assert image.format == "PNG"
        gray = np.asarray(image.convert("L"))
    assert min(gray.shape) >= 200
    assert gray.max() == 255 and gray.min() < 100
    assert 0.005 < np.mean(gray < 250) < 0.9


def splits_of(config: Any) -> Splits:
    """The bags that a run with this config draws."""
    key_bags, _ = jax.random.split(jax.random.key(config.seed))
    return mnist_bags.draw_bags(key_bags, datasets.load(config.dataset, None, None), config)


def test_the_ensemble_is_loaded_and_predicts_the_same(here: Ended) -> None:
    run = runs.load_run(here.path)
    test = splits_of(SMALL).test
    predicted = ensemble.predict_ensemble(mnist_bags.build_model(SMALL), run.params, test)
    np.testing.assert_array_equal(predicted.probability, here.arrays["probability"])
    np.testing.assert_array_equal(predicted.attention, here.arrays["attention"])
    np.testing.assert_array_equal(test.rows, here.arrays["rows"])
    assert run.summary == here.read("summary.json")


def test_it_says_what_it_does(commanded: Ended) -> None:
    splits = splits_of(SMALL)
    for name, part in splits._asdict().items():
        positive = int(part.label.sum())
        counts = r" *│ *".join(map(str, (name, len(part.label), positive, len(part.label) - positive)))
        assert re.search(counts, commanded.printed)
    parameters = commanded.results["mean"]["parameters"]
    assert re.search(rf"total *│ *│ *{parameters:,}", commanded.printed)
    assert commanded.printed.count("\nepoch ") == EPOCHS
    for row in ("member 0", "member 1", "mean of members", "standard deviation", "ensemble"):
        assert f"│ {row}" in commanded.printed
    accuracy = commanded.results["ensemble"]["test_accuracy"]
    assert re.search(rf"│ ensemble .*{accuracy:.4f}", commanded.printed)
    assert commanded.printed.endswith(f"run folder: {commanded.path}\n")


def test_the_tables(here: Ended) -> None:
    """The log and the members as CSV say what the JSON says."""
    with (here.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    as_text = lambda value: "" if value is None else str(value)  # noqa: E731
    assert rows == [{name: as_text(value) for name, value in line.items()} for line in here.lines]
    with (here.path / "members.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, member in zip(rows, here.results["members"], strict=True):
        assert row["warnings"] == "; ".join(member.pop("warnings"))
        assert {name: row[name] for name in member} == {name: as_text(value) for name, value in member.items()}


def test_the_report(here: Ended) -> None:
    page = (here.path / "report.html").read_text()
    assert page.count("<article ") == BAGS and page.count("<i ") == BAGS * BAG_SIZE
    assert page.count("data:image/png") == len(FIGURES) + 1
    assert page.count('wrong" id=') == round(BAGS * (1 - here.results["ensemble"]["test_accuracy"]))
    assert f"{MEMBERS} members, bags of {BAG_SIZE} of mnist-sample, seed 0" in page


def test_a_report_is_made_again(here: Ended, tmp_path: Path) -> None:
    """The same page, from the run folder and the data set alone; with event files where asked for."""
    copy = shutil.copytree(here.path, tmp_path / here.path.name)
    (copy / "report.html").unlink()
    status, lines = command_here(str(copy), "--tensorboard", module=report_command)
    assert (status, lines) == (0, [f"report: {copy / 'report.html'}"])
    assert (copy / "report.html").read_bytes() == (here.path / "report.html").read_bytes()
    assert {path.name for path in (copy / "tensorboard").iterdir()} == {"mean", "member_000", "member_001"}


# ---- that it repeats ----


def test_the_same_seed_gives_the_same_bytes(here: Ended, commanded: Ended) -> None:
    """In another process, too."""
    assert commanded.results == here.results
    same = [
        "metrics.jsonl",
        "metrics.csv",
        "members.csv",
        "attention.npz",
        *(f"figures/{name}.png" for name in FIGURES),
    ]
    differ = [name for name in same if (here.path / name).read_bytes() != (commanded.path / name).read_bytes()]
    assert differ == []
    one, other = (runs.load_run(run.path).params for run in (here, commanded))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_member_does_not_depend_on_the_number_of_members(here: Ended, tmp_path: Path) -> None:
    alone = run_here(dataclasses.replace(SMALL, members=1, plot_bags=0, out=tmp_path / "alone"))
    assert alone.results["members"][0] == here.results["members"][0]
    assert alone.lines == [line for line in here.lines if line["member"] == 0]
    np.testing.assert_array_equal(alone.arrays["attention"][0], here.arrays["attention"][0])
    drawn = {path.stem for path in (alone.path / "figures").iterdir()}
    assert drawn == FIGURES - {"bags_before_training", "bags_after_training", "reliability_of_members"}
    assert "member 0" in alone.printed and "ensemble" not in alone.printed


# ---- stopping and going on ----


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A run that was stopped by Ctrl-C, resumed, killed, and resumed to its end.

    Attributes:
        ended: what it left in the end.
        by_ctrl_c: exit status and lines on stderr of the first part, and its log.
        refused: exit status and line of another run in the same folder, while the second part was running.
        by_kill: exit status of the second part, and its log.
    """

    ended: Ended
    by_ctrl_c: tuple[int, list[str], bytes]
    refused: tuple[int, list[str]]
    by_kill: tuple[int, bytes]


@pytest.fixture(scope="module")
def stopped(here: Ended, commanded: Ended, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    out = tmp_path_factory.mktemp("stopped") / "run"
    log = out / "metrics.jsonl"
    resume = ("--resume", "--out", str(out))

    process = start_command(*options_of(SMALL, out=out), cache=cache)
    wait_for_epoch(process, 2)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    by_ctrl_c = (status, err, log.read_bytes())

    process = start_command(*resume, cache=cache)
    wait_for_epoch(process, 6)
    process.send_signal(signal.SIGSTOP)  # so that it is running for as long as it takes to be in its way
    refused = command_here(*resume)
    process.kill()
    by_kill = (finish(process)[0], log.read_bytes())

    assert command_here(*resume)[0] == 0
    return Stopped(Ended(out, ""), by_ctrl_c, refused, by_kill)


def test_ctrl_c_says_what_is_complete(stopped: Stopped, here: Ended) -> None:
    status, err, log = stopped.by_ctrl_c
    assert status == 130
    epochs = len(log.splitlines()) // MEMBERS
    assert 2 <= epochs < EPOCHS
    assert err[-1] == (
        f"stopped: {stopped.ended.path} keeps the log of {epochs} epochs and, in checkpoint/, "
        "the best parameters so far; go on with --resume"
    )
    assert here.log.startswith(log)


def test_kill_leaves_what_was_complete(stopped: Stopped, here: Ended) -> None:
    status, log = stopped.by_kill
    assert status == -signal.SIGKILL
    assert len(log.splitlines()) >= 6 * MEMBERS
    assert here.log.startswith(log)


def test_a_second_run_in_the_folder_is_refused(stopped: Stopped) -> None:
    status, err = stopped.refused
    assert status == 2
    assert err[-1] == (
        f"error: --out {stopped.ended.path}: another process is running in it: wait, or choose another"
    )  # fmt: skip


def test_resumed_it_ends_as_if_it_had_not_been_stopped(stopped: Stopped, here: Ended) -> None:
    assert stopped.ended.log == here.log
    assert stopped.ended.results == here.results
    for name in ("metrics.csv", "members.csv", "attention.npz", *(f"figures/{name}.png" for name in FIGURES)):
        assert (stopped.ended.path / name).read_bytes() == (here.path / name).read_bytes(), name
    assert not (stopped.ended.path / "progress").exists()
    notes = [line.split("  ", 1)[1] for line in (stopped.ended.path / "log.txt").read_text().splitlines()]
    assert notes[0] == "started" and notes.count("resumed") == 2
    assert sum(note.startswith("from the checkpoint of epoch") for note in notes) == 2


def test_ctrl_c_after_the_training_says_what_is_kept(
    here: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no epoch is running, it ends the run at once, and the run can still go on."""

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(mnist_bags, "judge", interrupt)
        status, lines = command_here(*options_of(SMALL, out=out))
    assert status == 130
    assert lines[-1] == f"stopped: {out} keeps what was complete; go on with --resume"
    assert (out / "metrics.jsonl").read_bytes() == here.log
    ended = run_here(dataclasses.replace(SMALL, out=out, compute=Compute(resume=True)))
    assert (ended.log, ended.results) == (here.log, here.results)


# ---- what it refuses ----


Bad = tuple[list[str], str]

BAD_OPTIONS: list[Bad] = [
    (["--bag-size", "0"], "--bag-size 0: "),
    (["--bag-size", "100000"], "--bag-size 100000: "),
    (["--positive-class", "11"], "--positive-class 11: "),
    (["--train-bags", "-1"], "--train-bags -1: "),
    (["--val-bags", "0"], "--val-bags 0: "),
    (["--test-bags", "0"], "--test-bags 0: "),
    (["--train-bags", "1"], "label "),  # no bags of one class to weigh
    (["--members", "0"], "--members 0: "),
    (["--epochs", "0"], "--epochs 0: "),
    (["--batch-size", "0"], "--batch-size 0: "),
    (["--patience", "0"], "--patience 0: "),
    (["--attention-units", "0"], "--attention-units 0: "),
    (["--learning-rate", "0"], "--learning-rate 0.0: "),
    (["--learning-rate", "nan"], "--learning-rate nan: "),
    (["--l2", "-1"], "--l2 -1.0: "),
    (["--plot-bags", "-1"], "--plot-bags -1: "),
    (["--seed", "-1"], "--seed -1: "),
    (["--vary", "weather"], "--vary weather: "),
    (["--dataset", "mnits"], "--dataset mnits: "),
    (["--dataset", "mnist", "--manual-dir", "/proc/nothing"], "--manual-dir /proc/nothing: "),
    (["--devices", "0"], "--devices 0: "),
    (["--devices", "99"], "--devices 99: "),
    (["--together", "0"], "--together 0: "),
    (["--checkpoint-every", "-1"], "--checkpoint-every -1: "),
    (["--heartbeat", "0"], "--heartbeat 0: "),
    (["--resume"], "--resume "),
    (["--coordinator", "127.0.0.1:1"], "--coordinator 127.0.0.1:1: "),
    (["--coordinator", "127.0.0.1:1", "--processes", "3", "--process-id", "0"], "--processes 3: "),
]


@pytest.mark.parametrize(("options", "named"), BAD_OPTIONS, ids=[" ".join(options) for options, _ in BAD_OPTIONS])
def test_bad_input(options: list[str], named: str, tmp_path: Path) -> None:
    """One line that names the option and the value, exit status 2, and no folder."""
    fresh = tmp_path / "data"  # for what the user has prepared before needs no folder of files
    status, lines = command_here(*options_of(SMALL, out=tmp_path / "run", data_dir=fresh), *options)
    assert status == 2
    assert len(lines) == 1 and lines[0].startswith(f"error: {named}")
    assert not any(tmp_path.iterdir())


def test_bad_folders(here: Ended, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    for out in (here.path, tmp_path / "file", tmp_path / "file" / "run"):
        status, lines = command_here(*options_of(SMALL, out=out))
        assert status == 2
        assert len(lines) == 1 and lines[0].startswith(f"error: --out {out}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_truncated_data_file(tmp_path: Path) -> None:
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name in files:
        (tmp_path / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b\x08")
    options = ("--dataset", "mnist", "--manual-dir", str(tmp_path), "--data-dir", str(tmp_path / "prepared"))
    status, lines = command_here(*options_of(SMALL, out=tmp_path / "run"), *options)
    assert status == 2
    assert len(lines) == 1 and lines[0].startswith(f"error: --manual-dir {tmp_path}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "named"), [(["--epochs", "11"], "--epochs 11: "), (["--l2", "0.5"], "--l2 0.5: ")])
def test_resume_with_other_options(options: list[str], named: str, here: Ended, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((here.path / "config.json").read_bytes())
    status, lines = command_here("--resume", "--out", str(tmp_path), *options)
    assert status == 2
    assert len(lines) == 1 and lines[0].startswith(f"error: {named}the run was started with ")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_resume_of_a_run_that_has_ended(here: Ended) -> None:
    before = sorted(here.path.rglob("*"))
    status, lines = command_here("--resume", "--out", str(here.path))
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith(f"error: --resume {here.path}: this run has come to its end")
    assert sorted(here.path.rglob("*")) == before


def test_help_says_every_option_and_its_default() -> None:
    status, lines = command_here("--help")
    text = re.sub(r"[\s│]+", " ", " ".join(lines))
    assert status == 0
    records: list[Any] = [mnist_bags.Config, Compute]
    names = [field.name for record in records for field in dataclasses.fields(record) if field.name != "compute"]
    assert text.count("(default: ") == len(names)
    assert all(f"--{name.replace('_', '-')}" in text for name in names)


# ---- its choices ----


def in_short(tmp_path: Path, **choices: Any) -> Ended:
    return run_here(dataclasses.replace(SMALL, epochs=1, plot_bags=0, out=tmp_path / "run", **choices))


def test_every_choice_at_once(tmp_path: Path) -> None:
    """The other head, no gate, no class weights, draws of bags that differ by member, batches of several bags.

    And event files, and no report.
    """
    ended = in_short(
        tmp_path, head="sum", pooling="attention", class_weights=False, batch_size=7, vary="bags", positive_class=9,
        tensorboard=True, report=False,
    )  # fmt: skip
    one, other = ended.results["members"]
    assert one["train_loss"] != other["train_loss"]
    assert one["parameters"] == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 8 + 8 + 64 * 2 + 2
    assert np.isfinite([one["test_loss"], other["test_loss"]]).all()
    assert {path.name for path in (ended.path / "tensorboard").iterdir()} == {"mean", "member_000", "member_001"}
    assert not (ended.path / "report.html").exists()
    assert runs.saved_options(ended.path)["tensorboard"] and not runs.saved_options(ended.path)["report"]


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    status, lines = command_here(*options_of(SMALL, out=tmp_path / "run"), "--tensorboard")
    assert (status, len(lines)) == (2, 1)
    assert lines[0].startswith("error: --tensorboard True: ") and "mil_jax[tensorboard]" in lines[0]
    assert not any(tmp_path.iterdir())
