"""The run folder: everything about a run, in a form that other programs read; the one module that writes results.

```
config.json      every option, the versions, the device, the data's name and hash
metrics.jsonl    a line per member and epoch
metrics.csv      the same as a table
summary.json     the results
members.csv      the results of each member as a table
attention.npz    attention weights, rows, labels of the test bags, per member
figures/*.png
report.html      all of it on one page
tensorboard/     where asked for: event files for TensorBoard
checkpoint/      the members' best parameters (Orbax)
progress/        the members between epochs, to resume a run that was killed (Orbax); the last few
log.txt          when the run started, stopped, went on, and what was odd
```

A file is complete or absent: each is written beside its place and then moved there.
"""

import csv
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout

from mil_jax.errors import InputError, RunError
from mil_jax.run import checkpoints

FORMAT = 1  # of the folder; raised when a reader of the old one could not read the new one


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back.

    Attributes:
        path: its folder.
        config: what `config.json` holds.
        summary: what `summary.json` holds; None where the run did not come to its end.
        params: the members' best parameters, with a leading axis S, as NumPy.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    params: Any


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a run that has come to its end left, but for the parameters.

    Attributes:
        path: its folder.
        config: what `config.json` holds.
        summary: what `summary.json` holds.
        log: the lines of `metrics.jsonl`.
        arrays: what `attention.npz` holds.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    log: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


