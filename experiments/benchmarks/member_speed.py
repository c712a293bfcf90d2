"""How long does one training step of one member take, next to PyTorch and Keras?

    python experiments/benchmarks/member_speed.py

The example's model on batches of one bag of 3 digits, in the steady state: the first epoch of each start, which
compiles and warms up, is left out. All ways train on the same bags, each in a process of its own, in turns for
several rounds. Compared is the training alone, because the peers' timing has no validation; for mil_jax the time with
validation and attention statistics, an epoch of `fit_ensemble`, stands beside it. The PyTorch loop has fused Adam, and
one thread or one per core: the faster one is the reference.

It takes 5 minutes on 2 cores, which should have nothing else to do, and writes results.json and results.csv. The peers
come with `pip install 'mil_jax[peers]'`; those that are missing are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import measure
from measure import Case, Row, Way

from mil_jax.run import cli
from mil_jax.run.screen import print_table, say
from mil_jax.text import Table

# Where there is one member, `fit_ensemble` still takes two devices, for the sake of its numbers; this is one alone.
ONE_DEVICE = replace(measure.SEQUENTIAL, name="mil_jax, one device")

PEERS: dict[str, tuple[Way, ...]] = {
    "torch": (measure.TORCH, measure.TORCH_THREADS) if measure.CORES > 1 else (measure.TORCH,),
    "keras-tensorflow": (measure.KERAS_TENSORFLOW,),
    "keras-jax": (measure.KERAS_JAX,),
}
FASTER_LOOP = "PyTorch, the faster loop"


@dataclass(frozen=True)
class Config(measure.Options):
    """Options of the benchmark."""

    own_epochs: int = 20
    """Epochs of mil_jax in each round, the first of which does not count."""
    epochs: int = 5
    """Epochs of each peer in each round, the first of which does not count."""
    peers: str = "torch,keras-tensorflow,keras-jax"
    """Peers to compare with; '' for none."""
    out: Path = field(default_factory=lambda: measure.default_out("member_speed"))
    """The folder of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        measure.at_least(2, self, "own_epochs", "epochs")


def main(config: Config) -> None:
    """Measures all ways and compares them."""
    peers = measure.chosen(PEERS, "peers", config.peers)
    measure.start(config.out)
    cases = [Case(way, 1, config.own_epochs - 1) for way in (measure.PLACED, ONE_DEVICE)]
    cases += [Case(way, 1, config.epochs - 1) for way in peers]
    with measure.task_of(config) as task:
        measured = measure.measure_in_rounds(cases, task, config.rounds)
    rows = measure.summarize(measured.all)
    times = times_as_long(rows)
    measure.write_measured(config, measured, rows, times_as_long=times)
    print_rows(rows, times)
    say(f"{measured.seconds:.0f} seconds; results: {config.out}")


def times_as_long(rows: Sequence[Row]) -> dict[str, float]:
    """The time of each way as a multiple of mil_jax's, training alone; and of PyTorch's faster loop, if both ran."""
    time = {row.way: row.train_us for row in rows}
    if measure.PLACED.name not in time:
        return {}
    times = {name: us / time[measure.PLACED.name] for name, us in time.items()}
    loops = [times[way.name] for way in PEERS["torch"] if way.name in times]
    return times | ({FASTER_LOOP: min(loops)} if len(loops) == len(PEERS["torch"]) else {})


def print_rows(rows: Sequence[Row], times: dict[str, float]) -> None:
    """The table, and what follows from it."""
    columns = ("", "training", "fastest", "slowest", "with validation", "x mil_jax", "peak MiB")
    cells = []
    for row in rows:
        of_row = (row.train_us, row.train_us_low, row.train_us_high, row.whole_us, times.get(row.way))
        texts = [
            "" if us is None else f"{us:,.{digits}f}".rjust(7)
            for us, digits in zip(of_row, (1, 1, 1, 1, 2), strict=True)
        ]
        cells.append((row.way, *texts, round(row.peak_memory_mib)))
    caption = "medians over rounds, and the fastest and slowest round; validation with attention statistics"
    print_table(Table("One member, one step: microseconds", columns, cells, caption))
    for name in (FASTER_LOOP, measure.KERAS_TENSORFLOW.name, measure.KERAS_JAX.name):
        if name in times:
            say(f"{name}: {times[name]:.1f} times as long as mil_jax")


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
