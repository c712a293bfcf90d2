"""Does a run that was killed end as if nothing had happened? `kill -9` at moments spread over it, each resumed.

Runs mnist_bags once to its end, then again and again, killed without warning at another moment each time and resumed,
and compares `metrics.jsonl`, `attention.npz`, the metrics of `summary.json` and the parameters, bit by bit. Of several
processes one is killed, or another, or all of them; those that are left must end by themselves.

    python experiments/benchmarks/kill_and_resume.py
    python experiments/benchmarks/kill_and_resume.py --processes 2 --kills 50 --bags 40 --load 2
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax.errors import RunError, check_whole
from mil_jax.run import cli, screen
from mil_jax.run.saved import load_run
from mil_jax.text import Table

SCRIPT = Path(__file__).parents[1] / "mnist_bags.py"
HEARTBEAT = 10  # seconds
LIMIT = 300  # seconds until processes that do not end count as hanging


@dataclass(frozen=True)
class Config:
    """Options of the check."""

    kills: int = 20
    """Moments at which a run is killed, spread over its epochs and what comes before and after them."""
    members: int = 8
    """Members of the run."""
    epochs: int = 20
    """Epochs of the run."""
    bags: int = 1000
    """Bags in each set."""
    processes: int = 1
    """Processes that share the run, with two devices each."""
    load: int = 0
    """Processes beside it that keep a core busy."""

    def __post_init__(self) -> None:
        for name in ("kills", "members", "epochs", "bags", "processes"):
            check_whole(name, getattr(self, name), 1)
        check_whole("load", self.load, 0)


# ---- processes of a run ----


@dataclass(frozen=True)
class End:
    """How a process ended: its exit status (minus a signal), what it printed, and what it said on stderr."""

    status: int
    printed: str
    said: str


class Processes:
    """Within it run the processes of one run of mnist_bags; what they print goes to files, and none is left behind.

    Args:
        out: the run folder.
        options: of mnist_bags, but for those by which processes find one another.
        count: their number; 1 for a run of a single process.
    """

    def __init__(self, out: Path, options: Sequence[str], count: int = 1):
        self.texts = [(out.with_suffix(f".{i}.out"), out.with_suffix(f".{i}.err")) for i in range(count)]
        shared: list[str] = []
        if count > 1:
            address = f"127.0.0.1:{free_port()}"
            shared = ["--devices", str(2 * count), "--coordinator", address, "--processes", str(count)]
            shared += ["--heartbeat", str(HEARTBEAT), "--process-id"]
        self.command = [sys.executable, str(SCRIPT), *options, "--out", str(out), *shared]
        self.started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> "Processes":
        options: dict[str, Any] = {"env": {**os.environ, "PYTHONFAULTHANDLER": "1"}, "start_new_session": True}
        for i, (printed, said) in enumerate(self.texts):
            command = [*self.command, str(i)] if len(self.texts) > 1 else self.command
            with printed.open("w") as out, said.open("w") as err:
                self.started.append(subprocess.Popen(command, stdout=out, stderr=err, **options))
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def wait(self, done: Callable[[], bool] = lambda: False) -> list[End]:
        """Waits until all have ended, or until something is done; how those ended that have.

        Raises:
            RunError: it took too long; the message tells where each process was.
        """
        deadline = time.monotonic() + LIMIT
        while any(process.poll() is None for process in self.started) and not done():
            if time.monotonic() > deadline:
                self.end(signal.SIGILL)  # on which Python's fault handler writes where each thread is
                raise RunError(f"no end after {LIMIT} s: {[said.read_text() for _, said in self.texts]}")
            time.sleep(0.05)
        ended = [(process.poll(), *texts) for process, texts in zip(self.started, self.texts, strict=True)]
        return [End(status, *(text.read_text() for text in texts)) for status, *texts in ended if status is not None]

    def end(self, number: int = signal.SIGKILL) -> None:
        """Ends all of them, and whatever they started."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# ---- the check ----


