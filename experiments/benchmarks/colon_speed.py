"""How long does a step of the colon network with augmentation take, next to a plain PyTorch loop?

    python experiments/benchmarks/colon_speed.py

The paper's network for patches of colon nuclei (Ilse et al. 2018) on bags of 224 patches, one bag a step: augmentation,
forward, backward and Adam, in the steady state (the first epoch of each start is left out). Pixels are drawn, since the
time does not depend on them. mil_jax trains S members; the PyTorch loop (`colon_torch.py`) has the same network,
the same augmentation, written for a whole bag at once, and fused Adam; it trains one member after the other with one
thread or one per core, in PyTorch's own layout of images and with channels last, or as one process per core. Each way
runs in a process of its own, in turns for several rounds. The limit is the number of operations of a step's products
at the measured speed of XLA's product of large matrices, on all cores.

Writes results.json, results.csv and figures/colon_speed.png. PyTorch comes with `pip install 'mil_jax[peers]'`.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import peer_io
from measure import CORES, Case, Measured, Row, Task, Way

from mil_jax.run import cli
from mil_jax.run.screen import print_table, say
from mil_jax.text import DASH, Table

OURS = Way("mil_jax", "colon_worker.py", "")
LAYOUTS = {"": "", ", channels last": " --channels-last"}
TORCH = tuple(
    Way(f"PyTorch, {name}{layout}", "colon_torch.py", f"--threads {threads}{option}", copies)
    for name, threads, copies in (("1 thread", 1, 1), (f"{CORES} threads", CORES, 1), (f"{CORES} processes", 1, CORES))
    if name == "1 thread" or CORES > 1
    for layout, option in LAYOUTS.items()
)
BEST = "PyTorch, the fastest loop"
SIDE = 27  # of a patch, in pixels


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    sizes: str = "1,2,4,8"
    """Numbers of members, S, for mil_jax; PyTorch trains as many as it has processes."""
    bags: int = 8
    """Bags of an epoch."""
    patches: int = 224
    """Patches of a bag."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the dense layers."""
    dropout: float = 0.0
    """Share of the dense layers' units that a step drops."""
    augment: bool = True
    """Turn, mirror and re-stain patches."""
    torch: bool = True
    """Compare with PyTorch."""
    rounds: int = 3
    """How often each way is measured; the ways take turns."""
    epochs: int = 2
    """Timed epochs of each member in each round."""
    seed: int = 0
    """Decides bags and members."""
    out: Path = field(default_factory=lambda: measure.default_out("colon_speed"))
    """The folder of the results."""

    def __post_init__(self) -> None:
        measure.at_least(1, self, "bags", "patches", "rounds", "epochs")


def main(config: Config) -> None:
    """Measures all ways and compares them."""
    sizes = measure.sizes("sizes", config.sizes)
    if config.torch:
        peer_io.require("torch")
    measure.start(config.out)
    cases = [Case(OURS, members, config.epochs) for members in sizes]
    cases += [Case(way, way.copies, config.epochs) for way in TORCH if config.torch]
    with task_of(config) as task:
        measured = measure.measure_in_rounds(cases, task, config.rounds)
    rows = measure.summarize(measured.all)
    limit, ratios = limit_of(measured), times_as_long(rows)
    more = {"limit_us": limit, "times_as_long_by_members": ratios}
    folder = measure.write_measured(config, measured, rows, **more)
    folder.write_figure("colon_speed", draw(rows, limit))
    print_rows(rows, limit, ratios)
    say(f"{measured.seconds:.0f} seconds; results: {config.out}")


@contextlib.contextmanager
def task_of(config: Config) -> Iterator[Task]:
    """A task on drawn bags, whose file is gone afterwards."""
    from mil_jax.augment import STAINS, UNSTAINS, StainVariation  # here, so that starting is fast where options fail
    from mil_jax.encoders import COLON

    options = {
        "side": SIDE, "filters": COLON, "hidden": config.hidden, "attention_units": 128, "dropout": config.dropout,
        "augment": config.augment, "learning_rate": 1e-4, "weight_decay": 5e-4, "stains": STAINS.tolist(),
        "unstains": UNSTAINS.tolist(), "scale": StainVariation().scale, "shift": StainVariation().shift,
    }  # fmt: skip
    rng = np.random.default_rng(config.seed)
    patches = rng.integers(0, 256, (config.bags, config.patches, SIDE, SIDE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder) / "bags.npz", config.seed, config.bags, 0)
        np.savez(task.bags, patches=patches, labels=np.arange(config.bags) % 2, task=json.dumps(options))
        yield task


def limit_of(measured: Measured) -> float:
    """Microseconds of a step per member if it were nothing but products of large matrices, the median over rounds."""
    details = [one.details for one in measured.all if one.details]
    return 1e6 * median(of_one["operations"] / of_one["operations_per_second"] for of_one in details)


def times_as_long(rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """For each S of mil_jax, the times of PyTorch as multiples of it; and of its fastest loop, if all loops ran."""
    loops = {row.way: row.train_us for row in rows if row.way != OURS.name}
    loops |= {BEST: min(loops.values())} if len(loops) == len(TORCH) else {}
    ours = {row.members: row.train_us for row in rows if row.way == OURS.name}
    return {members: {way: us / time for way, us in loops.items()} for members, time in ours.items()}


def draw(rows: Sequence[Row], limit: float) -> Any:
    """The figure: time per member against S, a level line for each loop and for the limit."""
    from mil_jax import plots

    ours = {row.members: row.train_us / 1e3 for row in rows if row.way == OURS.name}
    sizes = np.array(sorted(ours))
    level = {row.way: row.train_us / 1e3 for row in rows if row.way != OURS.name} | {"the counted limit": limit / 1e3}
    series = {OURS.name: np.array([ours[size] for size in sizes])}
    series |= {name: np.full(len(sizes), time) for name, time in level.items()}
    return plots.loglog_lines(sizes, series, "members, S", "milliseconds per member and step")


def print_rows(rows: Sequence[Row], limit: float, ratios: dict[int, dict[str, float]]) -> None:
    """The table, and what follows from it."""
    most = max(ratios, default=None)
    cells = []
    for row in rows:
        times = [f"{us / 1e3:.1f}" for us in (row.train_us, row.train_us_low, row.train_us_high)]
        ratio = DASH if most is None or row.way == OURS.name else f"{ratios[most][row.way]:.2f}"
        cells.append((row.way, row.members, *times, ratio, f"{row.train_us / limit:.1f}", round(row.peak_memory_mib)))
    columns = ("", "S", "ms", "fastest", "slowest", f"x mil_jax, S = {most}", "x limit", "peak MiB")
    title = "The colon network, milliseconds per member and step"
    print_table(Table(title, columns, cells, f"medians over rounds; the counted limit is {limit / 1e3:.1f} ms"))
    for members, of_size in ratios.items():
        if BEST in of_size:
            say(f"{BEST}: {of_size[BEST]:.2f} times as long as mil_jax with S = {members}")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
