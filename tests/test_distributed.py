"""Two processes of two CPU devices each, on this machine: what they leave is what one process leaves.

The log is compared byte by byte, the results bit by bit: every member runs the same program on one device.
"""

import importlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mil_jax.run.processes import LOST_PROCESS, LOST_REMEDY

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "benchmarks"))
kill_and_resume: Any = importlib.import_module("kill_and_resume")
Processes, compare, epochs_of = kill_and_resume.Processes, kill_and_resume.compare, kill_and_resume.epochs_of

CONFIG = kill_and_resume.Config(members=5, epochs=10, bags=40)  # four devices do not divide 5 members, nor do two
NEW = kill_and_resume.options_of(CONFIG)
ALONE = ["--devices", "2"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache folder, in which the compiled programs of all runs are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five members in one process, on two devices."""
    return to_the_end(tmp_path_factory.mktemp("one") / "run", [*NEW, *ALONE])


def to_the_end(out: Path, options: list[str]) -> Path:
    with Processes(out, options) as alone:
        (end,) = alone.wait()
    assert end.status == 0, end.said
    return out


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder of two processes, of which the second one was asked to stop after epoch 2, and their ends."""
    out = tmp_path_factory.mktemp("asked") / "run"
    with Processes(out, NEW, 2) as processes:
        processes.wait(lambda: epochs_of(CONFIG, out) >= 2)
        processes.started[1].send_signal(signal.SIGTERM)
        return out, processes.wait()


def test_all_stop_when_one_is_asked(asked: tuple[Path, list[Any]], one_process: Path) -> None:
    out, ends = asked
    epochs = epochs_of(CONFIG, out)
    assert 2 <= epochs < CONFIG.epochs
    line = (
        f"stopped: {out} keeps the log of {epochs:.0f} epochs and, in checkpoint/, the best parameters so far; "
        "go on with --resume"
    )
    assert all(end.status == 130 and line in end.said.splitlines() for end in ends), ends
    assert (one_process / "metrics.jsonl").read_bytes().startswith((out / "metrics.jsonl").read_bytes())


# ---- two processes to the end ----


@pytest.fixture(scope="module")
def two_processes(asked: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The run, resumed by two processes, at its end; and their ends."""
    out = Path(shutil.copytree(asked[0], tmp_path_factory.mktemp("two") / "run"))
    with Processes(out, ["--resume"], 2) as processes:
        return out, processes.wait()


def test_two_processes_equal_one(two_processes: tuple[Path, list[Any]], one_process: Path) -> None:
    out, ends = two_processes
    assert [end.status for end in ends] == [0, 0], ends
    assert compare(one_process, out) == []


def test_only_the_first_process_writes_and_prints(two_processes: tuple[Path, list[Any]], one_process: Path) -> None:
    out, (first, second) = two_processes
    names = [{path.name for path in (run / "figures").iterdir()} for run in (out, one_process)]
    assert names[0] == names[1]
    assert not (out / "progress").exists()
    assert "\nepoch " in first.printed and first.printed.endswith(f"run folder: {out}\n")
    assert "epoch" not in second.printed and "run folder" not in second.printed
    assert [note.rstrip("0123456789") for note in notes_of(out)] == [
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
    with Processes(out, ["--resume"], 2) as processes:
        processes.wait(lambda: epochs_of(CONFIG, out) >= 6)
        processes.started[0].kill()
        since = time.monotonic()
        _, survivor = processes.wait()
        seconds = time.monotonic() - since
    return to_the_end(out, ["--resume", *ALONE]), survivor, seconds


def test_a_lost_process_ends_the_others(killed: tuple[Path, Any, float]) -> None:
    """At once where its connections break; where it only falls silent, when the heartbeat tells."""
    _, survivor, seconds = killed
    assert survivor.status == 2
    assert f"error: {LOST_PROCESS}" in survivor.said and LOST_REMEDY in survivor.said
    assert seconds < 3 * kill_and_resume.HEARTBEAT


def test_what_is_left_goes_on_with_one_process(killed: tuple[Path, Any, float], one_process: Path) -> None:
    assert compare(one_process, killed[0]) == []
    assert int(notes_of(killed[0])[-1].removeprefix("from the checkpoint of epoch ")) >= 5


def test_more_processes_than_members_are_refused(tmp_path: Path) -> None:
    with Processes(
        tmp_path / "run", [*NEW, "--coordinator", "a:1", "--processes", "6", "--process-id", "0"]
    ) as processes:
        (end,) = processes.wait()
    assert end.status == 2 and "--processes 6: " in end.said
    assert not (tmp_path / "run").exists()
