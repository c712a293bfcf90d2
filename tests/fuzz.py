"""Hundreds of malformed arguments at every public function: each call must succeed or raise `InputError`.

A process of its own, so that the types that tests check elsewhere are not checked here, as they are not for a user:

    python tests/fuzz.py            prints the calls, their answers, and every answer that is neither
    python tests/fuzz.py 0.25       the same of a share of the calls, drawn by a fixed seed, as test_fuzz does
"""

import collections
import contextlib
import io
import random
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import mil_jax as mil
from mil_jax import bags, buckets, committee, curves, ensemble, evaluation, intervals, protocols, sampling
from mil_jax.ensemble import Execution
from mil_jax.placement import Placement

jax.config.update("jax_num_cpu_devices", 2)
KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)

# What people pass by mistake, whatever was expected.
NONSENSE: tuple[Any, ...] = (
    None, "", "no such thing", b"bytes", 0, -1, 3, 2**40, 0.5, float("nan"), float("inf"), 1e30, True, [], {}, (), [[]],
    [1, [2, 3]], object(), print, np.array([]), np.zeros((2, 2)), np.array([0, -1]), np.array(["a"]), np.float64("nan"),
    np.array([np.nan, 1]), np.full((3, 2, 2), np.inf), np.array([2**40]), np.array([0.5, 1.5]), [119],
    np.array([[7, -5]]), Path("/no/such/folder"), "/dev/null",
    jax.random.PRNGKey(0), jax.random.split(KEY, 3), 1j, "nan",
)  # fmt: skip


def problem() -> dict[str, Any]:
    """Small bags, a model and what it says of them."""
    pool, classes = DRAW.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 3
    law = sampling.BagLaw()
    train, val = (sampling.sample_bags(jax.random.key(i), pool, classes, law, count=12) for i in (0, 1))
    model = mil.build(mil.ModelConfig(hidden=(4,), attention_units=3, head="sum"))
    keys, config = mil.member_keys(KEY, 2), mil.FitConfig(epochs=1)
    trained = mil.fit_ensemble(model, keys, train, val, config)
    predicted = mil.predict(model, trained.members, val)
    folds = protocols.cross_validation(KEY, np.arange(20) % 2, folds=2, repeats=1)
    return dict(locals())


