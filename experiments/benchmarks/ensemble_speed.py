"""What does a member cost, as their number grows: ours, plain vmap, one by one, PyTorch, Keras, Adam alone?

    python experiments/benchmarks/ensemble_speed.py

Microseconds per member and training step for S members of the example's model, on batches of one bag of 3 digits, in
the steady state (the first epoch of each start, which compiles and warms up, is left out), without early stopping. All
ways train on the same bags, each in a process of its own, in turns for several rounds, which gives the peak memory too:

- mil_jax: the placement that `fit_ensemble` chooses: on a CPU one device per core and one member at a time in each.
- mil_jax, plain vmap: all members by one vmap on one device; and one by one: a loop in Python over compiled epochs.
- Adam's update alone: no model, a gradient that does not change, placed as mil_jax. It moves at least 7 arrays of the
  model's size per member and step (parameters, gradient and two moments read; parameters and two moments written):
  on a CPU the floor under every way; on an accelerator the bytes, divided by the time, as a share of its bandwidth.
- PyTorch: a loop with fused Adam, on one thread; and one such process per core, which share the members.
- Keras: its example with the TensorFlow and the JAX backend.

Compared is the training alone, because the peers' timing has no validation; for mil_jax the time with validation and
attention statistics, epochs of `fit_ensemble`, stands beside it. The peers train one member after the other: they are
measured for a few members, and what they took for the most is compared with every S.

It took 773 seconds on 2 cores, which should have nothing else to do. Writes results.json, results.csv and
figures/ensemble_speed.png. The peers come with `pip install 'mil_jax[peers]'`; those that are missing are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Case, Measured, Row, Way

from mil_jax.run import cli
from mil_jax.run.screen import print_table, say
from mil_jax.text import DASH, Table

PEERS: dict[str, tuple[Way, ...]] = {
    "torch": (measure.TORCH,), "torch-per-core": (measure.TORCH_PER_CORE,) if measure.CORES > 1 else (),
    "keras-tensorflow": (measure.KERAS_TENSORFLOW,), "keras-jax": (measure.KERAS_JAX,),
}  # fmt: skip

CPU_SIZES, ACCELERATOR_SIZES = "1,2,8,32,128", "1,2,8,32,128,512,1024,2048,4096"

ARRAYS_MOVED = 7  # by an update of Adam: 4 read, 3 written
BYTES_PER_NUMBER = 4

# Of the memory, in GB/s, as the makers state it; by parts of the device's name, the first that fits.
PEAK_BANDWIDTH = {
    "H200": 4800.0, "H100 80GB HBM3": 3350.0, "H100 PCIe": 2000.0, "A100-SXM4-80GB": 2039.0, "A100 80GB PCIe": 1935.0,
    "A100-SXM4-40GB": 1555.0, "A100-PCIE-40GB": 1555.0,
}  # fmt: skip


@dataclass(frozen=True)
class Config(measure.Options):
    """Options of the benchmark."""

    sizes: str | None = None
    """Numbers of members, S, for mil_jax and for Adam alone; up to 128 on a CPU, to 4096 elsewhere."""
    vmap_sizes: str = "1,2,8,32"
    """S for plain vmap."""
    sequential_sizes: str = "1,2,8"
    """S for one by one."""
    peers: str = "torch,torch-per-core,keras-tensorflow,keras-jax"
    """Peers to compare with; '' for none."""
    peer_sizes: str = "1,2"
    """S for the peers."""
    rounds: int = 2
    """How often everything is measured; the ways take turns."""
    epochs: int = 8
    """Timed epochs of one member of mil_jax in each round; S members get 1/S of it, at least 1."""
    peer_epochs: int = 1
    """Timed epochs of each member of a peer in each round."""
    peak_gb_per_s: float | None = None
    """The accelerator's memory bandwidth, where its name does not tell."""
    out: Path = field(default_factory=lambda: measure.default_out("ensemble_speed"))
    """The folder of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        measure.at_least(1, self, "epochs", "peer_epochs")
        for name in ("sizes", "vmap_sizes", "sequential_sizes", "peer_sizes"):
            measure.sizes(name, getattr(self, name) or "")
        measure.chosen(PEERS, "peers", self.peers)


def main(config: Config) -> None:
    """Measures all ways at all sizes and compares them."""
    measure.start(config.out)
    # Asked in a process of its own, so that this one takes no accelerator.
    (answer,) = measure.answers_of("jax_worker.py", [["--job", "backend"]])
    device, backend = answer["versions"]["device"], answer["versions"]["backend"]
    cases = plan(config, backend)
    with measure.task_of(config) as task:
        measured = measure.measure_in_rounds(cases, task, config.rounds)
    rows = measure.summarize(measured.all)
    results = {
        "device": device,
        "times_as_long": {measure.PLACED.name: times_as_long(rows)},
        "adam_bandwidth": adam_bandwidth(measured, rows, config.peak_gb_per_s or peak_bandwidth(device)),
    }
    folder = measure.write_measured(config, measured, rows, **results)
    folder.write_figure("ensemble_speed", draw(rows))
    print_results(rows, results)
    say(f"{measured.seconds:.0f} seconds; results: {config.out}")


def plan(config: Config, backend: str) -> list[Case]:
    """All that is measured in a round."""
    sizes = config.sizes or (CPU_SIZES if backend == "cpu" else ACCELERATOR_SIZES)
    by_way = {
        measure.PLACED: sizes, measure.VMAP: config.vmap_sizes, measure.SEQUENTIAL: config.sequential_sizes,
        measure.ADAM: sizes,
    }  # fmt: skip
    ours = [
        Case(way, members, max(1, config.epochs // members))
        for way, text in by_way.items() for members in measure.sizes("sizes", text)
    ]  # fmt: skip
    peers = [
        Case(way, members, config.peer_epochs)
        for way in measure.chosen(PEERS, "peers", config.peers)
        for members in measure.sizes("peer_sizes", config.peer_sizes) if members % way.copies == 0
    ]  # fmt: skip
    return ours + peers


# ---- what follows from the times ----


def by_case(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Rows by way and number of members."""
    table: dict[str, dict[int, Row]] = {}
    for row in rows:
        table.setdefault(row.way, {})[row.members] = row
    return table


