"""Two processes of two CPU devices each, on this machine: what they leave is what one process leaves.

The log is compared byte by byte, the results bit by bit: every member runs the same program on one device.
"""

import dataclasses
import importlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import commands_here
from test_experiments import EXPERIMENTS, FIGURES, SMALL, Ended, command_here, options_of, run_here

from mil_jax import cli, runs
from mil_jax.cli import Compute

sys.path.insert(0, str(EXPERIMENTS / "benchmarks"))
kill_and_resume: Any = importlib.import_module("kill_and_resume")
running = kill_and_resume.running

MEMBERS = 5  # four devices do not divide them, nor do two
FIVE = dataclasses.replace(SMALL, members=MEMBERS)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder, in which the compiled programs of all runs are kept."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    cache = tmp_path_factory.mktemp("cache")
    with commands_here(cache):
        yield cache


def epochs_of(out: Path) -> int:
    """Whole epochs in the log of a run."""
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") // MEMBERS if log.exists() else 0


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Five members in one process, on two devices."""
    out = tmp_path_factory.mktemp("one") / "run"
    return run_here(dataclasses.replace(FIVE, out=out, compute=Compute(devices=2)))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of two processes, of which the second one was asked to stop after epoch 2, and their ends."""
    out = tmp_path_factory.mktemp("asked") / "run"
    with running(out, options_of(FIVE), 2) as processes:
        processes.wait(lambda: epochs_of(out) >= 2)
        processes.started[1].send_signal(signal.SIGTERM)
        return out, processes.wait()


def test_all_stop_when_one_is_asked(asked: tuple[Path, list[Any]], one_process: Ended) -> None:
    out, ends = asked
    epochs = epochs_of(out)
    assert 2 <= epochs < FIVE.epochs
    line = (
        f"stopped: {out} keeps the log of {epochs} epochs and, in checkpoint/, the best parameters so far; "
        "go on with --resume"
    )
    assert all(end.status == 130 and line in end.said.splitlines() for end in ends)
    assert one_process.log.startswith((out / "metrics.jsonl").read_bytes())


# ---- two processes to the end ----


@pytest.fixture(scope="module")
def two_processes(asked: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, str]:
    """The run, resumed by two processes, at its end; and what the second one printed."""
    out = Path(shutil.copytree(asked[0], tmp_path_factory.mktemp("two") / "run"))
    with running(out, ["--resume"], 2) as processes:
        first, second = processes.wait()
    assert (first.status, second.status) == (0, 0), (first.said, second.said)
    return Ended(out, first.printed), second.printed


def assert_equal_runs(run: Ended, expected: Ended) -> None:
    assert run.log == expected.log
    assert run.results == expected.results
    assert (run.path / "attention.npz").read_bytes() == (expected.path / "attention.npz").read_bytes()
    params = [runs.load_run(each.path).params for each in (run, expected)]
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), *params))


def test_two_processes_equal_one(two_processes: tuple[Ended, str], one_process: Ended) -> None:
    assert_equal_runs(two_processes[0], one_process)


def test_only_the_first_process_writes_and_prints(two_processes: tuple[Ended, str]) -> None:
    ended, printed = two_processes
    assert {path.name for path in (ended.path / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}
    assert not (ended.path / "progress").exists()
    assert "\nepoch " in ended.printed and ended.printed.endswith(f"run folder: {ended.path}\n")
    assert "epoch" not in printed and "run folder" not in printed
    notes = notes_of(ended.path)
    assert [note.rstrip("0123456789") for note in notes] == [
        "started", "stopped after epoch ", "resumed", "from the checkpoint of epoch "
    ]  # fmt: skip


def notes_of(run: Path) -> list[str]:
    """The lines of a run's log.txt without their times, and without warnings of what was learned."""
    notes = [line.split("  ", 1)[1] for line in (run / "log.txt").read_text().splitlines()]
    return [note for note in notes if not note.startswith("warning: ")]


# ---- one process dies ----


@pytest.fixture(scope="module")
def killed(asked: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, float]:
    """The run, resumed by two processes, of which the first one was killed after epoch 6; resumed by one.

    The folder, how the second one ended, and the seconds that it outlived the first one.
    """
    out = Path(shutil.copytree(asked[0], tmp_path_factory.mktemp("killed") / "run"))
    with running(out, ["--resume"], 2) as processes:
        processes.wait(lambda: epochs_of(out) >= 6)
        processes.started[0].kill()
        since = time.monotonic()
        _, survivor = processes.wait()
        seconds = time.monotonic() - since
    assert command_here("--resume", "--out", str(out), "--devices", "2")[0] == 0
    return out, survivor, seconds


def test_a_lost_process_ends_the_others(killed: tuple[Path, Any, float]) -> None:
    """At once where its connections break; where it only falls silent, when the heartbeat tells."""
    _, survivor, seconds = killed
    assert survivor.status == 2
    assert f"error: {cli.LOST_PROCESS}" in survivor.said and cli.LOST_REMEDY in survivor.said
    assert seconds < 3 * kill_and_resume.HEARTBEAT


def test_what_is_left_goes_on_with_one_process(killed: tuple[Path, Any, float], one_process: Ended) -> None:
    assert_equal_runs(Ended(killed[0], ""), one_process)
    notes = notes_of(killed[0])
    assert int(notes[-1].removeprefix("from the checkpoint of epoch ")) >= 5


def test_more_processes_than_members_are_refused(tmp_path: Path) -> None:
    options = ("--coordinator", "127.0.0.1:1", "--processes", "6", "--process-id", "0")
    status, lines = command_here(*options_of(FIVE, out=tmp_path / "run"), *options)
    assert status == 2
    assert lines == ["error: --processes 6: use at most 5, the number of members"]
    assert not any(tmp_path.iterdir())
