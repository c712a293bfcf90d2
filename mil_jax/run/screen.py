"""What a run says on the screen: progress, tables, results. Rich has its address here."""

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax
import numpy as np
import rich.table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mil_jax.bags import of_member
from mil_jax.model import MIL, layer_table
from mil_jax.run.summary import Summary
from mil_jax.sampling import Splits
from mil_jax.text import Table, cell_text
from mil_jax.training import EpochInfo

PLAIN_WIDTH = 110  # columns where the output is not a terminal


def make_console() -> Console:
    """The terminal, or plain text of a fixed width; silent in all processes of a run but the first."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(highlight=False, width=width, quiet=jax.process_index() > 0)


def release_memory() -> None:
    """Gives back to the system what compilers freed, which glibc would keep: a third of a small run's peak."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
        release_memory()
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


def print_table(shown: Table) -> None:
    """Prints a table; columns of numbers stand on the right."""
    table = rich.table.Table(
        title=shown.title, caption=shown.caption or None, title_justify="left", caption_justify="left"
    )
    for i, (column, numeric) in enumerate(zip(shown.columns, shown.numeric, strict=True)):
        # Where the terminal is too narrow, the columns that have spaces to break at give way first.
        whole = not any(" " in text for text in (column, *(cell_text(row[i]) for row in shown.rows)))
        table.add_column(column, justify="right" if numeric else "left", no_wrap=whole)
    for row in shown.rows:
        table.add_row(*map(cell_text, row))
    make_console().print(table)


def say(text: str) -> None:
    """Prints a line, however long."""
    make_console().print(text, soft_wrap=True, markup=False)


# ---- what a run says ----


def losses_text(info: EpochInfo) -> str:
    """The live losses: mean over the members that are still training."""
    running = np.asarray(info.epoch) > 0
    mean = lambda values: float(np.mean(np.asarray(values)[running]))  # noqa: E731
    return (
        f"train loss {mean(info.train_loss):.4f}  val loss {mean(info.val_loss):.4f}  "
        f"val accuracy {mean(info.val_accuracy):.4f}  training {running.sum()} of {running.size}"
    )


def print_problem(name: str, class_names: Sequence[str], splits: Splits, mil: MIL) -> None:
    """Says what will be learned, from what, and by which model."""
    rows = []
    for part, bags in splits._asdict().items():
        counts = np.bincount(np.asarray(of_member(bags, 0).label), minlength=len(class_names))
        rows.append((part, int(counts.sum()), *counts.tolist()[::-1]))
    print_table(Table(f"Bags of {name}", ("set", "bags", *reversed(class_names)), rows))
    layers = layer_table(mil, splits.train.slots, splits.train.kind.shape)
    total = sum(count for _, _, count in layers)
    print_table(Table("Model", ("layer", "parameters", "number"), [*layers, ("total", "", total)]))


SHOWN_MEMBERS = 16


def print_results(summary: Summary) -> None:
    """The results as tables, what is odd about them, and the seconds."""
    for table in summary.shown_tables(SHOWN_MEMBERS):
        print_table(table)
    for sentence in summary.warnings():
        say(f"warning: {sentence}")
    gone = sum(row["diverged"] for row in summary.members)
    if gone:
        say(f"{gone} of {len(summary.members)} members diverged: they are in no mean and not in the ensemble")
    say_seconds(summary.seconds)


def say_seconds(seconds: Mapping[str, float]) -> None:
    """The seconds of each phase, in a line."""
    say("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
