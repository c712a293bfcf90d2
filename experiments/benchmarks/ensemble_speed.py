"""What does a member cost, as their number grows: ours, plain vmap, one by one, PyTorch, Keras, Adam alone?

    python experiments/benchmarks/ensemble_speed.py

Microseconds per member and training step for S members of the example's model, on batches of one bag of 3 digits, in
the steady state (the first epoch of each start, which compiles and warms up, is left out), without early stopping. All
ways train on the same bags, each in a process of its own, in turns for several rounds, which gives the peak memory too:

- mil_jax: the placement that `fit_ensemble` chooses. On a CPU one device per core and one member at a time in each.
- mil_jax, unroll 2: the same with two steps in a turn of the compiled loop (`--unroll 2` of mnist_bags.py).
- mil_jax, plain vmap: all members by one vmap on one device.
- mil_jax, one by one: a loop in Python over members, each a compiled epoch on one device.
- Adam's update alone: no model, a gradient that does not change, placed as mil_jax. It moves at least 7 arrays of the
  model's size per member and step (parameters, gradient and two moments read; parameters and two moments written):
  on a CPU the floor under every way; on an accelerator the bytes, divided by the time, as a share of its bandwidth.
- PyTorch: a loop with fused Adam, on one thread; and one such process per core, which share the members.
- Keras: the Keras example with its TensorFlow and JAX backends.

Compared is the training alone, because the peers' timing has no validation; for mil_jax the time with validation and
attention statistics, epochs of `fit_ensemble`, stands beside it. The peers train one member after the other: they are
measured for a few members, and what they took for the most is compared with every S.

It took 773 seconds on 2 cores, which should have nothing else to do. Writes results.json,
results.csv and figures/ensemble_speed.png. On an accelerator S goes up to 4096. The peers come with
`pip install 'mil_jax[peers]'`; those that are missing are left out.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
from measure import Case, Measured, Row, Way

from mil_jax import cli

PEERS: dict[str, tuple[Way, ...]] = {
    "torch": (measure.TORCH,),
    "torch-per-core": (measure.TORCH_PER_CORE,) if measure.CORES > 1 else (),
    "keras-tensorflow": (measure.KERAS_TENSORFLOW,),
    "keras-jax": (measure.KERAS_JAX,),
}

CPU_SIZES, ACCELERATOR_SIZES = "1,2,8,32,128", "1,2,8,32,128,512,1024,2048,4096"

ARRAYS_MOVED = 7  # by an update of Adam: 4 read, 3 written
BYTES_PER_NUMBER = 4

# Of the memory, in GB/s, as the makers state it; by parts of the device's name, the first that fits.
PEAK_BANDWIDTH = {
    "H200": 4800.0,
    "H100 80GB HBM3": 3350.0,
    "H100 PCIe": 2000.0,
    "A100-SXM4-80GB": 2039.0,
    "A100 80GB PCIe": 1935.0,
    "A100-SXM4-40GB": 1555.0,
    "A100-PCIE-40GB": 1555.0,
}


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    sizes: str | None = None
    """Numbers of members, S, for mil_jax and for Adam alone; up to 128 on a CPU, to 4096 elsewhere."""
    unroll_sizes: str = "8,32,128"
    """S for two steps in a turn."""
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
    seed: int = 0
    """Decides bags and members."""
    train_bags: int = 1000
    """Training bags, which is also the number of steps of an epoch."""
    val_bags: int = 300
    """Bags of a validation."""
    out: Path = field(default_factory=lambda: measure.default_out("ensemble_speed"))
    """The folder of the results."""


def main(config: Config) -> None:
    """Measures all ways at all sizes and compares them."""
    check(config)
    measure.start(config.out)
    versions = backend()
    cases = plan(config, versions["backend"])
    with measure.task_of(config.seed, config.train_bags, config.val_bags) as task:
        measured = measure.measure_in_rounds(cases, task, config.rounds)
    rows = measure.summarize(measured.all)
    peak = config.peak_gb_per_s or peak_bandwidth(versions["device"])
    results = {
        "device": versions["device"],
        "times_as_long": {way.name: times_as_long(rows, way.name) for way in (measure.PLACED, measure.UNROLLED)},
        "adam_bandwidth": adam_bandwidth(measured, rows, peak),
    }
    folder = measure.results_folder(config.out)
    measure.write_measured(folder, config, measured, rows, **results)
    folder.write_figure("ensemble_speed", draw(rows))
    print_results(rows, results)
    cli.say(f"{measured.seconds:.0f} seconds; results: {config.out}")


def check(config: Config) -> None:
    """Refuses options that nothing could be measured with."""
    for name in ("rounds", "epochs", "peer_epochs", "train_bags", "val_bags"):
        measure.at_least(1, **{name: getattr(config, name)})
    for name in ("sizes", "unroll_sizes", "vmap_sizes", "sequential_sizes", "peer_sizes"):
        measure.sizes(name, getattr(config, name) or "")
    measure.chosen(PEERS, "peers", config.peers)


def backend() -> dict[str, str]:
    """What JAX runs on, asked in a process of its own, so that this one takes no accelerator."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "backend.json"
        measure.run_scripts("jax_worker.py", [["--job", "backend", "--out", str(file)]])
        return json.loads(file.read_text())["versions"]