def times_as_long(rows: Sequence[Row]) -> dict[str, dict[int, float]]:
    """The time per member of each way as a multiple of mil_jax's; a peer's time at its largest S stands for every S."""
    table = by_case(rows)
    ours = table.pop(measure.PLACED.name, {})
    peers = {way.name for ways in PEERS.values() for way in ways}
    times = {}
    for name, of_way in table.items():
        largest = of_way[max(of_way)]
        fitting = {members: largest if name in peers else of_way.get(members) for members in ours}
        times[name] = {s: row.train_us / ours[s].train_us for s, row in fitting.items() if row is not None}
    return times


def peak_bandwidth(device: str) -> float | None:
    """GB/s of a device that is known by name."""
    return next((bandwidth for name, bandwidth in PEAK_BANDWIDTH.items() if name in device), None)


def adam_bandwidth(measured: Measured, rows: Sequence[Row], peak: float | None) -> dict[int, dict[str, float | None]]:
    """For each S, the GB/s that Adam's update alone moves at the least, and the share of the peak, if it is known."""
    counts = [one.details["parameters"] for one in measured.all if one.way == measure.ADAM.name]
    result = {}
    for members, row in by_case(rows).get(measure.ADAM.name, {}).items():
        # Microseconds per member: with S members at once, each has 1/S of the step's time.
        gigabytes_per_s = ARRAYS_MOVED * BYTES_PER_NUMBER * counts[0] / (1e3 * row.train_us)
        result[members] = {"gb_per_s": gigabytes_per_s, "share_of_peak": peak and gigabytes_per_s / peak}
    return result


# ---- results ----


def draw(rows: Sequence[Row]) -> Any:
    """The figure: a line for each way."""
    # Here, because this process stays small while it starts others.
    from mil_jax import plots

    sizes = np.array(sorted({row.members for row in rows}))
    series = {
        name: np.array([of_way[s].train_us if s in of_way else np.nan for s in sizes])
        for name, of_way in by_case(rows).items()
    }
    return plots.loglog_lines(sizes, series, "members, S", "microseconds per member and step")


def print_results(rows: Sequence[Row], results: dict[str, Any]) -> None:
    """The tables: times, times as long as mil_jax, memory, and what Adam moves."""
    table, sizes = by_case(rows), sorted({row.members for row in rows})
    ours = table.get(measure.PLACED.name, {})

    def show(title: str, lines: Mapping[str, Mapping[int, float | None]], digits: int, note: str = "") -> None:
        by_line = {name: [values.get(s) for s in sizes] for name, values in lines.items()}
        texts = {name: [DASH if v is None else f"{v:,.{digits}f}" for v in values] for name, values in by_line.items()}
        width = max((len(cell) for cells in texts.values() for cell in cells), default=0)
        cells = [[name, *(cell.rjust(width) for cell in cells)] for name, cells in texts.items()]
        print_table(Table(title, ["", *(f"S={s}" for s in sizes)], cells, note))

    def column(of_row: Callable[[Row], float | None]) -> dict[str, dict[int, float | None]]:
        return {name: {s: of_row(row) for s, row in of_way.items()} for name, of_way in table.items()}

    whole = {f"{measure.PLACED.name}, with validation": {s: row.whole_us for s, row in ours.items()}}
    note = "medians over rounds; training alone but for the last line"
    show("Microseconds per member and step", column(lambda row: row.train_us) | whole, 1, note)
    longer = dict(results["times_as_long"][measure.PLACED.name])
    if 8 in ours:
        longer["mil_jax, against its S = 8"] = {s: row.train_us / ours[8].train_us for s, row in ours.items()}
    show("Times as long as mil_jax, per member", longer, 2, "of a peer, its time per member at its largest S")
    show("Peak memory of the process, MiB, training alone", column(lambda row: row.peak_memory_mib), 0)
    moved = results["adam_bandwidth"]
    lines = {"GB/s": {s: of_size["gb_per_s"] for s, of_size in moved.items()}}
    if any(of_size["share_of_peak"] for of_size in moved.values()):
        lines["% of peak"] = {s: 100 * of_size["share_of_peak"] for s, of_size in moved.items()}
    show(f"What {measure.ADAM.name} moves at the least, on {results['device']}", lines, 1)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
