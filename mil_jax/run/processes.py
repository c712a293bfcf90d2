"""The processes of a run: JAX's devices and cache before it starts, several hosts, signals, lost processes."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

from mil_jax.errors import InputError, RunError
from mil_jax.placement import Placement, core_count, default_placement
from mil_jax.run.config import Compute


def start_jax(compute: Compute, members: int) -> None:
    """Joins the other processes, makes the CPU's devices and opens the compilation cache, before JAX starts."""
    folder = cache_folder(compute.compilation_cache)
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    make_cpu_devices(compute)
    join_processes(compute, members)
    if compute.devices is not None and compute.devices > jax.device_count():
        expected = f"expected 1 to {jax.device_count()}, the {jax.default_backend()} devices there are"
        raise InputError("devices", compute.devices, expected)


def make_cpu_devices(compute: Compute) -> None:
    """One device per core, at least two (see `placement.default_placement`), or as many as asked for."""
    wanted = -(-compute.devices // (compute.processes or 1)) if compute.devices else max(core_count(), 2)
    with suppress(RuntimeError):  # JAX has started already, as in a notebook or a test: its devices stay as they are
        jax.config.update("jax_num_cpu_devices", wanted)


def placement_of(compute: Compute, members: int) -> Placement:
    """Where the members run: as the options say, else the backend's default; too many devices are an InputError."""
    default = default_placement(members)
    devices = default.devices if compute.devices is None else compute.devices
    together = default.together if compute.together is None else compute.together
    return Placement(devices, together)


def join_processes(compute: Compute, members: int) -> None:
    """Starts `jax.distributed` where the options ask for it."""
    by_hand = (compute.coordinator, compute.processes, compute.process_id)
    if not compute.distributed and by_hand == (None, None, None):
        return
    if not compute.distributed and None in by_hand:
        expected = "expected --coordinator, --processes and --process-id together, or --distributed"
        raise InputError("coordinator", compute.coordinator, expected)
    if compute.processes is not None and compute.processes > members:
        raise InputError("processes", compute.processes, f"expected at most {members}, the number of members")
    if compute.process_id is not None and not 0 <= compute.process_id < (compute.processes or 0):
        raise InputError("process_id", compute.process_id, f"expected 0 to {(compute.processes or 1) - 1}")
    say_why_on_abort()
    # JAX's own handler of SIGTERM would swallow it wherever `stop_requests` is not at work.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*by_hand, heartbeat_timeout_seconds=compute.heartbeat)
    except (IndexError, RuntimeError, ValueError) as error:
        why = f"{str(error).splitlines()[0]:.200}"
        expected = f"expected processes that can be joined ({why}): give --coordinator ADDRESS:PORT of the first one"
        name = "distributed" if compute.coordinator is None else "coordinator"
        raise InputError(name, getattr(compute, name), expected) from error
    if jax.process_count() > members:
        raise InputError("processes", jax.process_count(), f"expected at most {members}, the number of members")


class Interrupted(Exception):
    """The person or the cluster asked the run to stop; the message says what is complete."""


LOST_PROCESS = "another process of the run has died or cannot be reached"
LOST_REMEDY = "start all processes again, in any number, with --resume"


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turns what JAX and Orbax raise when another process has died into a RunError of one sentence."""
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


def is_first() -> bool:
    """Whether this is the process that writes, prints and decides; alone, it is."""
    return jax.process_index() == 0


def from_first(number: int) -> int:
    """The number that the first process gives, in all of them; all must call it."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process of the run, so that all decide alike."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def cache_folder(choice: str) -> Path | None:
    """The folder of the compilation cache, made if need be; an InputError if a folder that was named cannot be."""
    if choice == "off":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "mil_jax" / "compiled" if choice == "auto" else Path(choice).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if choice == "auto":
            return None
        raise InputError("compilation_cache", choice, f"expected a folder that can be made ({error}), or off") from None
    return folder
