"""What the benchmarks share: the ways of training, each timed in a process of its own, and the files of results.

A way is a script of this folder with its options: `jax_worker.py` trains with mil_jax, the peers with Keras and
PyTorch. Each measurement starts one anew, so that devices, thread pools and peak memory are its own, and all train on
the same bags. What is compared is the time per member and training step, without validation, since the peers' timing
has none; mil_jax is timed with validation and attention statistics besides.

The process that starts the others stays small, and so does its memory: a child's peak memory, as the system counts
it, is never below what its parent held when it started it.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import peer_io

from mil_jax.bags import gather
from mil_jax.errors import InputError, RunError, check_whole
from mil_jax.run.config import fields_of
from mil_jax.run.folder import RunFolder, check_free
from mil_jax.run.screen import say
from mil_jax.sampling import Splits

HERE = Path(__file__).parent


# ---- ways ----


@dataclass(frozen=True)
class Task:
    """What all ways of a run train on."""

    bags: Path
    """The bags as the peers read them."""
    seed: int
    train_bags: int
    """Training bags, which is also the number of steps of an epoch."""
    val_bags: int


@dataclass(frozen=True)
class Way:
    """A way of training members, as a script that writes what it measured.

    Attributes:
        name: what tables and figures call it.
        script: in this folder.
        options: of the script, besides those that every measurement gives.
        copies: processes at once, which share the members.
    """

    name: str
    script: str
    options: tuple[str, ...] = ()
    copies: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether it is mil_jax that trains."""
        return self.script == "jax_worker.py"

    def arguments(self, task: Task, members: int, epochs: int) -> list[str]:
        """The command line that trains so many members for so many epochs, but for --out."""
        shared = ["--seed", str(task.seed), "--members", str(members), *self.options]
        if self.is_ours:
            counts = ["--train-bags", str(task.train_bags), "--val-bags", str(task.val_bags)]
            return [*shared, *counts, "--epochs", str(epochs)]
        return [*shared, "--bags", str(task.bags), "--timing-only-epochs", str(epochs)]


CORES = peer_io.usable_cores()

PLACED = Way("mil_jax", "jax_worker.py", ("--way", "placed", "--parts", "both"))
VMAP = Way("mil_jax, plain vmap", "jax_worker.py", ("--way", "vmap", "--parts", "train"))
SEQUENTIAL = Way("mil_jax, one by one", "jax_worker.py", ("--way", "sequential", "--parts", "train"))
ADAM = Way("Adam's update alone", "jax_worker.py", ("--way", "adam", "--parts", "train"))
TORCH = Way("PyTorch", "torch_peer.py", ("--threads", "1"))
TORCH_THREADS = Way(f"PyTorch, {CORES} threads", "torch_peer.py", ("--threads", str(CORES)))
TORCH_PER_CORE = Way(f"PyTorch, {CORES} processes", "torch_peer.py", ("--threads", "1"), CORES)
KERAS_TENSORFLOW = Way("Keras, TensorFlow", "keras_peer.py", ("--backend", "tensorflow"))
KERAS_JAX = Way("Keras, JAX", "keras_peer.py", ("--backend", "jax"))


# ---- options ----


@dataclass(frozen=True)
class Options:
    """What the benchmarks of speed have in common.

    Raises:
        InputError: a number below 1.
    """

    rounds: int = 3
    """How often each way is measured; the ways take turns."""
    seed: int = 0
    """Decides bags and members."""
    train_bags: int = 1000
    """Training bags, which is also the number of steps of an epoch."""
    val_bags: int = 300
    """Bags of a validation."""

    def __post_init__(self) -> None:
        at_least(1, self, "rounds", "train_bags", "val_bags")


def chosen(known: Mapping[str, tuple[Way, ...]], option: str, text: str) -> list[Way]:
    """The ways that a list such as torch,keras-jax names; an empty text names none.

    Raises:
        InputError: a name that is not known.
    """
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise InputError(option, unknown[0], f"expected some of {','.join(known)}, or '' for none")
    return [way for name in names for way in known[name]]


def sizes(option: str, text: str) -> tuple[int, ...]:
    """Numbers of members from a list such as 1,2,8, in increasing order; an empty text gives none.

    Raises:
        InputError: anything else.
    """
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(option, text, "expected whole numbers from 1, with commas between them, such as 1,2,8")
    return tuple(sorted({int(part) for part in parts}))


