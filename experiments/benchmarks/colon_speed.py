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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import measure
import numpy as np
import peer_io
from loops import compare
from measure import CORES, Case, Task, Way

from mil_jax.run import cli

OURS = Way("mil_jax", "colon_worker.py", "")
LAYOUTS = {"": "", ", channels last": " --channels-last"}
TORCH = tuple(
    Way(f"PyTorch, {name}{layout}", "colon_torch.py", f"--threads {threads}{option}", copies)
    for name, threads, copies in (("1 thread", 1, 1), (f"{CORES} threads", CORES, 1), (f"{CORES} processes", 1, CORES))
    if name == "1 thread" or CORES > 1
    for layout, option in LAYOUTS.items()
)
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
        compare(config, task, cases, "The colon network", "colon_speed")


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


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
