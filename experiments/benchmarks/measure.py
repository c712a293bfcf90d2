"""What the benchmarks share: the ways of training, each timed in a process of its own, and the files of results.

A way is a script of this folder with its options: `jax_worker.py` trains with mil_jax, the peers with Keras and
PyTorch. Each measurement starts one anew, so that devices, thread pools and peak memory are its own, and all train on
the same bags. The process that starts them stays small: a child's peak memory, as the system counts it, is never below
what its parent held when it started it.
"""

import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import peer_io

from mil_jax.errors import InputError, RunError, check_whole
from mil_jax.run.config import fields_of
from mil_jax.run.folder import RunFolder, check_free
from mil_jax.run.screen import say

HERE = Path(__file__).parent


# ---- ways ----


@dataclass(frozen=True)
class Task:
    """What all ways of a run train on; `bags` is the file of the bags as the peers read them."""

    bags: Path
    seed: int
    train_bags: int
    val_bags: int


@dataclass(frozen=True)
class Way:
    """A way of training members: its name in tables, a script of this folder with options, and processes at once."""

    name: str
    script: str
    options: str
    copies: int = 1  # which share the members

    def arguments(self, task: Task, members: int, epochs: int) -> list[str]:
        """The command line that trains so many members for so many epochs, but for --out."""
        shared = f"--seed {task.seed} --members {members} {self.options}".split()
        if self.script == "jax_worker.py":
            return [*shared, *f"--train-bags {task.train_bags} --val-bags {task.val_bags} --epochs {epochs}".split()]
        return [*shared, "--bags", str(task.bags), "--timing-only-epochs", str(epochs)]


CORES = peer_io.usable_cores()

PLACED = Way("mil_jax", "jax_worker.py", "--way placed --parts both")
VMAP = Way("mil_jax, plain vmap", "jax_worker.py", "--way vmap --parts train")
SEQUENTIAL = Way("mil_jax, one by one", "jax_worker.py", "--way sequential --parts train")
ADAM = Way("Adam's update alone", "jax_worker.py", "--way adam --parts train")
TORCH = Way("PyTorch", "torch_peer.py", "--threads 1")
TORCH_THREADS = Way(f"PyTorch, {CORES} threads", "torch_peer.py", f"--threads {CORES}")
TORCH_PER_CORE = Way(f"PyTorch, {CORES} processes", "torch_peer.py", "--threads 1", CORES)
KERAS_TENSORFLOW = Way("Keras, TensorFlow", "keras_peer.py", "--backend tensorflow")
KERAS_JAX = Way("Keras, JAX", "keras_peer.py", "--backend jax")


@dataclass(frozen=True)
class Options:
    """What the benchmarks of speed have in common."""

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
    """The ways that a list such as torch,keras-jax names; InputError for a name that is not known."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise InputError(option, unknown[0], f"expected some of {','.join(known)}, or '' for none")
    return [way for name in names for way in known[name]]


def sizes(option: str, text: str) -> tuple[int, ...]:
    """Numbers of members from a list such as 1,2,8, in increasing order; InputError for anything else."""
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(option, text, "expected whole numbers from 1, with commas between them, such as 1,2,8")
    return tuple(sorted({int(part) for part in parts}))


def at_least(least: int, config: Any, *names: str) -> None:
    """Refuses options below `least` by an InputError that names the option."""
    for name in names:
        check_whole(name, getattr(config, name), least)


# ---- measuring ----


@dataclass(frozen=True)
class Measurement:
    """What one start of a way gave, in microseconds per member and step of each timed epoch.

    `whole` is with validation and attention statistics, empty for peers; the memory is that of all its processes.
    """

    way: str
    members: int
    round: int
    train: tuple[float, ...]
    whole: tuple[float, ...]
    peak_memory_mib: float
    load: float  # of the system, in the minute before
    details: dict[str, Any]  # what else the worker says of mil_jax


@contextlib.contextmanager
def task_of(config: Any) -> Iterator[Task]:
    """A task on bags of the embedded sample, as the options say, whose file is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder) / "bags.npz", config.seed, config.train_bags, config.val_bags)
        which = f"--job bags --seed {task.seed} --train-bags {task.train_bags} --val-bags {task.val_bags}"
        run_scripts("jax_worker.py", [[*which.split(), "--out", str(task.bags)]])  # so that this process stays small
        yield task


