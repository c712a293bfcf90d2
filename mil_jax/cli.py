"""How an experiment becomes a command: options, errors, progress and tables. Tyro and rich have their address here."""

import ctypes
import dataclasses
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, TypeVar

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mil_jax.errors import InputError, RunError

Config = TypeVar("Config")
Positional = tyro.conf.Positional  # as the type of a config's field: an argument without a name

PLAIN_WIDTH = 110  # columns where the output is not a terminal


def make_console() -> Console:
    """The terminal, or plain text of a fixed width; silent in all processes of a run but the first."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(highlight=False, width=width, quiet=jax.process_index() > 0)


class Interrupted(Exception):
    """The person or the cluster asked the run to stop; the message says what is complete."""


@dataclass(frozen=True)
class Compute:
    """How a run is computed: none of it decides what comes out."""

    devices: int | None = None
    """Devices that share the members; on a CPU one per core where not given, elsewhere all."""
    together: int | None = None
    """Members at once in a device; where not given, 1 on a CPU, elsewhere all that the device got."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints of the whole run; 0 for none."""
    resume: bool = False
    """Go on with the run in --out, with the options that it was started with."""
    compilation_cache: str = "auto"
    """Folder for compiled programs, 'auto' for one in the user's cache folder, or 'off'."""
    distributed: bool = False
    """Join the other processes of the run, as SLURM, Kubernetes or a TPU pod tells them."""
    coordinator: str | None = None
    """Join them by hand: address and port of the first process, such as 10.0.0.1:12345."""
    processes: int | None = None
    """Their number, with --coordinator."""
    process_id: int | None = None
    """Which of them this is, from 0, with --coordinator."""
    heartbeat: int = 30
    """Seconds without a sign of life after which a process counts as dead."""


ComputeOptions = Annotated[Compute, tyro.conf.arg(name="")]  # as a field of a config: options without a prefix


def command(
    config_type: type[Config],
    main: Callable[[Config], Any],
    doc: str | None,
    saved_options: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Runs `main` on the options of the command line; bad input becomes one line and exit status 2.

    With --resume the options that are not given are those that the run in --out was started with.
    """
    config = tyro.cli(config_type, description=doc)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs, with a traceback, what it raises anyway
    try:
        if saved_options and config.compute.resume and config.out:  # type: ignore[attr-defined]
            config = tyro.cli(config_type, description=doc, default=with_options(config, saved_options(config.out)))  # type: ignore[attr-defined]
        check_shared_folder(config)
        with lost_processes():
            main(config)
    except InputError as error:
        leave(f"error: {describe_error(error, config)}", 2)
    except RunError as error:
        leave(f"error: {error}", 2)
    except Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr, flush=True)
        sys.exit(130)  # all processes of the run stop alike, and can wait for one another
    except KeyboardInterrupt as stop:
        leave(f"stopped: {stop}" if stop.args else "stopped before there was anything to keep", 130)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        leave(traceback.format_exc(), 1)  # at once, so that the others hear of it


def check_seed(seed: int) -> None:
    """Refuses a seed that JAX would cut to 32 bits.

    Raises:
        InputError: as said.
    """
    if not 0 <= seed < 2**32:
        raise InputError("seed", seed, "use 0 to 4294967295")


def check_shared_folder(config: Any) -> None:
    """Refuses to let each of several processes choose a folder of its own.

    Raises:
        InputError: no --out.
    """
    compute = getattr(config, "compute", Compute())
    if (compute.distributed or compute.coordinator) and config.out is None:
        raise InputError("out", None, "name the folder of the run, the same one for all processes")


def with_options(config: Config, options: dict[str, Any]) -> Config:
    """The config with options as JSON has them."""
    known = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    values = {
        name: tuple(value) if isinstance(value, list) else Path(value) if name.endswith("_dir") and value else value
        for name, value in options.items()
        if name in known
    }
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def describe_error(error: InputError, config: Any) -> str:
    """The error in one line, naming the option where the argument is one."""
    groups = [config, *(getattr(config, field.name) for field in dataclasses.fields(config))]
    options = {
        field.name for group in groups if dataclasses.is_dataclass(group)
        for field in dataclasses.fields(group)
    }  # fmt: skip
    name = error.argument
    if name in options:
        name = "--" + name.replace("_", "-")
    return f"{name} {error.value}: {error.remedy}"


def leave(message: str, status: int) -> None:
    """Prints the message and ends the process."""
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)  # the orderly way out would wait for processes that may be dead
    sys.exit(status)


def start_jax(compute: Compute, members: int) -> None:
    """Joins the other processes, makes the CPU's devices and opens the compilation cache, before JAX starts.

    Raises:
        InputError: options that do not go together, or devices that there are not.
    """
    if compute.checkpoint_every < 0:
        raise InputError("checkpoint_every", compute.checkpoint_every, "use 0 or more")
    least = {"devices": compute.processes or 1, "together": 1, "heartbeat": 1}
    for name, value in least.items():
        given = getattr(compute, name)
        if given is not None and given < value:
            raise InputError(name, given, f"use at least {value}")
    folder = cache_folder(compute.compilation_cache)
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    make_cpu_devices(compute)
    join_processes(compute, members)
    if compute.devices is not None and compute.devices > jax.device_count():
        remedy = f"use 1 to {jax.device_count()}, the {jax.default_backend()} devices there are"
        raise InputError("devices", compute.devices, remedy)


def make_cpu_devices(compute: Compute) -> None:
    """One device per core, at least two (see `ensemble.default_placement`), or as many as asked for."""
    wanted = compute.devices or max(core_count(), 2)
    if compute.devices is not None and compute.processes:
        wanted = -(-compute.devices // compute.processes)
    # Where JAX has started already, as in a notebook or a test, its devices stay as they are.
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted)


def core_count() -> int:
    """The processor cores that this process may use; where the system does not say (macOS), all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def join_processes(compute: Compute, members: int) -> None:
    """Starts `jax.distributed` where the options ask for it."""
    by_hand = (compute.coordinator, compute.processes, compute.process_id)
    if not compute.distributed and by_hand == (None, None, None):
        return
    if not compute.distributed and None in by_hand:
        remedy = "give --coordinator, --processes and --process-id together, or --distributed"
        raise InputError("coordinator", compute.coordinator, remedy)
    if compute.processes is not None and compute.processes > members:
        raise InputError("processes", compute.processes, f"use at most {members}, the number of members")
    if compute.process_id is not None and not 0 <= compute.process_id < (compute.processes or 0):
        raise InputError("process_id", compute.process_id, f"use 0 to {(compute.processes or 1) - 1}")
    say_why_on_abort()
    # JAX's own handler of SIGTERM would swallow it wherever `stop_requests` is not at work.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *by_hand, heartbeat_timeout_seconds=compute.heartbeat, shutdown_timeout_seconds=PATIENCE
        )
    except (IndexError, RuntimeError, ValueError) as error:
        first_line = str(error).splitlines()[0]
        remedy = f"the processes cannot be joined ({first_line:.200}): give --coordinator ADDRESS:PORT of the first one"
        name = "distributed" if compute.coordinator is None else "coordinator"
        raise InputError(name, getattr(compute, name), remedy) from error
    if jax.process_count() > members:
        raise InputError("processes", jax.process_count(), f"use at most {members}, the number of members")


