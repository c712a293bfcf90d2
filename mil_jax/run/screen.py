"""What a run says on the screen: progress, tables, results. Rich has its address here."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mil_jax.bags import of_member
from mil_jax.model import MIL, layer_table
from mil_jax.run.summary import Summary
from mil_jax.sampling import Splits
from mil_jax.text import cell_text, is_numeric
from mil_jax.training import EpochInfo

PLAIN_WIDTH = 110  # columns where the output is not a terminal


def make_console() -> Console:
    """The terminal, or plain text of a fixed width; silent in all processes of a run but the first."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(highlight=False, width=width, quiet=jax.process_index() > 0)


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
        # Where the terminal is too narrow, the columns that have spaces to break at give way first.
        whole = not any(" " in text for text in (column, *(cell_text(row[i]) for row in rows)))
        numeric = all(is_numeric(row[i]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=whole)
    for row in rows:
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
    print_table(f"Bags of {name}", ("set", "bags", *reversed(class_names)), rows)
    layers = layer_table(mil, splits.train.slots, splits.train.kind.shape)
    total = sum(count for _, _, count in layers)
    print_table("Model", ("layer", "parameters", "number"), [*layers, ("total", "", total)])


SHOWN = ("best_epoch", "test_loss", "test_accuracy", "test_auc", "instance_hit_at_1", "instance_auc")
SHOWN_MEMBERS = 16
ROLES = {"train": "learned from", "val": "epoch chosen on", "test": "untouched"}
MEASURES = ("loss", "accuracy", "auc", "precision", "recall")


def print_results(summary: Summary) -> None:
    """The results as tables, what is odd about them, and the seconds."""
    members = summary.members
    rows = [_member_row(row) for row in members[:SHOWN_MEMBERS]]
    if len(members) > 1:
        rows.append(["mean of members", *(summary.mean[name] for name in SHOWN)])
        rows.append(["standard deviation", *(summary.standard_deviation[name] for name in SHOWN)])
        rows.append(["ensemble", "", *(summary.ensemble[name] for name in SHOWN[1:])])
    hidden = f"the first {SHOWN_MEMBERS} of {len(members)} members; summary.json has all"
    caption = hidden if len(members) > SHOWN_MEMBERS else ""
    names = ("", *(name.replace("_", " ") for name in SHOWN))
    print_table("Test bags (nothing was chosen on them)", names, rows, caption)
    sets = [[name, role, *(summary.mean[f"{name}_{m}"] for m in MEASURES)] for name, role in ROLES.items()]
    print_table("Mean of members, all sets", ("set", "role", *MEASURES), sets)
    for row in members:
        for sentence in row["warnings"]:
            say(f"warning: member {row['seed']}: {sentence}")
    gone = sum(row["diverged"] for row in members)
    if gone:
        say(f"{gone} of {len(members)} members diverged: they are in no mean and not in the ensemble")
    say("seconds: " + "  ".join(f"{name} {value:.1f}" for name, value in summary.seconds.items()))


def _member_row(row: Mapping[str, Any]) -> list[object]:
    if row["diverged"]:
        return [f"member {row['seed']}", "diverged", *[None] * (len(SHOWN) - 1)]
    return [f"member {row['seed']}", *(row[name] for name in SHOWN)]
