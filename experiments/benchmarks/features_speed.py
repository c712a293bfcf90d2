"""How long does a step on the features of a slide take, next to a plain PyTorch loop?

    python experiments/benchmarks/features_speed.py

Bags of 200 to 4,000 instances of 1,024 features, one bag a step: a dense layer of 256 units, gated attention of 128
(Ilse et al. 2018), one logit, Adam; without augmentation, in the steady state (the first epoch of each start is left
out). Features are drawn, since the time does not depend on them. mil_jax trains S members, with factors of float32 and
of bfloat16; the PyTorch loop (`features_torch.py`) has the same network and fused Adam, and trains one member after the
other with one thread, with one per core, or as one process per core. Each way runs in a process of its own, in turns
for several rounds. The limit is the number of operations of a step's products at the measured speed of XLA's product
of large matrices of float32, on all cores.

Writes results.json, results.csv and figures/features_speed.png. PyTorch comes with `pip install 'mil_jax[peers]'`.
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

OURS = Way("mil_jax", "features_worker.py", "")
ROUNDED = Way("mil_jax, bfloat16", "features_worker.py", "--precision bfloat16")
TORCH = (
    Way("PyTorch, 1 thread", "features_torch.py", "--threads 1"),
    Way(f"PyTorch, {CORES} threads", "features_torch.py", f"--threads {CORES}"),
    Way(f"PyTorch, {CORES} processes", "features_torch.py", "--threads 1", CORES),
)


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    sizes: str = "1,2,8,32"
    """Numbers of members, S, for mil_jax; PyTorch trains as many as it has processes."""
    bags: int = 40
    """Bags of an epoch, with sizes evenly spread."""
    smallest: int = 200
    """Instances of the smallest bag."""
    largest: int = 4000
    """Instances of the largest bag."""
    features: int = 1024
    """Features of an instance."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the dense layers."""
    torch: bool = True
    """Compare with PyTorch."""
    rounds: int = 3
    """How often each way is measured; the ways take turns."""
    epochs: int = 2
    """Timed epochs of each member in each round."""
    seed: int = 0
    """Decides bags and members."""
    out: Path = field(default_factory=lambda: measure.default_out("features_speed"))
    """The folder of the results."""

    def __post_init__(self) -> None:
        measure.at_least(1, self, "smallest", "features", "rounds", "epochs")
        measure.at_least(2, self, "bags")
        measure.at_least(self.smallest, self, "largest")


def main(config: Config) -> None:
    """Measures all ways and compares them."""
    sizes = measure.sizes("sizes", config.sizes)
    if config.torch:
        peer_io.require("torch")
    measure.start(config.out)
    cases = [Case(way, members, config.epochs) for way in (OURS, ROUNDED) for members in sizes]
    cases += [Case(way, way.copies, config.epochs) for way in TORCH if config.torch]
    with task_of(config) as task:
        compare(config, task, cases, "Features of slides", "features_speed")


@contextlib.contextmanager
def task_of(config: Config) -> Iterator[Task]:
    """A task on drawn bags, whose file is gone afterwards."""
    options = {
        "hidden": config.hidden, "attention_units": 128, "learning_rate": 1e-4, "weight_decay": 1e-4,
    }  # fmt: skip
    rng = np.random.default_rng(config.seed)
    sizes = rng.permutation(np.linspace(config.smallest, config.largest, config.bags).astype(int))
    features = rng.standard_normal((sizes.sum(), config.features), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        task = Task(Path(folder) / "bags.npz", config.seed, config.bags, 0)
        labels = np.arange(config.bags) % 2
        np.savez(task.bags, features=features, sizes=sizes, labels=labels, task=json.dumps(options))
        yield task


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
