"""What does one large bag cost: attention over 100,000 instances of 1024 features, all at once or in chunks?

Forward and backward through gated attention, by every parameter and by every instance, each way in a process of its
own, which gives the peak memory. Then both in one process: the largest difference of any output or gradient.

    python experiments/benchmarks/large_bag.py
"""

import json
import multiprocessing
import resource
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax import cli
from mil_jax.errors import InputError
from mil_jax.pooling import AttentionPooling


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


def main(config: Config) -> None:
    """Measures both ways and compares them."""
    for name in ("instances", "features", "attention_units", "chunk", "rounds"):
        if getattr(config, name) < 1:
            raise InputError(name, getattr(config, name), "use at least 1")
    rows = []
    for name, chunk in (("dense", None), (f"chunks of {config.chunk:,}", config.chunk)):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append((name, *pool.apply(measure, (config, chunk))))
    columns = (
        "attention",
        "seconds, forward and backward",
        "between input and output, MiB",
        "peak of the process, MiB",
    )
    cli.print_table(f"One bag of {config.instances:,} x {config.features}", columns, rows)
    dense, chunked = (
        jax.tree.map(np.asarray, step_of(config, chunk)(*inputs(config))) for chunk in (None, config.chunk)
    )
    leaves = zip(jax.tree.leaves(dense), jax.tree.leaves(chunked), strict=True)
    differences = [float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30)) for one, other in leaves]
    cli.say(f"largest difference, as a share of the largest value of the same array: {max(differences):.1e}")
    cli.say(json.dumps({"rows": rows, "largest_difference": max(differences)}))


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
        pooled = module.apply(params, bag, mask)
        return jnp.sum(pooled.embedding**2) + jnp.sum(pooled.attention**2), pooled  # type: ignore[union-attr]

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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return float(np.median(times)), step.memory_analysis().temp_size_in_bytes / 2**20, peak


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