class RunFolder:
    """Writes one run; made by `open_run`. Of several processes, the first one writes, and all write checkpoints."""

    def __init__(self, path: Path, fingerprint: str, can_resume: bool = True):
        self.path, self.fingerprint = path, fingerprint
        self.go_on = "go on with --resume" if can_resume else "start anew in another folder"
        self.writes = jax.process_index() == 0

    def note(self, text: str) -> None:
        """Appends a line to `log.txt`, with the time."""
        if self.writes:
            with self._guarded("log.txt"), (self.path / "log.txt").open("a") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Appends lines to `metrics.jsonl`, all in one write."""
        if self.writes:
            text = "".join(json.dumps(jsonable(line)) + "\n" for line in lines)
            with self._guarded("metrics.jsonl"), (self.path / "metrics.jsonl").open("a") as log:
                log.write(text)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file; NaN and infinities become null."""
        text = json.dumps(jsonable(content), indent=2) + "\n"
        self._put(name, lambda path: path.write_text(text))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file as UTF-8."""
        self._put(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file of any kind; folders in its name are made."""
        self._put(name, lambda path: path.write_bytes(content))

    def write_tables(self, summary: Mapping[str, Any]) -> None:
        """Writes `metrics.csv`, a row per member and epoch as in `metrics.jsonl`, and `members.csv`, one per member."""
        if self.writes:
            self.write_csv("metrics.csv", _read_log(self.path))
        joined = [
            {name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()}
            for row in summary["members"]
        ]
        self.write_csv("members.csv", joined)

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows as a table, one line each, under the names of the first row."""

        def save(path: Path) -> None:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(jsonable(row) for row in rows)

        self._put(name, save)

    def write_arrays(self, name: str, **arrays: np.ndarray) -> None:
        """Writes a compressed NumPy archive; the same arrays give the same bytes."""

        def save(path: Path) -> None:
            with path.open("wb") as file:  # given a path, NumPy would change its ending
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        self._put(name, save)

    def write_figure(self, name: str, figure: Any) -> None:
        """Writes a matplotlib figure as `figures/<name>.png`."""
        self._put(f"figures/{name}.png", lambda path: figure.savefig(path, format="png"))

    def write_params(self, params: Any) -> None:
        """Writes the members' parameters as the checkpoint `checkpoint/`, which is whole or absent."""
        with self._guarded("checkpoint"):
            checkpoints.save(self.path / "checkpoint", params)

    def save_progress(self, epoch: int, tree: Any) -> None:
        """Writes the members between two epochs, with the length of the log, and drops the oldest checkpoints."""
        folder, log_bytes = self.path / "progress", self._log_bytes()
        with self._guarded("progress"):
            checkpoints.save_progress(folder, epoch, tree, log_bytes=log_bytes, fingerprint=self.fingerprint)

    def load_progress(self, tree: Any) -> tuple[int, Any] | None:
        """The newest whole checkpoint, as (epoch, tree), with the log cut back to it; None where there is none.

        One that is damaged is passed over, which `log.txt` tells.

        Args:
            tree: records of the structure that `save_progress` got; the arrays may have other sizes.

        Raises:
            InputError: a checkpoint of another configuration.
        """
        loaded = checkpoints.load_progress(self.path / "progress", tree, self._log_bytes(), self.note)
        if loaded is None:
            if self.writes:
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
            return None
        restored, facts = loaded
        if facts["fingerprint"] != self.fingerprint:
            remedy = "its checkpoint was made with other options or data: give the same, or start anew"
            raise InputError("resume", str(self.path), remedy)
        if self.writes:
            os.truncate(self.path / "metrics.jsonl", facts["log_bytes"])
        return facts["epoch"], restored

    def _log_bytes(self) -> int:
        log = self.path / "metrics.jsonl"
        return log.stat().st_size if log.exists() else 0

    def drop_progress(self) -> None:
        """Removes the checkpoints of a run that has come to its end."""
        if self.writes:
            shutil.rmtree(self.path / "progress", ignore_errors=True)

    def _put(self, name: str, write: Callable[[Path], Any]) -> None:
        if not self.writes:
            return
        target = self.path / name
        partial = target.with_name(f".{target.name}.partial")
        with self._guarded(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(partial)
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Turns a full or broken disk into one sentence that says what is kept."""
        try:
            yield
        except Exception as error:
            # Orbax tells of the system in its text; an OSError without a number is its waiting for a lost process.
            text = str(error)
            full = "No space left" in text or "Disk quota" in text
            if not full and getattr(error, "errno", None) is None and "os_error_code" not in text:
                raise
            raise RunError(
                f"{self.path / name} cannot be written ({'no space left' if full else text.splitlines()[0]}); "
                f"what was written before is whole: make room, then {self.go_on}"
            ) from error


@contextmanager
def open_run(
    path: Path, config: Mapping[str, Any], how: Mapping[str, Any], resume: bool = False, *, can_resume: bool = True
) -> Iterator[RunFolder]:
    """Makes the folder of a run, or opens it to go on, and holds its lock until the end.

    Args:
        path: the folder.
        config: what decides the results, with the `options`; `config.json` keeps it.
        how: what does not decide the results and may change when it is resumed: paths of data, devices.
        resume: go on with the run that the folder holds.
        can_resume: whether the command has a way to go on, which messages then name.

    Raises:
        InputError: without `resume`, the folder holds a run, is a file, or cannot be written to; with it, there is no
            run, it has ended, or its options differ; or another process is running in the folder.
    """
    config = jsonable(config)
    run = RunFolder(path, fingerprint(config), can_resume)
    if resume:
        check_resumable(path, config)
    elif run.writes:  # the others may look when the first one has made the folder already
        check_free(path, can_resume)
    if not run.writes:
        yield run
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", str(path), f"choose a folder that can be made ({error})") from None
    lock = FileLock(path / ".lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        raise InputError("out", str(path), "another process is running in it: wait, or choose another") from None
    except OSError as error:
        raise InputError("out", str(path), f"choose a folder that can be written to ({error})") from None
    with held:
        if not resume:
            content = {"format": FORMAT, **config, **how, "versions": versions()}
            run.write_json("config.json", content)
        run.note("resumed" if resume else "started")
        try:
            yield run
        except KeyboardInterrupt:
            run.note("interrupted")
            raise KeyboardInterrupt(f"{path} keeps what was complete; {run.go_on}") from None


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of what decides the results."""
    return hashlib.sha256(json.dumps(jsonable(config), sort_keys=True).encode()).hexdigest()


def check_free(path: Path, can_resume: bool = True) -> None:
    """Refuses a path where no new run can be made; touches nothing.

    Raises:
        InputError: the path holds a run, or is not a folder that can be written to.
    """
    if path.exists() and not path.is_dir():
        raise InputError("out", str(path), "this is a file: choose a folder")
    if (path / "config.json").exists():
        go_on = ", or go on with it by --resume" if can_resume else ""
        raise InputError("out", str(path), f"it holds a run already: choose another folder{go_on}")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("out", str(path), f"{parent} cannot be written to: choose another folder")


def check_resumable(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses a folder that holds no run to go on with, or one with other options; touches nothing.

    Raises:
        InputError: as said.
    """
    if (path / "summary.json").exists():
        raise InputError("resume", str(path), "this run has come to its end: there is nothing to go on with")
    if not (path / "config.json").exists():
        raise InputError("resume", str(path), "there is no run in this folder: name that of a run by --out")
    before = read_config(path, "resume")
    given = jsonable(config)
    for name, value in given["options"].items():
        if value != before["options"].get(name):
            remedy = f"the run was started with {before['options'].get(name)!r}: give the same, or start anew"
            raise InputError(name, value, remedy)
    if fingerprint(given) != fingerprint({name: before.get(name) for name in given}):
        raise InputError("resume", str(path), "the data differ from those that the run was started with")


def saved_options(path: Path) -> dict[str, Any]:
    """The options that a run was started with; none where there is no run."""
    if not (path / "config.json").exists():
        return {}
    config = read_config(path, "resume")
    return config["options"] | config["paths"] | config.get("output", {})


def read_config(path: Path, argument: str = "path") -> dict[str, Any]:
    """What `config.json` of a run holds.

    Raises:
        InputError: no run there, or one of a newer format.
    """
    config = _read_json(path, "config.json", argument)
    if config.get("format", 0) > FORMAT:
        remedy = f"it was written by a newer mil_jax; this one reads format {FORMAT}"
        raise InputError(argument, str(path), remedy)
    return config


def load_run(path: Path | str) -> Run:
    """Reads a run back; its parameters predict on new bags with `ensemble.predict_ensemble`.

    Raises:
        InputError: no run there, one of a newer format, or one without parameters.
    """
    path = Path(path)
    config = read_config(path)
    summary = _read_json(path, "summary.json") if (path / "summary.json").exists() else None
    return Run(path, config, summary, load_params(path / "checkpoint"))


def load_finished(path: Path | str, argument: str = "path") -> FinishedRun:
    """Reads what a run left that has come to its end; touches nothing.

    Raises:
        InputError: no run there, one of a newer format, one that has not come to its end, or a damaged file.
    """
    path = Path(path)
    config = read_config(path, argument)
    if not (path / "summary.json").exists():
        remedy = "this run has not come to its end, so it has no results yet: go on with it by --resume"
        raise InputError(argument, str(path), remedy)
    summary = _read_json(path, "summary.json", argument)
    try:
        # Opened here: NumPy would leave a damaged file open.
        with (path / "attention.npz").open("rb") as file, np.load(file) as saved:
            arrays = dict(saved)
        return FinishedRun(path, config, summary, _read_log(path), arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        remedy = f"this run is not complete: one of its files is missing or damaged ({error})"
        raise InputError(argument, str(path), remedy) from None


def _read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def load_params(path: Path) -> Any:
    """Reads the parameters that `write_params` wrote, as NumPy.

    Raises:
        InputError: no whole checkpoint there.
    """
    try:
        return checkpoints.load(path)[0]
    except Exception as error:  # Orbax raises many kinds for a checkpoint that is missing or damaged
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("path", str(path), f"no whole checkpoint here ({first_line})") from error


def _read_json(folder: Path, name: str, argument: str = "path") -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        remedy = f"no run here: {name} cannot be read ({error})"
        raise InputError(argument, str(folder), remedy) from None


def versions() -> dict[str, str]:
    """What the results depend on besides the options: versions and the device."""
    packages = ("mil_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def jsonable(value: Any) -> Any:
    """The value with NumPy and JAX scalars and arrays as Python's own, and what is not finite as None."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
