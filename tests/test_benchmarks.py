"""The benchmarks: that what they time is what mil_jax trains, that numbers become tables rightly, and small runs."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import HostRun, assert_close, assert_same_bits, member

from mil_jax import datasets, ensemble
from mil_jax.bags import Bags, gather, stack_bags, take
from mil_jax.errors import InputError, RunError
from mil_jax.model import MIL, Prediction
from mil_jax.optimizer import Hyper
from mil_jax.placement import Placement
from mil_jax.run.fit import Task
from mil_jax.sampling import Splits
from mil_jax.training import FitConfig

measure: Any = importlib.import_module("measure")
peer_io: Any = importlib.import_module("peer_io")
jax_worker: Any = importlib.import_module("jax_worker")
member_speed: Any = importlib.import_module("member_speed")
ensemble_speed: Any = importlib.import_module("ensemble_speed")
keras_quality: Any = importlib.import_module("keras_quality")
classic_speed: Any = importlib.import_module("classic_speed")


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test where a peer is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed: the extra peers has them")


# ---- what is timed is what is trained ----


@pytest.fixture(scope="module")
def task(
    concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_hyper: Hyper, quick_config: FitConfig, host_run: HostRun
) -> Task:
    """The first two epochs of the members of `host_run`, in which none of them stops."""
    config = dataclasses.replace(quick_config, epochs=2)
    return Task(concat_model, host_run.keys, train_bags, val_bags, config, quick_hyper)


def test_placed_and_one_by_one_train_as_fit_ensemble_does(task, host_run):
    *_, placed = jax_worker.placed_epochs(task, Placement(2, 1), jax_worker.train_member)
    assert_close(member(placed.train, slice(3)), host_run.states[1].train)
    *_, states = jax_worker.sequential_epochs(task)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[state.train for state in states])
    assert_close(stacked, host_run.states[1].train)


def test_adam_alone_is_adam_and_a_filler_takes_no_time(task):
    """The gradient g does not change, so that both moments, corrected, are g and g²: a closed form."""
    lone = dataclasses.replace(task, keys=member(task.keys, slice(1)))
    placement = Placement(2, 1)  # the second device has no member of its own
    start = ensemble.init_members(lone.model, lone.keys, lone.train, lone.config, placement)
    before = jax.tree.map(np.asarray, start.train)
    *_, state = jax_worker.placed_epochs(lone, placement, jax_worker.adam_member)
    after = jax.tree.map(np.asarray, state.train)
    steps = 2 * 23  # an update for each bag, as in batches of one
    rate = steps * float(lone.hyper.learning_rate)
    expected = jax.tree.map(lambda g: g[0] - rate * g[0] / (np.abs(g[0]) + 1e-7), before.params)
    assert_close(member(after.params, 0), expected, 1e-3)
    assert after.step.tolist() == [steps, 0]
    assert_same_bits(member(after, 1), member(before, 1))


def test_the_worker_measures_in_a_process_of_its_own():
    task = measure.Task(Path("of-peers.npz"), seed=3, train_bags=6, val_bags=5)
    measured, versions = measure.measure(measure.Case(measure.PLACED, 1, 2), task, number=1)
    assert len(measured.train) == len(measured.whole) == 2  # the first epoch is left out
    assert min(*measured.train, *measured.whole) > 0 and measured.peak_memory_mib > 50
    assert measured.details["parameters"] == 142_146 and versions["jax"] == jax.__version__


def test_peers_train_on_the_bags_that_the_worker_draws(tmp_path):
    job = jax_worker.Job(out=tmp_path / "bags.npz", job="bags", seed=3, train_bags=6, val_bags=5)
    jax_worker.main(job)
    train, read = jax_worker.pose(job).train, peer_io.read_split(job.out, "train")
    np.testing.assert_array_equal(read.instances, gather(train.pool, train.rows))
    np.testing.assert_array_equal(read.labels, train.label)
    assert len(peer_io.read_split(job.out, "val").labels) == 5


def test_what_a_peer_writes(tmp_path):
    bags = peer_io.Split(np.zeros((4, 3, 2, 2), np.float32), np.array([0, 1, 0, 0]))
    assert bags.class_weights == (4 / 6, 2.0)
    predicted = peer_io.Prediction(np.full((4, 2), 1 / 2), np.full((4, 3), 1 / 3))
    run = peer_io.Member(7, 142_146, [0.5, 0.4], [0.6, 0.2], [9.0, 2.0], [8.0, 1.0], predicted)
    peer_io.write_results(tmp_path / "new" / "out.json", {"versions": {"peer": "1"}}, [run, run], bags)
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["members"][0]["microseconds_per_step_by_epoch"] == [2e6, 0.25e6]
    assert written["members"][1]["val_loss"] == [0.6, 0.2] and written["versions"]["peer"] == "1"
    with np.load(tmp_path / "new" / "out.npz") as arrays:
        assert arrays["probabilities"].shape == (2, 4, 2) and arrays["attention"].shape == (2, 4, 3)


# ---- from answers to measurements ----


class FakeScripts:
    """Stands in for `measure.run_scripts`: answers at once, with times that depend on the way alone.

    A step of a member takes 100 us with mil_jax and 1000 us with a peer; the first epoch takes 1e6 us.
    """

    def __init__(self, failing: str = ""):
        self.calls: list[list[str]] = []
        self.failing = failing

    def __call__(self, script: str, argument_lists: list[list[str]]) -> None:
        for arguments in argument_lists:
            self.calls.append([script, *arguments])
            if self.failing and self.failing in arguments:
                raise RunError("no memory left")
            out = Path(arguments[arguments.index("--out") + 1])
            if out.suffix == ".json":
                out.write_text(json.dumps(self.answer(script, arguments)))

    def answer(self, script: str, arguments: list[str]) -> dict[str, Any]:
        answer = {"versions": {"device": "cpu", "backend": "cpu", script: "1.0"}, "peak_memory_mib": 300.0}
        if script == "jax_worker.py":
            whole = [1e6, 120.0] if "both" in arguments else []
            times = {"microseconds_per_step_by_epoch": [1e6, 100.0, 90.0, 110.0]}
            times |= {"whole_microseconds_per_step_by_epoch": whole}
            return answer | {"members": [times], "details": {"parameters": 142_146}}
        members = int(arguments[arguments.index("--members") + 1])
        return answer | {"members": [{"microseconds_per_step_by_epoch": [1e6, 1000.0]}] * members}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> FakeScripts:
    fake = FakeScripts()
    monkeypatch.setattr(measure, "run_scripts", fake)
    return fake


TASK = measure.Task(Path("bags.npz"), seed=0, train_bags=10, val_bags=5)


def test_measurements(scripts):
    """The first epoch is left out; copies share members, time and memory."""
    measured, _ = measure.measure(measure.Case(measure.PLACED, 4, 3), TASK, number=1)
    assert (measured.train, measured.whole) == ((100.0, 90.0, 110.0), (120.0,))
    way = dataclasses.replace(measure.TORCH, copies=4)
    peer, _ = measure.measure(measure.Case(way, 8, 1), TASK, number=1)
    calls = [call for call in scripts.calls if call[0] == "torch_peer.py"]
    assert len(calls) == 4 and all(call[call.index("--members") + 1] == "2" for call in calls)
    assert (set(peer.train), peer.whole, peer.peak_memory_mib) == ({250.0}, (), 1200.0)


def test_the_ways_take_turns_and_a_failure_stops_nothing(monkeypatch, capsys):
    monkeypatch.setattr(measure, "run_scripts", FakeScripts(failing="vmap"))
    cases = [measure.Case(way, 1, 1) for way in (measure.PLACED, measure.VMAP, measure.TORCH)]
    measured = measure.measure_in_rounds(cases, TASK, rounds=2)
    assert [(one.way, one.round) for one in measured.all] == [
        ("mil_jax", 1), ("PyTorch", 1), ("mil_jax", 2), ("PyTorch", 2)
    ]  # fmt: skip
    assert len(measured.failures) == 2 and "no memory left" in measured.failures[0]
    assert "left out: no memory left" in capsys.readouterr().out
    with pytest.raises(RunError, match="nothing could be measured"):
        measure.measure_in_rounds(cases[1:2], TASK, rounds=1)


def measured_in(number: int, *train: float, way: str = "mil_jax", members: int = 1) -> Any:
    return measure.Measurement(way, members, number, train, (), 300.0 + number, 0.0, {"parameters": 142_146})


def test_a_row_is_the_median_over_rounds_of_medians_over_epochs():
    rounds = [measured_in(1, 10.0, 11.0, 90.0), measured_in(2, 30.0), measured_in(3, 12.0, 14.0)]
    (row,) = measure.summarize(rounds)
    assert (row.train_us, row.train_us_low, row.train_us_high) == (13.0, 11.0, 30.0)
    assert (row.rounds, row.whole_us, row.peak_memory_mib) == (3, None, 303.0)


def test_a_child_that_fails_says_why(tmp_path):
    with pytest.raises(RunError, match=r"jax_worker\.py ended with status 2"):
        measure.run_scripts("jax_worker.py", [["--members", "many", "--out", str(tmp_path / "x.json")]])


# ---- options ----


def test_sizes():
    assert [measure.sizes("sizes", text) for text in ("8,1,2,2", "32", "")] == [(1, 2, 8), (32,), ()]
    for text in ("0", "1,-2", "1;2", "two"):
        with pytest.raises(InputError, match="vmap_sizes"):
            measure.sizes("vmap_sizes", text)


@pytest.mark.parametrize("script", [member_speed, ensemble_speed])
def test_what_is_refused(script, tmp_path):
    for options in ({"rounds": 0}, {"epochs": 0}, {"train_bags": 0}, {"peers": "torch,jax"}):
        with pytest.raises(InputError, match=next(iter(options))):
            script.main(script.Config(out=tmp_path / "out", **options))
        assert not (tmp_path / "out").exists()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="out"):
        script.main(script.Config(out=tmp_path))


def test_a_missing_peer_is_named_with_its_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        keras_quality.main(keras_quality.Config(out=tmp_path / "out"))
    assert "keras and tensorflow not installed: pip install 'mil_jax[peers]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- member_speed and ensemble_speed ----


def test_member_speed_compares_with_the_faster_loop():
    loops = {way.name: 500.0 - 50 * i for i, way in enumerate(member_speed.PEERS["torch"])}
    times = {"mil_jax": 100.0, "Keras, TensorFlow": 1500.0} | loops
    measured = [measured_in(1, us, way=way) for way, us in times.items()]
    compared = member_speed.times_as_long(measure.summarize(measured))
    assert compared["Keras, TensorFlow"] == 15.0
    assert compared[member_speed.FASTER_LOOP] == min(loops.values()) / 100
    # Where one loop could not be measured, nobody knows which is the faster one.
    without = [one for one in measured if one.way != "PyTorch"]
    assert member_speed.FASTER_LOOP not in member_speed.times_as_long(measure.summarize(without))


def test_member_speed_writes_its_results(scripts, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    member_speed.main(member_speed.Config(rounds=2, out=out))
    results = json.loads((out / "results.json").read_text())
    assert results["times_as_long"]["Keras, TensorFlow"] == 10.0 and results["rows"][0]["whole_us"] == 120.0
    assert {"jax_worker.py", "torch_peer.py", "keras_peer.py"} <= set(results["versions"])
    lines = (out / "results.csv").read_text().splitlines()
    assert len(results["measurements"]) == 2 * len(results["rows"]) == 2 * (len(lines) - 1)
    assert "Keras, TensorFlow: 10.0 times as long as mil_jax" in capsys.readouterr().out


def test_a_peers_largest_size_stands_for_all():
    rows = measure.summarize(
        [*(measured_in(1, us, members=s) for s, us in ((1, 200.0), (8, 100.0), (32, 50.0))),
         measured_in(1, 300.0, way=measure.VMAP.name, members=8),
         measured_in(1, 999.0, way="PyTorch", members=1), measured_in(1, 800.0, way="PyTorch", members=2)]
    )  # fmt: skip
    times = ensemble_speed.times_as_long(rows)
    assert times == {measure.VMAP.name: {8: 3.0}, "PyTorch": {1: 4.0, 8: 8.0, 32: 16.0}}


def test_bandwidth_is_counted_bytes_over_time():
    measured = [measured_in(1, 10.0, way=measure.ADAM.name, members=64)]
    bandwidth = ensemble_speed.adam_bandwidth(
        measure.Measured(measured, {}, [], 1.0), measure.summarize(measured), peak=1000.0
    )
    gigabytes = 7 * 4 * 142_146 / 1e9
    assert bandwidth[64]["gb_per_s"] == pytest.approx(gigabytes / 10e-6)
    assert bandwidth[64]["share_of_peak"] == pytest.approx(gigabytes / 10e-6 / 1000)
    names = ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "cpu")
    assert [ensemble_speed.peak_bandwidth(name) for name in names] == [4800.0, 3350.0, 2039.0, None]


def test_ensemble_speed_goes_further_on_an_accelerator():
    for backend, most in (("cpu", 128), ("gpu", 4096)):
        cases = ensemble_speed.plan(ensemble_speed.Config(peers=""), backend)
        assert max(case.members for case in cases) == most


def test_ensemble_speed_writes_its_results_and_a_figure(scripts, tmp_path, capsys):
    out = tmp_path / "out"
    ensemble_speed.main(ensemble_speed.Config(sizes="1,2,8", rounds=1, out=out))
    results = json.loads((out / "results.json").read_text())
    assert results["times_as_long"]["mil_jax"]["PyTorch"] == {"1": 10.0, "2": 10.0, "8": 10.0}
    assert results["adam_bandwidth"]["8"]["gb_per_s"] == pytest.approx(7 * 4 * 142_146 / 1e5)
    assert (out / "figures" / "ensemble_speed.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "mil_jax, plain vmap" in said and "mil_jax, against its S = 8" in said


# ---- classic_speed ----


def test_classic_speed_gives_both_the_same_work(tables, tmp_path, monkeypatch, capsys):
    seen: dict[str, Any] = {}

    def answer(script: str, argument_lists: list[list[str]]) -> None:
        for arguments in argument_lists:
            if script != "classic_torch.py":
                out = next(Path(word.split("=", 1)[1]) for word in arguments if word.startswith("--out="))
                out.mkdir()
                (out / "results.csv").write_text("accuracy,epochs_run,fits,seconds\n0.9,20,6,1.5\n")
                options = {"seed": 0, "folds": 3, "repeats": 2, "val_share": 0.15, "hidden": [8]}
                (out / "config.json").write_text(json.dumps({"options": options}))
                continue
            options = dict(zip(arguments[::2], arguments[1::2], strict=True))
            with np.load(options["--task"]) as arrays:
                seen.update(arrays)
            of_process = range(int(options["--first"]), len(seen["test"]), int(options["--stride"]))
            fits = [{"seconds": 2.0, "epochs": 10, "right": 7, "judged": 8} for _ in of_process]
            Path(options["--out"]).write_text(json.dumps({"fits": fits}))

    monkeypatch.setattr(measure, "run_scripts", answer)
    monkeypatch.setattr(peer_io, "require", lambda *packages: None)
    config = classic_speed.Config(
        data_dir=tables, dataset="stand_in", repeats=2, folds=3, rounds=1, out=tmp_path / "out"
    )  # fmt: skip
    classic_speed.main(config)
    assert seen["test"].shape == (6, 8) and sorted(seen["test"][:3].ravel()) == list(range(24))
    assert len(seen["x"]) == seen["sizes"].sum() and json.loads(str(seen["options"]))["hidden"] == [8]
    ours, one, *per_core = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert (ours["seconds"], ours["epochs"]) == (1.5, 120)
    assert (one["seconds"], one["epochs"], one["accuracy"]) == (12.0, 60, 7 / 8)
    assert len(per_core) == (measure.CORES > 1)
    assert all(row["seconds"] == pytest.approx(12.0 / measure.CORES, abs=2) for row in per_core)
    assert "8.0" in capsys.readouterr().out


# ---- keras_quality ----


def test_worse_means_worse_by_more_than_two_standard_errors():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 0.1, 8)  # of the draw: it hits both alike, and pairing takes it out
    noise = rng.normal(0, 0.001, 8)
    keras = dict.fromkeys(keras_quality.MEASURES, 0.9 + luck)
    ours = {name: values - 0.01 + noise for name, values in keras.items()}
    results = keras_quality.compare({"mil_jax": ours, "keras": keras})
    worse = {name: result["worse_by_more_than_two_standard_errors"] for name, result in results.items()}
    assert worse == {"accuracy": True, "auc": True, "loss": False, "hit_at_1": True}
    paired = results["auc"]["difference"]
    assert paired["mean"] == pytest.approx(-0.01 + noise.mean())
    assert paired["standard_error"] == pytest.approx(noise.std(ddof=1) / np.sqrt(8))
    assert results["auc"]["keras"]["standard_error"] > 10 * paired["standard_error"]


def test_both_are_judged_by_their_own_bags(train_bags):
    """Two draws with opposite labels; one prediction is right about the first and wrong about the second."""
    label = np.asarray(train_bags.label)
    flipped = Bags(train_bags.pool, dataclasses.replace(train_bags.view, label=1 - label))
    probability = np.stack([1.0 - label, label], axis=-1).astype(np.float32) * 0.8 + 0.1
    attention = np.eye(3, dtype=np.float32)[np.asarray(train_bags.instance_label).argmax(axis=1)]
    twice = Prediction(*(np.stack([leaf, leaf]) for leaf in (probability, attention, attention)))
    judged = keras_quality.judge(twice, stack_bags([train_bags, flipped]))
    np.testing.assert_allclose(judged["accuracy"], [1, 0])
    np.testing.assert_allclose(judged["auc"], [1, 0])
    np.testing.assert_allclose(judged["loss"], [-np.log(0.9), -np.log(0.1)], rtol=1e-5)
    assert judged["hit_at_1"][0] == 1


def test_results_of_other_bags_or_options_are_not_reused(tmp_path, train_bags, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    images = Bags(np.arange(60 * 6, dtype=np.uint8).reshape(60, 2, 3), train_bags.view)
    paths = {}
    for name, part in (("one", images), ("same", images), ("other", take(images, np.arange(23)[::-1]))):
        paths[name] = tmp_path / f"{name}.npz"
        jax_worker.write_peer_bags(Splits(part, part, part), paths[name])
    digest: Callable[..., str] = keras_quality.digest
    assert digest(paths["one"], ["--epochs", "3"]) == digest(paths["same"], ["--epochs", "3"])
    others = [(paths["other"], ["--epochs", "3"]), (paths["one"], ["--epochs", "4"])]
    assert all(digest(*other) != digest(paths["one"], ["--epochs", "3"]) for other in others)


# ---- small runs with the peers ----


@needs("torch")
def test_torch_is_measured():
    with measure.task_of(member_speed.Config(train_bags=6, val_bags=5)) as task:
        way = dataclasses.replace(measure.TORCH, copies=2)
        measured, versions = measure.measure(measure.Case(way, 2, 1), task, number=1)
    assert len(measured.train) == 2 and min(measured.train) > 0
    assert "torch" in versions


@needs("torch")
def test_the_loop_in_pytorch_learns(tables, tmp_path):
    options = {
        "seed": 0, "folds": 3, "repeats": 1, "val_share": 0.15, "hidden": [256, 128, 64], "attention_units": 64,
        "learning_rate": 5e-4, "weight_decay": 5e-3, "epochs": 60, "patience": 20,
    }  # fmt: skip
    classic_speed.write_task(options, datasets.load_table_set("stand_in", tables), tmp_path / "task.npz")
    parts = [["--task", str(tmp_path / "task.npz"), "--first", str(i), "--stride", "2"] for i in range(2)]
    fits = [fit for answer in measure.answers_of("classic_torch.py", parts) for fit in answer["fits"]]
    assert len(fits) == 3 and sum(fit["judged"] for fit in fits) == 24
    assert sum(fit["right"] for fit in fits) >= 20, "an easy problem"
    assert all(1 <= fit["epochs"] <= 60 and fit["seconds"] > 0 for fit in fits)


@needs("keras", "tensorflow")
def test_keras_quality_small_and_again(tmp_path):
    options = ["--train-bags", "20", "--val-bags", "10", "--test-bags", "30", "--epochs", "2", "--out", str(tmp_path)]

    def run(draws: int) -> tuple[str, list[dict[str, Any]]]:
        command = [sys.executable, str(keras_quality.__file__), "--draws", str(draws), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "results.json").read_text())["draws"]
        return done.stdout, [row for row in rows if row["who"] == "keras"]

    _, first = run(2)
    printed, second = run(3)
    assert printed.count("kept from before") == 2 and second[:2] == first
    assert "mil_jax is worse than Keras" in printed