def calls(p: dict[str, Any]) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Every public function with arguments that it takes."""
    arrays, labels = [DRAW.normal(size=(3, 4)) for _ in range(6)], [0, 1, 0, 1, 0, 1]
    scores, label = DRAW.uniform(size=12).astype(np.float32), np.arange(12) % 2
    whole = mil.average(p["predicted"])
    yield mil.bags_from_arrays, {"bags": arrays, "labels": labels, "instance_labels": [np.zeros(3, int)] * 6}
    yield mil.take, {"bags": p["train"], "index": [0, 1]}
    yield bags.pad, {"bags": p["train"], "bag_size": 5}
    yield bags.stack_bags, {"draws": [p["train"], p["train"]]}
    yield bags.fit_scaler, {"bags": p["train"]}
    yield buckets.with_widths, {"bags": p["train"], "widths": (1, 2)}
    yield sampling.sample_bags, {"key": KEY, "instances": p["pool"], "classes": p["classes"], "law": p["law"],
                                 "count": 4, "among": np.arange(30)}  # fmt: skip
    yield sampling.split_pool, {"key": KEY, "pool_size": 10, "share": 0.5}
    yield sampling.BagsConfig, {"bag_size": 3, "size_variance": 0.0, "positive_class": 1, "positive_share": 0.5,
                                "train_bags": 3, "val_bags": 3, "test_bags": 3}  # fmt: skip
    yield mil.ModelConfig, {"encoder": "mlp", "hidden": (4,), "dropout": 0.1, "pooling": "attention", "head": "sum",
                            "attention_units": 3, "chunk": 2, "output": "softmax"}  # fmt: skip
    yield mil.HyperConfig, {"learning_rate": 1e-3, "l2": 0.01, "weight_decay": 0.1}
    yield mil.FitConfig, {"epochs": 1, "batch_size": 1, "patience": 1}
    yield mil.RunConfig, {"seed": 0, "members": 1, "vary": "init", "plot_bags": 1, "out": "x"}
    yield mil.Compute, {"devices": 1, "together": 1, "checkpoint_every": 1, "processes": 1, "heartbeat": 1}
    yield mil.Classes, {"count": 2}
    yield mil.build, {"config": mil.ModelConfig(), "target": mil.Classes(2)}
    yield mil.make_hyper, {"train": p["train"], "config": mil.HyperConfig(), "target": mil.Classes(2)}
    yield mil.member_keys, {"key": KEY, "members": 2}
    yield mil.fit_ensemble, {"model": p["model"], "keys": p["keys"], "train": p["train"], "val": p["val"],
                             "config": p["config"], "execution": Execution(Placement(2, 1))}  # fmt: skip
    yield Placement, {"devices": 1, "together": 1}
    yield mil.predict, {"model": p["model"], "members": p["trained"].members, "bags": p["val"]}
    yield mil.average, {"predicted": p["predicted"]}
    yield mil.evaluate, {"predicted": whole, "bags": p["val"]}
    yield evaluation.evaluate_members, {"predicted": p["predicted"], "bags": p["val"]}
    yield evaluation.attention_table, {"predicted": whole, "bags": p["val"], "key": KEY, "statistics": ("gini",)}
    yield committee.gains, {"predicted": p["predicted"], "bags": p["val"], "key": KEY, "sizes": (1,), "subsets": 2}
    yield committee.disagreement, {"predicted": p["predicted"], "bags": p["val"]}
    yield protocols.cross_validation, {"key": KEY, "label": np.arange(20) % 2, "folds": 2, "repeats": 1,
                                       "val_share": 0.2}  # fmt: skip
    yield protocols.split_bags, {"bags": p["train"], "folds": protocols.Folds(*[np.array([[0, 1]])] * 3)}
    yield protocols.choose_threshold, {"probability": scores, "label": label}
    yield protocols.estimate, {"by_repeat": scores, "by_bag": scores}
    yield curves.roc_curve, {"score": scores, "label": label}
    yield curves.precision_recall_curve, {"score": scores, "label": label}
    yield intervals.bootstrap_interval, {"values": scores, "key": KEY, "level": 0.9, "resamples": 5}
    yield mil.load, {"name": "mnist-sample"}
    yield mil.load_run, {"path": "/no/such/folder"}
    yield mil.use_all_cores, {"devices": 2}
    yield ensemble.init_members, {"model": p["model"], "keys": p["keys"], "train": p["train"]}


def malformed(p: dict[str, Any]) -> tuple[Any, ...]:
    """Nonsense, and records of the right type that do not fit."""
    other = mil.bags_from_arrays([np.zeros((2, 7))] * 4, [0, 1, 0, 1])
    pixels = mil.bags_from_arrays([np.zeros((3, 5), np.uint8)] * 12, [0, 1] * 6)
    beyond = bags.Bags(p["pool"], bags.View(p["val"].rows + 100, *list(jax.tree.leaves(p["val"].view))[1:]))
    holes = np.asarray(p["val"].mask).copy()
    holes[:, 0] = False
    gap = bags.Bags(p["pool"], bags.View(p["val"].rows, holes, p["val"].label, p["val"].instance_label))
    nan = bags.Bags(np.full_like(p["pool"], np.nan), p["val"].view)
    gated = mil.build(mil.ModelConfig(hidden=(4,), attention_units=3, head="sum", pooling="attention"))
    three = mil.make_hyper(p["train"], mil.HyperConfig(class_weights=False), mil.Classes(3))
    short = jax.tree.map(lambda leaf: leaf[..., :4, :] if np.ndim(leaf) > 2 else leaf, p["predicted"])
    records = (other, pixels, beyond, gap, nan, gated, three, short, mil.average(p["predicted"]), p["predicted"])
    return (*NONSENSE, *records, p["trained"].members, mil.Classes(5), mil.member_keys(KEY, 3))


def answer(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """How a call ends: "success", "InputError", or the traceback."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
        return "success"
    except mil.InputError as error:
        return "InputError" if str(error).strip() else "empty message"
    except Exception:
        return traceback.format_exc(limit=-3)


def main(share: float = 1.0) -> int:
    """Prints how often each answer came, and the calls that are neither; their number is the exit status."""
    p, counts, wrong, chosen = problem(), collections.Counter(), [], random.Random(0)
    values = malformed(p)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for function, arguments in calls(p):
            assert answer(function, arguments) in ("success", "InputError")
            for name in arguments:
                for value in (value for value in values if chosen.random() < share):
                    given = answer(function, {**arguments, name: value})
                    counts[given if given in ("success", "InputError") else "other"] += 1
                    if given not in ("success", "InputError"):
                        wrong.append(f"{function.__module__}.{function.__name__}({name}={value!r:.80})\n{given}")
        left = [str(path) for path in Path(folder).rglob("*")]
    print("\n".join(wrong))
    print(f"{sum(counts.values())} calls: {dict(counts)}; files left: {left}")
    return min(len(wrong) + len(left), 100)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