def at_least(least: int, config: Any, *names: str) -> None:
    """Refuses options below `least`.

    Raises:
        InputError: naming the option.
    """
    for name in names:
        check_whole(name, getattr(config, name), least)


# ---- measuring ----


@dataclass(frozen=True)
class Measurement:
    """What one start of a way gave.

    Attributes:
        way: its name.
        members: S.
        round: from 1.
        train: microseconds per member and step, training alone, of each timed epoch.
        whole: the same with validation and attention statistics; empty for peers.
        peak_memory_mib: of its process, or the sum of its processes, while it trained.
        load: processes that wanted a core in the minute before, as the system averages them.
        details: what else the worker says of mil_jax.
    """

    way: str
    members: int
    round: int
    train: tuple[float, ...]
    whole: tuple[float, ...]
    peak_memory_mib: float
    load: float
    details: dict[str, Any]


def write_peer_bags(splits: Splits, path: Path) -> None:
    """Writes full bags as the peers read them, an .npz file: images [B, K, height, width] in [0, 1], and labels."""
    arrays = {}
    for name, part in splits._asdict().items():
        images = np.asarray(gather(part.pool, part.rows))
        arrays |= {f"{name}_instances": images, f"{name}_labels": np.asarray(part.label)}
    np.savez(path, **arrays)


@contextmanager
def task_of(config: Any) -> Iterator[Task]:
    """A task on bags of the embedded sample, as the options say, whose file is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bags.npz"
        counts = ["--train-bags", str(config.train_bags), "--val-bags", str(config.val_bags)]
        # In a process of its own, so that this one stays small.
        run_scripts("jax_worker.py", [["--job", "bags", "--seed", str(config.seed), *counts, "--out", str(path)]])
        yield Task(path, config.seed, config.train_bags, config.val_bags)


def run_scripts(script: str, argument_lists: Sequence[Sequence[str]]) -> None:
    """Runs a script of this folder once for each list of arguments, all at once, and waits for them.

    Raises:
        RunError: one that failed, with its last words.
    """
    commands = [[sys.executable, str(HERE / script), *arguments] for arguments in argument_lists]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        errors = [process.communicate()[1] for process in running]
    finally:
        for process in running:
            process.kill()  # does nothing to those that have ended
            process.wait()
    for process, error in zip(running, errors, strict=True):
        if status := process.returncode:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            last = (error.strip().splitlines() or ["no message"])[-1]
            raise RunError(f"{script} {how}: {last:.300}")


def answers_of(script: str, argument_lists: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """What a script writes into its --out, for each list of arguments, all at once."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{copy}.json" for copy in range(len(argument_lists))]
        run_scripts(script, [[*args, "--out", str(file)] for args, file in zip(argument_lists, files, strict=True)])
        return [json.loads(file.read_text()) for file in files]


