"""Is a bag over several devices what it is on one, and what does each device hold?

    python experiments/benchmarks/spread_bag.py

A bag of a million instances through a dense layer and gated attention, forwards and backwards, on one CPU device and
spread over four. It prints the largest difference of any output and gradient, as a share of the largest value of the
same array, and for each device the instances that it holds and what the program needs between input and output.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.errors import check_whole
from mil_jax.model import ModelConfig, apply, build, init_params
from mil_jax.run import cli
from mil_jax.run.screen import print_table, say
from mil_jax.spread import apply_spread, spread_bag
from mil_jax.text import Table


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    instances: int = 1_000_000
    """Instances of the bag."""
    features: int = 64
    """Features of an instance."""
    chunk: int = 5000
    """Instances that attention takes at a time."""
    devices: int = 4
    """CPU devices that the bag is spread over."""

    def __post_init__(self) -> None:
        for name in vars(self):
            check_whole(name, getattr(self, name), 1)


def main(config: Config) -> None:
    """Compares both ways."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", config.devices)
    model = build(ModelConfig(hidden=(64,), attention_units=64, head="sum", chunk=config.chunk))
    params = init_params(model, jax.random.key(0), 4, (config.features,))
    x = np.random.default_rng(0).standard_normal((config.instances, config.features), dtype=np.float32)
    rows, results = [], []
    for devices in (1, config.devices):
        bag = spread_bag(x, devices)
        run = partial(apply, model) if devices == 1 else partial(apply_spread, model, devices=devices)
        compiled = jax.jit(partial(step, run)).lower(params, *bag).compile()
        memory: Any = compiled.memory_analysis()
        parts = [shard.data.nbytes / 2**20 for shard in bag[0].addressable_shards]
        rows.append((devices, f"{max(parts):.0f}", f"{memory.temp_size_in_bytes / 2**20:.0f}"))
        results.append(jax.tree.map(np.asarray, compiled(params, *bag)))
    columns = ("devices", "instances, MiB a device", "between, MiB a device")
    print_table(Table(f"One bag of {config.instances:,} x {config.features}", columns, rows, "forwards and backwards"))
    pairs = zip(*map(jax.tree.leaves, results), strict=True)
    worst = max(
        float(np.abs(one - other[: len(one)]).max() / np.abs(one).max()) for one, other in map(at_least_1d, pairs)
    )
    say(f"largest difference, as a share of the largest value of the same array: {worst:.1e}")


def at_least_1d(pair: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays with an axis."""
    one, other = pair
    return np.atleast_1d(one), np.atleast_1d(other)


def step(run: Any, params: Any, instances: Any, mask: Any) -> Any:
    """Outputs of the bag, and the gradient of a loss by all parameters."""

    def loss(params: Any) -> Any:
        out = run(params, instances, mask)
        return jax.nn.logsumexp(out.logits) - out.logits[0] + jnp.sum(out.embedding**2), out

    gradient, out = jax.grad(loss, has_aux=True)(params)
    return gradient, out.logits, out.embedding, out.attention, out.scores


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
