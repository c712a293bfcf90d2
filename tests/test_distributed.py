"""Two processes of two CPU devices each, on this machine: what they leave is what one process leaves.

The log is compared byte by byte, the results bit by bit: every member runs the same program on one device.
"""

import dataclasses
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from conftest import commands_here
from test_experiments import (
    FIGURES,
    SMALL,
    Ended,
    command_here,
    finish,
    options_of,
    run_here,
    start_command,
    wait_for_epoch,
)

from mil_jax import cli, runs
from mil_jax.cli import Compute

MEMBERS = 5  # four devices do not divide them, nor do two
HEARTBEAT = 10  # seconds
FIVE = dataclasses.replace(SMALL, members=MEMBERS)

Pair = list[subprocess.Popen[str]]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder, in which the compiled programs of all runs are kept."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    cache = tmp_path_factory.mktemp("cache")
    with commands_here(cache):
        yield cache


def start_pair(*options: str, cache: Path) -> Pair:
    """Starts two processes of two devices each, which find one another on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--coordinator", address, "--processes", "2", "--devices", "4", "--heartbeat", str(HEARTBEAT))
    return [start_command(*options, *together, "--process-id", str(i), cache=cache) for i in range(2)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Five members in one process, on two devices."""
    out = tmp_path_factory.mktemp("one") / "run"
    return run_here(dataclasses.replace(FIVE, out=out, compute=Compute(devices=2)))


@dataclasses.dataclass(frozen=True)
class Asked:
    """Two processes, of which the second one was asked to stop after epoch 2.

    Attributes:
        path: the run folder.
        ends: of both processes: exit status, what was printed, lines on stderr.
    """

    path: Path
    ends: list[tuple[int, str, list[str]]]

    def copy(self, folder: Path) -> Path:
        """The run folder again, to go on with."""
        return Path(shutil.copytree(self.path, folder / "run"))


@pytest.fixture(scope="module")
def asked(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    out = tmp_path_factory.mktemp("asked") / "run"
    pair = start_pair(*options_of(FIVE, out=out), cache=cache)
    wait_for_epoch(pair[0], 2)
    pair[1].send_signal(signal.SIGTERM)
    return Asked(out, list(map(finish, pair)))


def test_all_stop_when_one_is_asked(asked: Asked, one_process: Ended) -> None:
    epochs = len((asked.path / "metrics.jsonl").read_bytes().splitlines()) // MEMBERS
    assert 2 <= epochs < FIVE.epochs
    line = (
        f"stopped: {asked.path} keeps the log of {epochs} epochs and, in checkpoint/, the best parameters so far; "
        "go on with --resume"
    )
    for status, _, err in asked.ends:
        assert status == 130 and line in err
    assert one_process.log.startswith((asked.path / "metrics.jsonl").read_bytes())


# ---- two processes to the end ----


@pytest.fixture(scope="module")
def two_processes(asked: Asked, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, str]:
    """The run, resumed by two processes, at its end; and what the second one printed."""
    out = asked.copy(tmp_path_factory.mktemp("two"))
    first, second = map(finish, start_pair("--resume", "--out", str(out), cache=cache))
    assert (first[0], second[0]) == (0, 0), (first[2], second[2])
    return Ended(out, first[1]), second[1]


def assert_equal_runs(run: Ended, expected: Ended) -> None:
    assert run.log == expected.log
    assert run.results == expected.results
    assert (run.path / "attention.npz").read_bytes() == (expected.path / "attention.npz").read_bytes()
    params = [runs.load_run(each.path).params for each in (run, expected)]
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), *params))


def test_two_processes_equal_one(two_processes: tuple[Ended, str], one_process: Ended) -> None:
    assert_equal_runs(two_processes[0], one_process)


def test_only_the_first_process_writes_and_prints(two_processes: tuple[Ended, str]) -> None:
    two, printed = two_processes
    assert {path.name for path in (two.path / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}
    assert not (two.path / "progress").exists()
    assert "\nepoch " in two.printed and two.printed.endswith(f"run folder: {two.path}\n")
    assert "epoch" not in printed and "run folder" not in printed
    notes = notes_of(two.path)
    assert [note.rstrip("0123456789") for note in notes] == [
        "started", "stopped after epoch ", "resumed", "from the checkpoint of epoch "
    ]  # fmt: skip


def notes_of(run: Path) -> list[str]:
    """The lines of a run's log.txt without their times, and without warnings of what was learned."""
    notes = [line.split("  ", 1)[1] for line in (run / "log.txt").read_text().splitlines()]
    return [note for note in notes if not note.startswith("warning: ")]


# ---- one process dies ----


@dataclasses.dataclass(frozen=True)
class Killed:
    """The run, resumed by two processes, of which the first one was killed after epoch 6; resumed by one.

    Attributes:
        ended: what was left in the end.
        survivor: exit status of the second process, and what it had to say on stderr.
        seconds: that it outlived the first one.
    """

    ended: Ended
    survivor: tuple[int, str]
    seconds: float


@pytest.fixture(scope="module")
def killed(asked: Asked, one_process: Ended, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    out = asked.copy(tmp_path_factory.mktemp("killed"))
    first, second = start_pair("--resume", "--out", str(out), cache=cache)
    wait_for_epoch(first, 6)
    first.kill()
    since = time.monotonic()
    status, _, err = finish(second)
    seconds = time.monotonic() - since
    finish(first)
    assert command_here("--resume", "--out", str(out), "--devices", "2")[0] == 0
    return Killed(Ended(out, ""), (status, "\n".join(err)), seconds)


def test_a_lost_process_ends_the_others(killed: Killed) -> None:
    """At once where its connections break; where it only falls silent, when the heartbeat tells."""
    status, said = killed.survivor
    assert status == 2
    assert f"error: {cli.LOST_PROCESS}" in said and cli.LOST_REMEDY in said
    assert killed.seconds < 3 * HEARTBEAT


def test_what_is_left_goes_on_with_one_process(killed: Killed, one_process: Ended) -> None:
    assert_equal_runs(killed.ended, one_process)
    notes = notes_of(killed.ended.path)
    assert int(notes[-1].removeprefix("from the checkpoint of epoch ")) >= 5


def test_more_processes_than_members_are_refused(tmp_path: Path) -> None:
    options = ("--coordinator", "127.0.0.1:1", "--processes", "6", "--process-id", "0")
    status, lines = command_here(*options_of(FIVE, out=tmp_path / "run"), *options)
    assert status == 2
    assert lines == ["error: --processes 6: use at most 5, the number of members"]
    assert not any(tmp_path.iterdir())