# Seconds that a process waits at its end for the first one, which still draws and writes; after JAX's own 300, all of
# them would be aborted. One that dies meanwhile is found by its heartbeat.
PATIENCE = 3600
LOST_PROCESS = "another process of the run has died or cannot be reached"
LOST_REMEDY = "start all processes again, in any number, with --resume"


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turns what JAX and Orbax raise when another process has died into one sentence.

    Raises:
        RunError: in a run of several processes, that one of them is lost.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, TimeoutError) as error:
        if jax.process_count() == 1:
            raise
        first_line = (str(error).splitlines() or [""])[0]
        raise RunError(f"{LOST_PROCESS} ({first_line:.200}); {LOST_REMEDY}") from error


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _say_why(number: int) -> None:
    os.write(2, f"error: {LOST_PROCESS}; {LOST_REMEDY}\n".encode())
    os._exit(2)


def say_why_on_abort() -> None:
    """Ends the process with a sentence and exit status 2 where JAX would only abort it.

    When JAX's heartbeat finds that a process is lost, it aborts all others from a thread of its own, which no
    Python handler of signals can see: the system's own handler is set.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _say_why)


def cache_folder(choice: str) -> Path | None:
    """The folder of the compilation cache, by the user's choice; made if need be.

    Raises:
        InputError: a folder that cannot be made. (The one in the user's cache folder is done without.)
    """
    if choice == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "mil_jax" / "compiled" if choice == "auto" else Path(choice).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if choice == "auto":
            return None
        raise InputError("compilation_cache", choice, f"name a folder that can be made ({error}), or off") from None
    return folder


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within it, Ctrl-C and SIGTERM set a flag that the caller reads, so that an epoch ends whole.

    A second Ctrl-C interrupts at once.
    """
    asked = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopwatch:
    """Seconds by phase; `total` runs from the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to the phase."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds seconds to the phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        """The phases, and the total until now."""
        return {**self.seconds, "total": time.perf_counter() - self.start}


@contextmanager
def epoch_progress(epochs: int, title: str = "") -> Iterator[Callable[[int, str], None]]:
    """A progress bar over epochs; the caller gets `show(epoch, losses)`.

    Where there is no terminal, plain lines; with a title, one of many fits, only the last one.
    """
    console = make_console()
    if not console.is_terminal:
        last = [""]

        def show(epoch: int, text: str) -> None:
            last[0] = f"{title + ': ' if title else ''}epoch {epoch:3d}/{epochs}  {text}"
            if not title:
                console.print(last[0], soft_wrap=True)

        yield show
        if title and last[0]:
            console.print(last[0], soft_wrap=True)
        return
    columns = (
        TextColumn(f"{title}  epoch" if title else "epoch"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=epochs)
        yield lambda epoch, text: progress.update(task, completed=epoch, description=text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
    """Prints a table; numbers stand on the right, floats with four digits."""
    table = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) or row[i] in ("", "–") for row in rows)
        # Where the terminal is too narrow, the columns that have spaces to break at give way first.
        whole = not any(" " in text for text in (column, *(format_cell(row[i]) for row in rows)))
        table.add_column(column, justify="right" if numeric else "left", no_wrap=whole)
    for row in rows:
        table.add_row(*map(format_cell, row))
    make_console().print(table)


def format_cell(value: object) -> str:
    """A cell's text: floats with four digits, an undefined one as a dash, whole numbers with commas."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def say(text: str) -> None:
    """Prints a line, however long."""
    make_console().print(text, soft_wrap=True, markup=False)
