# pyright: reportMissingImports=false
"""How far do rounding and training lead Keras and mil_jax from the same steps in double precision?

Each key draws bags and initial parameters. From them mil_jax in single precision and the Keras example's model on two
backends take the same steps, one bag each. The reference is mil_jax in double precision from the same numbers.

    python experiments/benchmarks/keras_steps.py

The three in single precision have something in common that double precision has not: Adam's bias correction with
0.999 rounded. So each two ways are compared. It takes a few minutes and needs `pip install 'mil_jax[peers]'`.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import measure
import numpy as np
import peer_io

from mil_jax import datasets
from mil_jax.bags import Bags, gather, take
from mil_jax.errors import InputError, check_whole
from mil_jax.model import build
from mil_jax.optimizer import Hyper, make_hyper
from mil_jax.run import cli
from mil_jax.run.screen import print_table
from mil_jax.sampling import BagsConfig, sample_splits
from mil_jax.text import Table
from mil_jax.training import init_fit, member_key, predict_member, train_step

WAYS = {"double": "float64", "mil_jax": "float32", "Keras/TensorFlow": "tensorflow", "Keras/JAX": "jax"}
LAYERS = {"dense": ("encoder", "Dense_0"), "dense_1": ("encoder", "Dense_1"), "dense_2": ("head",)}
# Where our parameters lie, by the names that Keras gives them in the peer's model.
PLACES = {f"{layer}/{kind}": (*place, kind) for layer, place in LAYERS.items() for kind in ("kernel", "bias")} | {
    f"attention/{name.lower()}": ("pooling", name, "kernel") for name in "VUw"
}
MIL = build()


@dataclass(frozen=True)
class Config:
    """Options of the comparison."""

    steps: tuple[int, ...] = (1, 10, 100, 300, 1000)
    """Numbers of steps after which parameters are compared."""
    keys: int = 16
    """Draws of bags and initial parameters."""
    way: Literal["all", "float32", "float64", "tensorflow", "jax"] = "all"
    """All, which starts the others, each in a process of its own."""
    out: Path | None = None
    """Where one way writes its parameters."""

    def __post_init__(self) -> None:
        check_whole("keys", self.keys, 1)
        if not self.steps or sorted(set(self.steps)) != list(self.steps) or self.steps[0] < 1:
            raise InputError("steps", self.steps, "expected growing numbers from 1")


def main(config: Config) -> None:
    """Takes the steps in all ways and prints how far each two are apart."""
    if config.way == "all":
        peer_io.require("keras", "tensorflow")
        return compare(config)
    take_steps = keras_steps if config.way in ("tensorflow", "jax") else our_steps
    taken = []
    for key in range(config.keys):
        train, test, state = drawn(config, key)
        after = take_steps(config, train, make_hyper(train), state)
        taken.append([named | {"probability": predict(state.params, named, test)} for named in after])
    by_name = {name: np.array([[after[name] for after in steps] for steps in taken]) for name in taken[0][0]}
    return np.savez(config.out or f"{config.way}.npz", allow_pickle=False, **by_name)


def drawn(config: Config, key: int) -> tuple[Bags, Bags, Any]:
    """A key's training bags, some of its test bags, and the state before the first step."""
    jax_key, data = jax.random.key(key), datasets.load(datasets.SAMPLE)
    splits = sample_splits(jax_key, data, BagsConfig(train_bags=config.steps[-1]))
    state = init_fit(MIL, member_key(jax_key), splits.train.slots, splits.train.kind.shape).train
    return splits.train, take(splits.test, range(300)), state


# ---- the ways ----


def our_steps(config: Config, train: Bags, hyper: Hyper, state: Any) -> Iterator[dict[str, np.ndarray]]:
    """Our parameters by Keras' names after each number of steps."""
    double = config.way == "float64"
    with jax.enable_x64(double):
        state, hyper = jax.tree.map(as_double, (state, hyper)) if double else (state, hyper)
        bags, every = jax.device_put(train), jnp.array([True])
        for i in range(config.steps[-1]):
            state = one_step(hyper, bags, state, jnp.array([i]), every)
            if i + 1 in config.steps:
                yield {name: np.asarray(leaf_at(state.params, place)) for name, place in PLACES.items()}


