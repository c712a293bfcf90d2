"""The run folder: everything about a run, in a form that other programs read; the one module that writes results.

```
config.json      every option, the versions, the device, the model, the instances, the data's name and hash
metrics.jsonl    a line per member and epoch
metrics.csv      the same as a table
summary.json     the results
members.csv      the results of each member as a table
attention.npz    attention weights, rows, mask and labels of the test bags, per member
figures/*.png
report.html      all of it on one page
tensorboard/     where asked for: event files for TensorBoard
checkpoint/      the members' best parameters and their standardisation
progress/        the members between epochs, to resume a run that was killed; the last few; of a study, its rows too
log.txt          when the run started, stopped, went on, and what was odd
```

A file is complete or absent: each is written beside its place and then moved there.
"""

import copy
import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mil_jax.errors import InputError, RunError
from mil_jax.run import checkpoints
from mil_jax.run.processes import from_first, is_first
from mil_jax.run.saved import FORMAT, ROWS, check_resumable, fingerprint, jsonable, read_log, versions


class RunFolder:
    """Writes one run; made by `open_run`. Of several processes, the first one writes, and all write checkpoints."""

    def __init__(self, path: Path, fingerprint: str, can_resume: bool = True):
        self.path, self.fingerprint = path, fingerprint
        self.progress = path / "progress"
        self.go_on = "go on with --resume" if can_resume else "start anew in another folder"
        self.writes = is_first()

    def part(self, name: str) -> "RunFolder":
        """The same folder, for a part of the run that has checkpoints of its own and no log."""
        part = copy.copy(self)
        part.progress = self.progress / name
        return part

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

    def write_log_table(self) -> None:
        """Writes `metrics.csv`, a row per member and epoch as in `metrics.jsonl`."""
        if self.writes:
            self.write_csv("metrics.csv", read_log(self.path))

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows as a table, one line each, under the names of the first row."""

        def save(path: Path) -> None:
            with path.open("w", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(jsonable(row) for row in rows)

        self._put(name, save)

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the rows that a study has measured: for people as `results.csv`, and to go on from as they are."""
        self.write_text(ROWS, json.dumps(rows, default=jsonable))
        self.write_csv("results.csv", rows)

    def write_arrays(self, name: str, **arrays: Any) -> None:
        """Writes a compressed NumPy archive; the same arrays give the same bytes."""

        def save(path: Path) -> None:
            with path.open("wb") as file:  # given a path, NumPy would change its ending
                np.savez_compressed(file, **arrays)

        self._put(name, save)

    def write_figure(self, name: str, figure: Any) -> None:
        """Writes a matplotlib figure as `figures/<name>.png`."""
        self._put(f"figures/{name}.png", lambda path: figure.savefig(path, format="png"))

    def write_members(self, tree: Any) -> None:
        """Writes what predicting needs of the members as the checkpoint `checkpoint/`, which is whole or absent."""
        with self._guarded("checkpoint"):
            checkpoints.save(self.path / "checkpoint", tree)

    def save_progress(self, epoch: int, tree: Any, seconds: float = 0.0) -> None:
        """Writes the members between two epochs, with the length of the log, and drops the oldest checkpoints.

        `seconds` is how long they were trained until then, in all sittings.
        """
        facts = {"log_bytes": self._log_bytes(), "fingerprint": self.fingerprint, "seconds": seconds}
        with self._guarded("progress"):
            checkpoints.save_progress(self.progress, epoch, tree, **facts)

    def load_progress(self, tree: Any) -> tuple[Any, checkpoints.Facts] | None:
        """The newest whole checkpoint with its epoch and seconds, the log cut back to it; None where there is none.

        One that is damaged is passed over, which `log.txt` tells; one of another configuration is an InputError. Arrays
        may have other sizes than those of `tree`, whose structure is that which `save_progress` got.
        """
        loaded = checkpoints.load_progress(self.progress, tree, self._log_bytes(), self.note)
        if loaded and loaded[1]["fingerprint"] != self.fingerprint:
            expected = "expected the options and data that its checkpoint was made with"
            raise InputError("resume", str(self.path), expected)
        log_bytes = loaded[1]["log_bytes"] if loaded else 0
        if self.writes and not log_bytes:
            (self.path / "metrics.jsonl").unlink(missing_ok=True)
        elif self.writes:
            os.truncate(self.path / "metrics.jsonl", log_bytes)
        return loaded

    def _log_bytes(self) -> int:
        log = self.path / "metrics.jsonl"
        return log.stat().st_size if log.exists() else 0

    def drop_progress(self) -> None:
        """Removes the checkpoints of a run, or a part, that has come to its end."""
        if self.writes:
            shutil.rmtree(self.progress, ignore_errors=True)

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
    path: str | Path,
    config: Mapping[str, Any],
    how: Mapping[str, Any],
    resume: bool = False,
    *,
    can_resume: bool = True,
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
    path, config = Path(path), jsonable(config)
    run = RunFolder(path, fingerprint(config), can_resume)
    if resume:
        check_resumable(path, config)
    elif run.writes:  # the others may look when the first one has made the folder already
        check_free(path, can_resume)
    if not run.writes:
        yield run
        from_first(0)  # one that left while the first still writes would end it, and JAX's own end waits 300 s at most
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("out", str(path), f"expected a folder that can be made ({error})") from None
    lock = FileLock(path / ".lock")
    try:
        locked = lock.acquire(timeout=0)
    except Timeout:
        raise InputError("out", str(path), "expected another folder: another process is running in it") from None
    except OSError as error:
        raise InputError("out", str(path), f"expected a folder that can be written to ({error})") from None
    with locked:
        if not resume:
            content = {"format": FORMAT, **config, **how, "versions": versions()}
            run.write_json("config.json", content)
        run.note("resumed" if resume else "started")
        try:
            yield run
        except KeyboardInterrupt:
            run.note("interrupted")
            raise KeyboardInterrupt(f"{path} keeps what was complete; {run.go_on}") from None
        from_first(0)


def check_free(path: str | Path, can_resume: bool = True) -> None:
    """Refuses, by an InputError, a path where no new run can be made, or that holds one; touches nothing."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError("out", str(path), "expected a folder, not a file")
    if (path / "config.json").exists():
        go_on = ", or to go on with this one by --resume" if can_resume else ""
        raise InputError("out", str(path), f"expected another folder{go_on}: it holds a run already")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("out", str(path), f"expected a folder that can be made: {parent} cannot be written to")