def main(config: Config) -> None:
    """Kills, resumes, compares; exits with 1 where a difference shows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    with tempfile.TemporaryDirectory() as folder, busy(config.load):
        whole = Path(folder) / "whole"
        run_to_end(config, whole)
        rows = [kill_and_resume(config, whole, Path(folder) / f"killed{i}", turn=i) for i in range(config.kills)]
    same = sum(row[-1] == "none" for row in rows)
    title = f"kill -9 of {config.processes} processes" if config.processes > 1 else "kill -9"
    screen.print_table(Table(title, ("killed", "it was", "exit status", "differences"), rows))
    screen.say(f"{same} of {config.kills} end with the same bits")
    sys.exit(same != config.kills)


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keeps cores busy with processes that do nothing."""
    with contextlib.ExitStack() as loops:
        for _ in range(count):
            loop = loops.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            loops.callback(loop.kill)
        yield


def kill_and_resume(config: Config, whole: Path, out: Path, turn: int) -> list[str]:
    """One row: which process was killed, how far the run had come, how all ended, and what differs in the end."""
    victims = [[i] for i in range(config.processes)] if config.processes > 1 else []
    victims = [*victims, list(range(config.processes))][turn % (len(victims) + 1)]
    row = [" and ".join(str(victim + 1) for victim in victims)]
    try:
        with Processes(out, options_of(config), config.processes) as processes:
            wait_for_moment(config, out, processes, turn)
            for victim in victims:
                processes.started[victim].kill()
            ends = processes.wait()
        row += [progress_of(config, out), ", ".join(str(end.status) for end in ends)]
        unclear = [end for end in ends if end.status == 1 or "Traceback" in end.said]
        if not (out / "summary.json").exists():
            run_to_end(config, out, resume=True)
        differences = [*compare(whole, out), *(f"exit with {end.said[-500:]}" for end in unclear)]
        row.append(", ".join(differences) or "none")
    except RunError as error:
        row += ["?", "?", str(error)][len(row) - 1 :]
    screen.say("  ".join(row))
    return row


def wait_for_moment(config: Config, out: Path, processes: Processes, turn: int) -> None:
    """Waits for the epoch whose turn it is, and a random part of a second more; after the last one, of 5 seconds."""
    epoch = turn * (config.epochs + 2) // config.kills
    processes.wait(lambda: (out / "config.json").exists() and epochs_of(config, out) >= min(epoch, config.epochs))
    time.sleep(random.Random(turn).random() * (5 if epoch > config.epochs else 1))


def epochs_of(config: Config, out: Path) -> float:
    """Epochs in the log of a run; a part of one where it was cut off."""
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") / config.members if log.exists() else 0


def options_of(config: Config) -> list[str]:
    """Options of mnist_bags for a new run."""
    bags = f"--train-bags {config.bags} --val-bags {config.bags} --test-bags {config.bags}"
    return f"--plot-bags 0 --members {config.members} --epochs {config.epochs} {bags} --no-report".split()


def run_to_end(config: Config, out: Path, resume: bool = False) -> None:
    """Runs to the end; RunError where a process hangs or fails."""
    with Processes(out, ["--resume"] if resume else options_of(config), config.processes) as processes:
        ends = processes.wait()
    if any(end.status for end in ends):
        raise RunError(f"exit with {[end.status for end in ends]}: {[end.said[-1000:] for end in ends]}")


def progress_of(config: Config, out: Path) -> str:
    """How far a run had come."""
    return "at its end" if (out / "summary.json").exists() else f"after epoch {epochs_of(config, out):.3g}"


def compare(whole: Path, resumed: Path) -> list[str]:
    """Names of what differs."""
    same_bytes = ("metrics.jsonl", "attention.npz")
    differing = [name for name in same_bytes if (whole / name).read_bytes() != (resumed / name).read_bytes()]
    results = [json.loads((path / "summary.json").read_text()) | {"seconds": None} for path in (whole, resumed)]
    if results[0] != results[1]:
        differing.append("summary.json")
    equal = jax.tree.map(np.array_equal, load_run(whole).members, load_run(resumed).members)
    return differing if all(jax.tree.leaves(equal)) else [*differing, "checkpoint"]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
