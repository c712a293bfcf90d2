"""What does one large bag cost: attention over 100,000 instances of 1024 features, all at once or in chunks?

Forward and backward through gated attention, by every parameter and by every instance, each way in a process of its
own, which gives the peak memory. Then both in one process: the largest difference of any output or gradient.

    python experiments/benchmarks/large_bag.py
"""

import json
import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_io

from mil_jax.errors import check_whole
from mil_jax.pooling import AttentionPooling
from mil_jax.run import cli
from mil_jax.run.screen import print_table, say
from mil_jax.text import Table


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    instances: int = 100_000
    """Instances of the bag."""
    features: int = 1024
    """Features of an instance."""
    attention_units: int = 512
    """Width of the attention's hidden layer."""
    chunk: int = 2000
    """Instances at a time."""
    rounds: int = 3
    """How often each is timed; the median counts."""

    def __post_init__(self) -> None:
        for name in vars(self):
            check_whole(name, getattr(self, name), 1)


def main(config: Config) -> None:
    """Measures both ways and compares them."""
    rows = []
    for name, chunk in (("dense", None), (f"chunks of {config.chunk:,}", config.chunk)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append((name, *pool.apply(measure, (config, chunk))))
    columns = ("attention", "seconds", "between, MiB", "peak, MiB")
    note = "forward and backward; between input and output; of the process"
    print_table(Table(f"One bag of {config.instances:,} x {config.features}", columns, rows, note))
    both = (jax.tree.leaves(step_of(config, chunk)(*inputs(config))) for chunk in (None, config.chunk))
    leaves = [tuple(map(np.asarray, pair)) for pair in zip(*both, strict=True)]
    difference = max(float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30)) for one, other in leaves)
    say(f"largest difference, as a share of the largest value of the same array: {difference:.1e}")
    say(json.dumps({"rows": rows, "largest_difference": difference}))


def inputs(config: Config) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters, the bag, and its mask."""
    draw = np.random.default_rng(0)
    bag = jnp.asarray(draw.standard_normal((config.instances, config.features), np.float32))
    module = AttentionPooling(config.attention_units)
    return module.init(jax.random.key(0), bag[:1], jnp.ones(1, bool)), bag, jnp.ones(config.instances, bool)


def step_of(config: Config, chunk: int | None) -> Any:
    """A compiled function that gives the output and the gradients of a sum over it."""
    module = AttentionPooling(config.attention_units, chunk=chunk)

    def total(params: Any, bag: jax.Array, mask: jax.Array) -> tuple[jax.Array, Any]:
        pooled: Any = module.apply(params, bag, mask)
        return jnp.sum(pooled.embedding**2) + jnp.sum(pooled.attention**2), pooled

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def measure(config: Config, chunk: int | None) -> tuple[float, float, float]:
    """Median seconds of a step; MiB that the program holds besides bag and gradients; peak MiB of this process."""
    arguments = inputs(config)
    step = step_of(config, chunk).lower(*arguments).compile()
    jax.block_until_ready(step(*arguments))
    times = []
    for _ in range(config.rounds):
        started = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        times.append(time.perf_counter() - started)
    between = step.memory_analysis().temp_size_in_bytes / 2**20
    return float(np.median(times)), between, peer_io.peak_memory_mib()


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