def run_scripts(script: str, argument_lists: Sequence[Sequence[str]]) -> None:
    """Runs a script of this folder once for each list of arguments, all at once; RunError with its last words."""
    commands = [[sys.executable, str(HERE / script), *arguments] for arguments in argument_lists]
    with contextlib.ExitStack() as processes:
        running = []
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            running.append(processes.enter_context(process))
            processes.callback(process.kill)  # does nothing to one that has ended
        errors = [process.communicate()[1] for process in running]
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


@dataclass(frozen=True)
class Case:
    """A way with a number of members, a multiple of its copies, and of timed epochs, before which one warms up."""

    way: Way
    members: int
    epochs: int


def measure(case: Case, task: Task, number: int) -> tuple[Measurement, dict[str, str]]:
    """One measurement, in round `number`, and the versions of what was measured; RunError where the way fails."""
    way, load = case.way, os.getloadavg()[0]
    arguments = way.arguments(task, case.members // way.copies, case.epochs + 1)
    answers = answers_of(way.script, [arguments] * way.copies)

    def microseconds(part: str) -> tuple[float, ...]:
        # Copies work at the same time, so that a member takes a part of the time that each copy needs for one.
        epochs = [member.get(part, [])[1:] for answer in answers for member in answer["members"]]
        return tuple(us / way.copies for of_member in epochs for us in of_member)

    train, whole = microseconds("microseconds_per_step_by_epoch"), microseconds("whole_microseconds_per_step_by_epoch")
    memory, details = sum(answer["peak_memory_mib"] for answer in answers), answers[0].get("details", {})
    return Measurement(way.name, case.members, number, train, whole, memory, load, details), answers[0]["versions"]


@dataclass(frozen=True)
class Measured:
    """All that was measured in a run, the versions of everything, what failed, and the seconds it took."""

    all: list[Measurement]
    versions: dict[str, str]
    failures: list[str]
    seconds: float


def measure_in_rounds(cases: Sequence[Case], task: Task, rounds: int) -> Measured:
    """Measures every case once in each round, so that a slow minute of the machine hits all ways alike.

    A case that fails, for want of memory, say, is left out, with a line that says so; RunError where all do.
    """
    warn_if_busy()
    start = time.perf_counter()
    every, versions, failures = [], {}, []
    for number, case in itertools.product(range(1, rounds + 1), cases):
        label = f"round {number} of {rounds}  {case.way.name:24} S = {case.members:<5}"
        try:
            measured, its_versions = measure(case, task, number)
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
    if (load := os.getloadavg()[0]) > CORES / 2:
        say(f"warning: other processes keep {load:.1f} of {CORES} cores busy, which the times will show")


# ---- results ----


@dataclass(frozen=True)
class Row:
    """A case over all rounds: the median, least and largest of the rounds' medians, and the largest memory."""

    way: str
    members: int
    rounds: int
    train_us: float
    train_us_low: float
    train_us_high: float
    whole_us: float | None  # with validation; None for peers
    peak_memory_mib: float


def summarize(measurements: Sequence[Measurement]) -> list[Row]:
    """One row for each case, in the order in which they were first measured."""
    cases: dict[tuple[str, int], list[Measurement]] = {}
    for measured in measurements:
        cases.setdefault((measured.way, measured.members), []).append(measured)
    rows = []
    for (way, members), rounds in cases.items():
        train = [median(measured.train) for measured in rounds]
        whole = [median(measured.whole) for measured in rounds if measured.whole]
        times = (median(train), min(train), max(train), median(whole) if whole else None)
        rows.append(Row(way, members, len(rounds), *times, max(measured.peak_memory_mib for measured in rounds)))
    return rows


def start(out: Path) -> None:
    """Sees to it that results can be written to `out` at the end, and that this process takes no accelerator."""
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
    table, measurements = ([asdict(one) for one in many] for many in (rows, measured.all))
    content = {"versions": measured.versions, "seconds": measured.seconds, "rows": table, **more}
    content |= {"failures": measured.failures, "measurements": measurements}
    folder.write_json("results.json", describe(config) | content)
    folder.write_csv("results.csv", table)
    return folder