def plan(config: Config, backend: str) -> list[Case]:
    """All that is measured in a round."""
    sizes = config.sizes or (CPU_SIZES if backend == "cpu" else ACCELERATOR_SIZES)
    ours = [
        Case(way, members, max(1, config.epochs // members))
        for way, option, text in (
            (measure.PLACED, "sizes", sizes),
            (measure.UNROLLED, "unroll_sizes", config.unroll_sizes),
            (measure.VMAP, "vmap_sizes", config.vmap_sizes),
            (measure.SEQUENTIAL, "sequential_sizes", config.sequential_sizes),
            (measure.ADAM, "sizes", sizes),
        )
        for members in measure.sizes(option, text)
    ]
    peers = [
        Case(way, members, config.peer_epochs)
        for way in measure.installed(measure.chosen(PEERS, "peers", config.peers))
        for members in measure.sizes("peer_sizes", config.peer_sizes)
        if members % way.copies == 0
    ]
    return ours + peers


# ---- what follows from the times ----


def by_case(rows: Sequence[Row]) -> dict[str, dict[int, Row]]:
    """Rows by way and number of members."""
    table: dict[str, dict[int, Row]] = {}
    for row in rows:
        table.setdefault(row.way, {})[row.members] = row
    return table


def times_as_long(rows: Sequence[Row], reference: str) -> dict[str, dict[int, float]]:
    """The time per member of each way as a multiple of the reference's with as many members.

    A peer's time per member at its largest S stands for every S.
    """
    table = by_case(rows)
    ours = table.pop(reference, {})
    peers = {way.name for ways in PEERS.values() for way in ways}
    times = {}
    for name, its_rows in table.items():
        largest = its_rows[max(its_rows)]
        fitting = {members: largest if name in peers else its_rows.get(members) for members in ours}
        times[name] = {
            members: row.train_us / ours[members].train_us for members, row in fitting.items() if row is not None
        }
    return times


def peak_bandwidth(device: str) -> float | None:
    """GB/s of a device that is known by name."""
    return next((bandwidth for name, bandwidth in PEAK_BANDWIDTH.items() if name in device), None)


def adam_bandwidth(measured: Measured, rows: Sequence[Row], peak: float | None) -> dict[int, dict[str, float | None]]:
    """For each S, the GB/s that Adam's update alone moves at the least, and the share of the peak, if it is known."""
    counts = [each.details["parameters"] for each in measured.all if each.way == measure.ADAM.name]
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

    table = by_case(rows)
    sizes = np.array(sorted({row.members for row in rows}))
    series = {
        name: np.array([its_rows[s].train_us if s in its_rows else np.nan for s in sizes])
        for name, its_rows in table.items()
    }
    return plots.loglog_lines(sizes, series, "members, S", "microseconds per member and step")


def print_results(rows: Sequence[Row], results: dict[str, Any]) -> None:
    """The tables: times, times as long as mil_jax, memory, and what Adam moves."""
    table = by_case(rows)
    sizes = sorted({row.members for row in rows})
    columns = ["", *(f"S = {members}" for members in sizes)]

    def line(name: str, values: dict[int, Any], digits: int) -> list[Any]:
        defined = {members: value for members, value in values.items() if value is not None}
        cell = lambda value: f"{value:,.{digits}f}".rjust(8)  # noqa: E731
        return [name, *(cell(defined[members]) if members in defined else "–" for members in sizes)]

    times = [line(name, {s: row.train_us for s, row in its.items()}, 1) for name, its in table.items()]
    whole = line(
        f"{measure.PLACED.name}, with validation",
        {members: row.whole_us for members, row in table.get(measure.PLACED.name, {}).items()},
        1,
    )
    note = "medians over rounds; training alone but for the last line"
    cli.print_table("Microseconds per member and step", columns, [*times, whole], note)
    note = "of a peer, its time per member at its largest S"
    for reference, times in results["times_as_long"].items():
        longer = [line(name, values, 2) for name, values in times.items()]
        longer += flatness(table.get(reference, {}), reference, line)
        if times:
            cli.print_table(f"Times as long as {reference}, per member", columns, longer, note)
    memory = [line(name, {s: row.peak_memory_mib for s, row in its.items()}, 0) for name, its in table.items()]
    cli.print_table("Peak memory of the process, MiB, training alone", columns, memory)
    moved = results["adam_bandwidth"]
    bandwidth = [line("GB/s", {members: each["gb_per_s"] for members, each in moved.items()}, 1)]
    if shares := {members: each["share_of_peak"] for members, each in moved.items() if each["share_of_peak"]}:
        bandwidth.append(line("% of peak", {members: 100 * share for members, share in shares.items()}, 0))
    cli.print_table(f"What {measure.ADAM.name} moves at the least, on {results['device']}", columns, bandwidth)


def flatness(ours: dict[int, Row], name: str, line: Any) -> list[list[Any]]:
    """A way's time per member against that with 8 members, where those were measured."""
    if 8 not in ours:
        return []
    return [line(f"{name}, against its S = 8", {s: row.train_us / ours[8].train_us for s, row in ours.items()}, 2)]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
