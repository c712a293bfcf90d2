"""The Keras example on given bags, as the reference for quality and speed.

    python keras_peer.py --bags bags.npz --out keras.json --backend tensorflow

The example is "Classification using Attention-based Deep Multiple Instance Learning": one model
input per instance, shared layers, a custom attention layer, one bag per step, `fit` with its
callbacks. Every setting is the example's; only the bags and the seed come from outside.
"""

# pyright: reportMissingImports=false
import argparse
import importlib
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peer_io
from peer_io import Member, Prediction, Split

if __name__ == "__main__":
    # Keras takes its backend from the environment when it is imported, so the options come first.
    os.environ["KERAS_BACKEND"] = peer_io.keras_options().backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    peer_io.require("keras", os.environ["KERAS_BACKEND"])

import keras
from keras import layers, ops


class GatedAttention(layers.Layer):
    """The example's attention layer: K embeddings ``[B, D]`` to K weights ``[B, 1]``."""

    def build(self, input_shape: list[tuple[int | None, int]]) -> None:
        """Make V, U ``[D, units]`` and w ``[units, 1]``, all without biases."""
        width, units, penalty = input_shape[0][1], peer_io.ATTENTION_UNITS, keras.regularizers.L2(peer_io.L2)
        self.v, self.w, self.u = (
            self.add_weight(name=name, shape=shape, initializer="glorot_uniform", regularizer=penalty)
            for name, shape in (("v", (width, units)), ("w", (units, 1)), ("u", (width, units)))
        )

    def call(self, embeddings: list[Any]) -> list[Any]:
        """Softmax over the instances of w · (tanh(V h) * sigmoid(U h))."""
        weights = ops.softmax(ops.stack([self._score(each) for each in embeddings]), axis=0)
        return [weights[slot] for slot in range(len(embeddings))]

    def _score(self, embedding: Any):
        content = ops.tanh(ops.tensordot(embedding, self.v, axes=1))
        gate = ops.sigmoid(ops.tensordot(embedding, self.u, axes=1))
        return ops.tensordot(content * gate, self.w, axes=1)


def build_model(bag_size: int, instance_shape: tuple[int, ...]) -> keras.Model:
    """The example's functional model: a list of K instances in, two probabilities out."""
    hidden, embed = layers.Dense(128, activation="relu"), layers.Dense(64, activation="relu")
    inputs = [layers.Input(instance_shape) for _ in range(bag_size)]
    embeddings = [embed(hidden(layers.Flatten()(instance))) for instance in inputs]
    attention = GatedAttention(name="attention")(embeddings)
    weighted = [layers.multiply(pair) for pair in zip(attention, embeddings, strict=True)]
    together = layers.concatenate(weighted, axis=1) if bag_size > 1 else weighted[0]
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(together))


def fresh_model(options: argparse.Namespace, member: int, train: Split) -> keras.Model:
    """A compiled model of its own; seeds everything that this member draws."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(options.seed + member)
    model = build_model(train.instances.shape[1], train.instances.shape[2:])
    optimizer = keras.optimizers.Adam(peer_io.LEARNING_RATE, epsilon=peer_io.ADAM_EPSILON)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Stopwatch(keras.callbacks.Callback):
    """Takes the time of every epoch, and of its training part, which ends where a test begins."""

    def __init__(self):
        super().__init__()
        self.epoch_seconds: list[float] = []
        self.train_seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_test_begin(self, logs: Any = None) -> None:
        """Training is over."""
        # A backend may still be computing: reading a number waits until the last step is done.
        ops.convert_to_numpy(self.model.optimizer.iterations)
        self.train_seconds.append(time.perf_counter() - self.start)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The epoch is over, and so is training, if no test has been."""
        if len(self.train_seconds) == len(self.epoch_seconds):
            self.on_test_begin()
        self.epoch_seconds.append(time.perf_counter() - self.start)


def as_inputs(split: Split) -> tuple[list[np.ndarray], np.ndarray]:
    """K arrays of instances ``[B, height, width]``, and labels ``[B, 1]``."""
    return list(np.ascontiguousarray(split.instances.swapaxes(0, 1))), split.labels[:, None]


def train_member(options: argparse.Namespace, member: int, train: Split, others: tuple[Split, ...]) -> Member:
    """Train with the example's callbacks, reload the best weights, predict the test bags.

    Without validation and test bags, train for the asked number of epochs and save nothing.
    """
    model, stopwatch = fresh_model(options, member, train), Stopwatch()
    weights = dict(enumerate(train.class_weights))
    fit = partial(model.fit, *as_inputs(train), class_weight=weights, batch_size=1, verbose=0)
    parameters, prediction = model.count_params(), None
    if not others:
        history = fit(epochs=options.timing_only_epochs, callbacks=[stopwatch]).history
    else:
        val, test = others
        with tempfile.TemporaryDirectory() as folder:
            best = Path(folder) / "best.weights.h5"
            save = {"mode": "min", "save_best_only": True, "save_weights_only": True}
            stopping = keras.callbacks.EarlyStopping("val_loss", patience=peer_io.PATIENCE, mode="min")
            callbacks = [stopping, keras.callbacks.ModelCheckpoint(best, "val_loss", **save), stopwatch]
            history = fit(epochs=options.epochs, validation_data=as_inputs(val), callbacks=callbacks).history
            model.load_weights(best)
        prediction = predict(model, as_inputs(test)[0])
    losses = history["loss"], history.get("val_loss", [])
    seconds = stopwatch.epoch_seconds, stopwatch.train_seconds
    return Member(options.seed + member, parameters, *losses, *seconds, prediction)


def predict(model: keras.Model, instances: list[np.ndarray]) -> Prediction:
    """Probabilities, and the attention layer's weights by a model that ends there."""
    attention = keras.Model(model.inputs, model.get_layer("attention").output)
    weights = attention.predict(instances, verbose=0)
    return Prediction(model.predict(instances, verbose=0), np.stack(weights, axis=1)[..., 0])


def main(options: argparse.Namespace) -> None:
    """Run the members."""
    train = peer_io.read_split(options.bags, "train")
    names = () if options.timing_only_epochs else ("val", "test")
    others = tuple(peer_io.read_split(options.bags, name) for name in names)
    members = [train_member(options, i, train, others) for i in range(options.members)]
    versions = {"keras": keras.__version__, options.backend: importlib.import_module(options.backend).__version__}
    # Neither backend is told a number of threads: both take every core that they may use.
    peer = {"peer": "keras", "backend": options.backend, "threads": peer_io.usable_cores(), "versions": versions}
    peer_io.write_results(options.out, peer, members, train)


if __name__ == "__main__":
    main(peer_io.keras_options())