def measure(way: Way, task: Task, members: int, epochs: int, number: int) -> tuple[Measurement, dict[str, str]]:
    """One measurement, in round `number`, and the versions of what was measured.

    Args:
        way: what to start.
        task: the bags.
        members: S, a multiple of the way's copies.
        epochs: timed epochs; one more before them compiles and warms up.
        number: of the round.

    Raises:
        RunError: the way failed.
    """
    load = os.getloadavg()[0]
    answers = answers_of(way.script, [way.arguments(task, members // way.copies, epochs + 1)] * way.copies)

    def microseconds(part: str) -> tuple[float, ...]:
        # Copies work at the same time, so that a member takes a part of the time that each copy needs for one.
        return tuple(us / way.copies for answer in answers for us in timed_epochs(way, answer, part))

    memory = sum(answer["peak_memory_mib"] for answer in answers)
    train, whole, details = microseconds("train"), microseconds("whole"), answers[0].get("details", {})
    return Measurement(way.name, members, number, train, whole, memory, load, details), answers[0]["versions"]


def timed_epochs(way: Way, answer: dict[str, Any], part: str) -> list[float]:
    """Microseconds per member and step of the epochs after the first."""
    if way.is_ours:
        return answer[f"{part}_microseconds"][1:]
    if part == "whole":
        return []
    return [us for member in answer["members"] for us in member["microseconds_per_step_by_epoch"][1:]]


@dataclass(frozen=True)
class Case:
    """A way with a number of members and of timed epochs."""

    way: Way
    members: int
    epochs: int


@dataclass(frozen=True)
class Measured:
    """All that was measured in a run, the versions of everything, what failed, and the seconds it took."""

    all: list[Measurement]
    versions: dict[str, str]
    failures: list[str]
    seconds: float


def measure_in_rounds(cases: Sequence[Case], task: Task, rounds: int) -> Measured:
    """Measures every case once in each round, so that a slow minute of the machine hits all ways alike.

    A case that fails, for want of memory, say, is left out, with a line that says so.

    Raises:
        RunError: nothing could be measured.
    """
    warn_if_busy()
    start = time.perf_counter()
    every, versions, failures = [], {}, []
    for number, case in ((number, case) for number in range(1, rounds + 1) for case in cases):
        label = f"round {number} of {rounds}  {case.way.name:24} S = {case.members:<5}"
        try:
            measured, its_versions = measure(case.way, task, case.members, case.epochs, number)
        except RunError as error:
            failures.append(f"{case.way.name}, S = {case.members}, round {number}: {error}")
            say(f"{label} left out: {error}")
            continue
        every.append(measured)
        versions |= its_versions
        whole = f", with validation {median(measured.whole):.1f}" if measured.whole else ""
        times = f"{median(measured.train):9.1f} us per member and step{whole}"
        say(f"{label} {times};  {measured.peak_memory_mib:.0f} MiB")
    if not every:
        raise RunError("nothing could be measured: see the lines above")
    return Measured(every, versions, failures, time.perf_counter() - start)


def warn_if_busy() -> None:
    """Says so where other processes would be measured as well."""
    load = os.getloadavg()[0]
    if load > CORES / 2:
        say(f"warning: other processes keep {load:.1f} of {CORES} cores busy, which the times will show")


# ---- results ----


@dataclass(frozen=True)
class Row:
    """A case over all rounds: medians over rounds of each round's median, and the rounds' range.

    Attributes:
        way: its name.
        members: S.
        rounds: in which it was measured.
        train_us: microseconds per member and step, training alone.
        train_us_low: of the fastest round.
        train_us_high: of the slowest round.
        whole_us: with validation; None for peers.
        peak_memory_mib: the largest of the rounds.
    """

    way: str
    members: int
    rounds: int
    train_us: float
    train_us_low: float
    train_us_high: float
    whole_us: float | None
    peak_memory_mib: float


def summarize(measurements: Sequence[Measurement]) -> list[Row]:
    """One row for each case, in the order in which they were first measured."""
    cases: dict[tuple[str, int], list[Measurement]] = {}
    for measured in measurements:
        cases.setdefault((measured.way, measured.members), []).append(measured)
    return [row_of(rounds) for rounds in cases.values()]


def row_of(rounds: Sequence[Measurement]) -> Row:
    """The row of the rounds of one case."""
    train = [median(measured.train) for measured in rounds]
    whole = [median(measured.whole) for measured in rounds if measured.whole]
    memory = max(measured.peak_memory_mib for measured in rounds)
    times = (median(train), min(train), max(train), median(whole) if whole else None)
    return Row(rounds[0].way, rounds[0].members, len(rounds), *times, memory)


def start(out: Path) -> None:
    """Sees to it that results can be written to `out` at the end, and that this process takes no accelerator.

    Raises:
        InputError: the folder holds results or a run already, or cannot be made.
    """
    jax.config.update("jax_platforms", "cpu")
    check_free(out, can_resume=False)
    if (out / "results.json").exists():
        raise InputError("out", str(out), "expected a folder without results: choose another one")


def default_out(name: str) -> Path:
    """A new folder for the results of a benchmark."""
    return Path("runs/benchmarks") / name / time.strftime("%Y%m%d-%H%M%S")


def describe(config: Any) -> dict[str, Any]:
    """The command, its options and the machine, for `results.json`."""
    options = {name: value for name, value, _ in fields_of(config)}
    return {"command": shlex.join(["python", *sys.argv]), "options": options, "usable_cores": CORES}


def write_measured(config: Any, measured: Measured, rows: Sequence[Row], **more: Any) -> RunFolder:
    """Writes `results.json`, with every measurement, and `results.csv`, with a line for each case."""
    folder = RunFolder(config.out, "", can_resume=False)
    table = [asdict(row) for row in rows]
    content = {"versions": measured.versions, "seconds": measured.seconds, "rows": table, **more}
    every = [asdict(one) for one in measured.all]
    folder.write_json(
        "results.json", {**describe(config), **content, "failures": measured.failures, "measurements": every}
    )
    folder.write_csv("results.csv", table)
    return folder