@jax.jit
def one_step(hyper: Hyper, bags: Bags, state: Any, index: Any, valid: Any) -> Any:
    """A step of `train_step` with the example's model."""
    return train_step(MIL, hyper, bags, state, index, valid)[0]


def keras_steps(config: Config, train: Bags, hyper: Hyper, state: Any) -> Iterator[dict[str, np.ndarray]]:
    """Keras' parameters after each number of steps."""
    os.environ |= {"KERAS_BACKEND": config.way, "TF_CPP_MIN_LOG_LEVEL": "3"}  # before Keras is imported
    import keras
    import keras_peer

    keras.backend.clear_session()
    model = keras_peer.build_model(3, (28, 28))
    optimizer = keras.optimizers.Adam(peer_io.LEARNING_RATE, epsilon=peer_io.ADAM_EPSILON)
    model.compile(optimizer, loss="sparse_categorical_crossentropy")
    model.set_weights([np.asarray(leaf_at(state.params, PLACES[weight.path])) for weight in model.weights])
    instances, label = np.asarray(gather(train.pool, train.rows)), np.asarray(train.label)[:, None]
    weights = {i: float(weight) for i, weight in enumerate(hyper.class_weight)}
    for start, stop in zip((0, *config.steps), config.steps, strict=False):
        inputs = [instances[start:stop, slot] for slot in range(instances.shape[1])]
        model.fit(inputs, label[start:stop], batch_size=1, shuffle=False, class_weight=weights, verbose=0)
        yield {weight.path: np.asarray(value) for weight, value in zip(model.weights, model.get_weights(), strict=True)}


def as_double(leaf: Any) -> Any:
    """A leaf in double precision if it is of floats."""
    return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def leaf_at(params: Any, place: tuple[str, ...]) -> Any:
    """The array at a place of our parameters."""
    return leaf_at(params[place[0]], place[1:]) if place else params


def predict(params: Any, named: dict[str, np.ndarray], bags: Bags) -> np.ndarray:
    """The probabilities of positive bags, in double precision; `params` show how parameters lie."""
    given: Any = jax.tree.map(lambda leaf: None, params)
    for name, place in PLACES.items():
        leaf_at(given, place[:-1])[place[-1]] = np.float64(named[name])
    with jax.enable_x64(True):
        return np.asarray(predict_params(given, bags))


@jax.jit
def predict_params(params: Any, bags: Bags) -> Any:
    """The probabilities of positive bags."""
    return predict_member(MIL, params, None, bags).probability[:, 1]


# ---- the comparison ----


def compare(config: Config) -> None:
    """Starts every way and prints how far each two are apart."""
    options = ["--keys", str(config.keys), "--steps", *map(str, config.steps)]
    with tempfile.TemporaryDirectory() as folder:
        named: dict[str, Any] = {}
        for way in WAYS.values():
            out = Path(folder) / f"{way}.npz"
            measure.run_scripts("keras_steps.py", [[*options, "--way", way, "--out", str(out)]])
            named[way] = dict(np.load(out))
    rows = []
    for at, steps in enumerate(config.steps):
        for (name, one), (other_name, other) in combinations(WAYS.items(), 2):
            apart = {n: np.abs(value - named[other][n])[:, at] for n, value in named[one].items()}
            of_keys = {n: value.reshape(config.keys, -1).max(axis=1) for n, value in apart.items()}
            of_probability = of_keys.pop("probability")
            of_parameters = np.max(list(of_keys.values()), axis=0)
            cells = [f"{of(values):.1e}" for values in (of_parameters, of_probability) for of in (np.median, np.max)]
            rows.append([steps, f"{name} – {other_name}", *cells])
    columns = ("steps", "", "parameters, median", "largest", "probabilities, median", "largest")
    caption = f"the largest difference of a key; median and largest of {config.keys} keys"
    print_table(Table("How far two ways are apart after the same steps", columns, rows, caption))


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
