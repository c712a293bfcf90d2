"""How an experiment becomes a command: its config as options, and its errors as one line. Tyro has its address here."""

import contextlib
import dataclasses
import io
import logging
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from mil_jax.errors import InputError, RunError
from mil_jax.run.config import with_options
from mil_jax.run.processes import Interrupted, lost_processes
from mil_jax.run.saved import saved_options

Config = TypeVar("Config")
Positional = tyro.conf.Positional  # as the type of a config's field: an argument without a name


def command(config_type: type[Config], main: Callable[[Config], Any], doc: str | None) -> None:
    """Runs `main` on the options of the command line; bad input becomes one line and exit status 2.

    With --resume the options that are not given are those that the run in --out was started with.
    """
    for name in ("absl", "asyncio"):  # Orbax logs, with a traceback, what it raises anyway
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = None
    try:
        config = parse(config_type, doc)
        compute = getattr(config, "compute", None)
        if compute is not None and compute.resume and config.out:  # type: ignore[attr-defined]
            config = parse(config_type, doc, started_with(config))
        check_shared_folder(config)
        with lost_processes():
            main(config)
    except InputError as error:
        leave(f"error: {describe_error(error, config_type)}", 2)
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


def parse(
    config_type: type[Config], doc: str | None, default: Config | None = None, words: Sequence[str] | None = None
) -> Config:
    """The config that the command line, or these words of one, asks for; nested records are flat options.

    Raises:
        InputError: a value that a record refuses.
    """
    given: Any = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_type, description=doc, config=(tyro.conf.OmitArgPrefixes,), args=words, **given)
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None:  # Tyro puts what a record refuses into a box of its own
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(said.getvalue())
        raise


def started_with(config: Config) -> Config:
    """The config with the options that the run in its folder was started with.

    Raises:
        InputError: a `config.json` that cannot be read.
    """
    path = Path(config.out)  # type: ignore[attr-defined]
    try:
        return with_options(config, saved_options(path))
    except TypeError as error:
        raise InputError("resume", str(path), f"expected a whole config.json ({error})") from None


def check_shared_folder(config: Any) -> None:
    """Refuses to let each of several processes choose a folder of its own.

    Raises:
        InputError: no --out.
    """
    compute = getattr(config, "compute", None)
    if compute is not None and (compute.distributed or compute.coordinator) and config.out is None:
        raise InputError("out", None, "expected the folder of the run, the same one for all processes")


def describe_error(error: InputError, config_type: type) -> str:
    """The error in one line, naming the option where the argument is one."""
    is_option = error.argument in option_names(config_type)
    name = f"--{error.argument.replace('_', '-')}" if is_option else error.argument
    return f"{name} {error.value}: {error.expectation}"


def option_names(config_type: Any) -> set[str]:
    """The names of all options of a config, of nested records too."""
    hints, names = typing.get_type_hints(config_type), set()
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        names |= option_names(hint) if dataclasses.is_dataclass(hint) else {field.name}
    return names


def leave(message: str, status: int) -> None:
    """Prints the message and ends the process."""
    print(message, file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        os._exit(status)  # the orderly way out would wait for processes that may be dead
    sys.exit(status)
