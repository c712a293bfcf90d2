"""The benchmarks of one network: counted operations, ratios, a small run, and that PyTorch has the same work."""

import importlib
import importlib.util
import json
from typing import Any

import numpy as np
import pytest

from mil_jax.model import count_params, param_shapes

measure: Any = importlib.import_module("measure")
peer_io: Any = importlib.import_module("peer_io")
loops: Any = importlib.import_module("loops")
colon_speed: Any = importlib.import_module("colon_speed")
features_speed: Any = importlib.import_module("features_speed")
features_worker: Any = importlib.import_module("features_worker")
colon_worker: Any = importlib.import_module("colon_worker")

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch not installed: the extra peers has it"
)


@pytest.fixture(scope="module")
def posed():
    """The options and arrays of a small task."""
    with colon_speed.task_of(colon_speed.Config(bags=2, patches=3, hidden=(7, 5))) as task:
        return peer_io.read_task(task.bags)


def test_operations_are_counted_by_hand(posed):
    first, second = 24 * 24 * 48 * 36, 10 * 10 * 324 * 48
    dense = 1200 * 7 + 7 * 5 + 5 * 128
    assert colon_worker.operations(posed[0], 3) == 2 * 3 * (2 * first + 3 * (second + dense))


def test_every_instance_is_in_one_bag(posed):
    bags = colon_worker.bags_of(posed[1])
    np.testing.assert_array_equal(np.asarray(bags.pool)[bags.rows], posed[1]["patches"])
    np.testing.assert_array_equal(bags.label, [0, 1])


def rows_of(times: dict[str, float], members: int = 4) -> list[Any]:
    details = {"operations": 6e9, "operations_per_second": 3e11}
    return [
        measure.Measurement(way, members, 1, (us,), (), 1.0, 0.0, details if way == "mil_jax" else {})
        for way, us in times.items()
    ]


def test_the_fastest_loop_is_compared_only_where_all_were_measured():
    of_loops = {way.name: 60.0 + 10 * i for i, way in enumerate(colon_speed.TORCH)}
    every, count = rows_of({"mil_jax": 40.0} | of_loops), len(of_loops)
    ratios = loops.times_as_long(measure.summarize(every), "mil_jax", count)
    assert ratios[4][loops.BEST] == 1.5
    assert loops.BEST not in loops.times_as_long(measure.summarize(every[:-1]), "mil_jax", count)[4]
    measured = measure.Measured(every, {}, [], 1.0)
    assert loops.limit_of(measured) == pytest.approx(20_000)


def test_results_are_written(tmp_path, monkeypatch, capsys):
    def answer(script: str, argument_lists: list[list[str]]) -> list[dict[str, Any]]:
        ours = script == "colon_worker.py"
        us = 4e4 if ours else 6e4 * len(argument_lists)
        details = {"details": {"operations": 6e9, "operations_per_second": 3e11}} if ours else {}
        one = {"members": [{"microseconds_per_step_by_epoch": [1e6, us, us]}], "peak_memory_mib": 1.0, "versions": {}}
        return [one | details for _ in argument_lists]

    monkeypatch.setattr(measure, "answers_of", answer)
    monkeypatch.setattr(peer_io, "require", lambda *packages: None)
    config = colon_speed.Config(sizes="1,4", rounds=1, bags=2, patches=2, out=tmp_path / "out")
    colon_speed.main(config)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["limit_us"] == pytest.approx(20_000)
    assert results["times_as_long_by_members"]["4"][loops.BEST] == pytest.approx(1.5)
    assert (tmp_path / "out" / "figures" / "colon_speed.png").stat().st_size > 5000
    assert "1.50 times as long as mil_jax with S = 4" in capsys.readouterr().out


def test_features_too_are_counted_by_hand_and_each_instance_is_in_one_bag():
    with features_speed.task_of(features_speed.Config(bags=3, smallest=2, largest=4, features=5, hidden=(7,))) as task:
        options, arrays = peer_io.read_task(task.bags)
    assert sorted(arrays["sizes"]) == [2, 3, 4] and arrays["features"].shape == (9, 5)
    assert features_worker.operations(options, 9, 5) == 2 * 9 * (2 * 5 * 7 + 3 * 2 * 7 * 128)


@needs_torch
def test_pytorch_has_the_same_network_and_the_same_symmetries(posed):
    torch: Any = importlib.import_module("torch")
    colon_torch: Any = importlib.import_module("colon_torch")
    task, arrays = posed
    count = sum(parameter.numel() for parameter in colon_torch.ColonNet(task).parameters())
    model = colon_worker.pose(task, arrays, 1, 2, 0).model
    assert count == count_params(param_shapes(model, 3, (27, 27, 3)))
    still = colon_torch.Augmentation(task | {"scale": 0.0, "shift": 0.0})
    patch = arrays["patches"][0, 0]
    out = still(torch.from_numpy(np.repeat(patch[None], 200, axis=0))).permute(0, 2, 3, 1).numpy()
    turned = [np.rot90(patch / 255, quarter) for quarter in range(4)]
    images = np.stack([image for one in turned for image in (one, one[:, ::-1])])
    which = np.abs(out[:, None] - images).max(axis=(2, 3, 4)) < 1e-5
    assert which.any(axis=1).all() and which.any(axis=0).all(), "each of the eight, and nothing else"


@needs_torch
@pytest.mark.parametrize(
    ("benchmark", "config"),
    [
        (colon_speed, colon_speed.Config(bags=2, patches=3, hidden=(7, 5))),
        (features_speed, features_speed.Config(bags=2, smallest=3, largest=4, features=5, hidden=(7,))),
    ],
    ids=["colon", "features"],
)
def test_both_are_measured(benchmark, config):
    with benchmark.task_of(config) as task:
        for way in (benchmark.OURS, benchmark.TORCH[0]):
            measured, _ = measure.measure(measure.Case(way, 1, 1), task, number=1)
            assert len(measured.train) == 1 and measured.train[0] > 0
