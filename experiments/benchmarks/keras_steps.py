# pyright: reportMissingImports=false
"""Do the same initial parameters and the same order of bags lead Keras and mil_jax to the same parameters?

The Keras example's model gets the initial parameters of a member of mil_jax, and both take the same steps. What is left
is rounding, which grows from step to step. A difference in quality would have to come from elsewhere.

    python experiments/benchmarks/keras_steps.py

It needs `pip install 'mil_jax[peers]'`.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import peer_io

from mil_jax import datasets
from mil_jax.bags import Bags, gather
from mil_jax.errors import InputError
from mil_jax.model import build
from mil_jax.optimizer import Hyper, make_hyper
from mil_jax.run import cli
from mil_jax.run.screen import print_table
from mil_jax.sampling import BagsConfig, sample_splits
from mil_jax.text import Table
from mil_jax.training import init_fit, member_key, train_step


@dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    steps: tuple[int, ...] = (1, 10, 100, 1000)
    """Numbers of steps after which parameters are compared."""
    seed: int = 0
    """Decides bags and initial parameters."""
    backend: Literal["tensorflow", "jax"] = "tensorflow"
    """Keras' backend."""

    def __post_init__(self) -> None:
        if not self.steps or sorted(set(self.steps)) != list(self.steps) or self.steps[0] < 1:
            raise InputError("steps", self.steps, "expected growing numbers from 1")


def main(config: Config) -> None:
    """Takes the steps with both and prints the largest differences."""
    peer_io.require("keras", config.backend)
    key, data = jax.random.key(config.seed), datasets.load(datasets.SAMPLE)
    train = sample_splits(key, data, BagsConfig(train_bags=config.steps[-1])).train
    mil, hyper = build(), make_hyper(train)
    state = init_fit(mil, member_key(key), train.slots, train.kind.shape).train
    keras_model = same_keras_model(config.backend, state.params)
    on_device, every = jax.device_put(train), jnp.array([True])
    take_step = jax.jit(lambda state, i: train_step(mil, hyper, on_device, state, i[None], every)[0])
    rows, done = [], 0
    for steps in config.steps:
        fit_keras(keras_model, train, hyper, done, steps)
        for i in range(done, steps):
            state = take_step(state, jnp.int32(i))
        done = steps
        rows.append([steps, *differences(keras_model, state.params)])
    print_table(Table("Largest difference of any parameter", ("steps", "encoder", "attention", "head"), rows))


def same_keras_model(backend: str, params: Any) -> Any:
    """The peer's model, compiled as the example compiles it, with the given parameters."""
    os.environ["KERAS_BACKEND"] = backend  # before Keras is imported
    import keras
    import keras_peer

    keras_model = keras_peer.build_model(3, (28, 28))
    optimizer = keras.optimizers.Adam(1e-3, epsilon=1e-7)
    keras_model.compile(optimizer, loss="sparse_categorical_crossentropy")
    by_path = keras_layout(params)
    keras_model.set_weights([np.asarray(by_path[weight.path]) for weight in keras_model.weights])
    return keras_model


def keras_layout(params: Any) -> dict[str, Any]:
    """Our parameters by the names that Keras gives them in the peer's model."""
    encoder, pooling = params["encoder"], params["pooling"]
    dense = {"dense": encoder["Dense_0"], "dense_1": encoder["Dense_1"], "dense_2": params["head"]}
    named = {
        f"{layer}/{kind}": layer_params[kind] for layer, layer_params in dense.items() for kind in ("kernel", "bias")
    }
    return named | {f"attention/{name.lower()}": pooling[name]["kernel"] for name in ("V", "U", "w")}


def fit_keras(keras_model: Any, train: Bags, hyper: Hyper, start: int, stop: int) -> None:
    """Trains on the bags from `start` to `stop`, in order."""
    instances = np.asarray(gather(train.pool, train.rows[start:stop]))
    weights = {i: float(weight) for i, weight in enumerate(hyper.class_weight)}
    keras_model.fit(
        [instances[:, slot] for slot in range(instances.shape[1])], np.asarray(train.label)[start:stop, None],
        batch_size=1, shuffle=False, class_weight=weights, verbose=0,
    )  # fmt: skip


def differences(keras_model: Any, params: Any) -> list[str]:
    """The largest difference in encoder, attention and head."""
    theirs = dict(zip((weight.path for weight in keras_model.weights), keras_model.get_weights(), strict=True))
    apart = {path: float(np.abs(theirs[path] - np.asarray(ours)).max()) for path, ours in keras_layout(params).items()}
    parts = (("dense/", "dense_1/"), ("attention/",), ("dense_2/",))
    return [f"{max(value for path, value in apart.items() if path.startswith(part)):.1e}" for part in parts]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
