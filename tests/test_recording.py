"""Training that leaves a trace: the trace is whole, and a run that was stopped goes on as if it had not been."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import HostRun, assert_close, assert_same_bits
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from mil_jax.cli import Compute, Interrupted, Stopwatch
from mil_jax.runs import load_run, open_run

from mil_jax import recording
from mil_jax.bags import Bags
from mil_jax.ensemble import Ensemble, Placement
from mil_jax.errors import InputError, RunError
from mil_jax.model import MIL
from mil_jax.training import EpochInfo, FitConfig, Hyper

ONE = Compute(devices=1)
GO_ON = dataclasses.replace(ONE, resume=True)

Record = Callable[..., Ensemble]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the compiled programs of this file's runs, which are all the same."""
    before = {
        name: getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def record(
    host_run: HostRun,
    concat_model: MIL,
    train_bags: Bags,
    val_bags: Bags,
    quick_config: FitConfig,
    quick_hyper: Hyper,
) -> Record:
    """`fit_recorded` on the members of `host_run`: (folder, compute, at_epoch) -> Ensemble.

    `at_epoch` maps an epoch to what happens in it, after its lines are written and before its checkpoint.
    """

    def run(
        path: Path, compute: Compute, at_epoch: dict[int, Callable[[], Any]] | None = None, seed: int = 0
    ) -> Ensemble:
        def losses_text(info: EpochInfo) -> str:
            (at_epoch or {}).get(int(info.epoch.max()), lambda: None)()
            return text_of(info)

        text_of = recording.losses_text
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recording, "losses_text", losses_text)
            with open_run(path, {"options": {"seed": seed}}, {}, compute.resume) as folder:
                return recording.fit_recorded(
                    folder, compute, Stopwatch(), concat_model, host_run.keys,
                    train_bags, val_bags, quick_config, quick_hyper,
                )  # fmt: skip

    return run


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded run that was not stopped."""

    path: Path
    ensemble: Ensemble

    @property
    def log(self) -> bytes:
        return (self.path / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def recorded(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path = tmp_path_factory.mktemp("recorded") / "run"
    return Recorded(path, record(path, ONE))


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """As if the process had been killed: nobody catches it."""


def die() -> None:
    raise Killed


def assert_as_if_not_stopped(path: Path, ensemble: Ensemble, recorded: Recorded) -> None:
    """The same log, byte by byte, and the same members, bit by bit, as in `recorded`."""
    assert (path / "metrics.jsonl").read_bytes() == recorded.log
    assert_same_bits(ensemble, recorded.ensemble)
    assert_same_bits(load_run(path).params, recorded.ensemble.params)


def notes(path: Path) -> list[str]:
    return [line.split("  ", 1)[1] for line in (path / "log.txt").read_text().splitlines()]


# ---- the trace ----


def test_recording_changes_no_bit(recorded: Recorded, host_run: HostRun) -> None:
    assert_same_bits(recorded.ensemble, host_run.ensemble)


def test_a_line_for_each_member_and_epoch_that_it_trained(recorded: Recorded, host_run: HostRun) -> None:
    lines = [json.loads(line, parse_constant=pytest.fail) for line in recorded.log.splitlines()]
    ends = host_run.ensemble.epochs_run
    expected = [(epoch, i) for epoch in range(1, 7) for i in range(3) if epoch <= ends[i]]
    assert [(line["epoch"], line["member"]) for line in lines] == expected
    for line in lines:
        info = host_run.infos[line["epoch"] - 1]
        for name in ("train_loss", "train_accuracy", "gradient_norm", "val_loss", "val_accuracy"):
            assert line[name] == getattr(info, name)[line["member"]]
        for label, stats in (("positive", info.positive), ("negative", info.negative)):
            for name in ("entropy", "normalized_entropy", "effective_instances", "largest_weight"):
                assert line[f"{label}_bags_{name}"] == getattr(stats, name)[line["member"]]
        assert line["positive_bags_hit_at_1"] == info.positive.hit_at_1[line["member"]]
        assert line["positive_bags_positive_mass"] == info.positive.positive_mass[line["member"]]
        assert "negative_bags_hit_at_1" not in line


def test_the_folder_keeps_the_best_parameters(recorded: Recorded) -> None:
    assert_same_bits(load_run(recorded.path).params, recorded.ensemble.params)


def test_the_live_losses_are_those_of_members_that_train(host_run: HostRun) -> None:
    last = host_run.infos[-1]
    assert np.flatnonzero(last.epoch).tolist() == [1], "the other members have stopped"
    text = recording.losses_text(last)
    assert f"val loss {last.val_loss[1]:.4f}" in text and "training 1 of 3" in text


# ---- stopping and going on ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_is_as_if_not_stopped(
    number: int, record: Record, recorded: Recorded, tmp_path: Path
) -> None:
    """Twice stopped: in epochs 2 and 4."""
    stop = lambda: os.kill(os.getpid(), number)  # noqa: E731
    with pytest.raises(Interrupted) as first:
        record(tmp_path, ONE, {2: stop})
    assert f"{tmp_path} keeps the log of 2 epochs" in str(first.value) and "--resume" in str(first.value)
    assert recorded.log.startswith((tmp_path / "metrics.jsonl").read_bytes())
    with pytest.raises(Interrupted, match="log of 4 epochs"):
        record(tmp_path, GO_ON, {4: stop})
    ensemble = record(tmp_path, GO_ON, {1: die, 2: die, 3: die, 4: die})
    assert_as_if_not_stopped(tmp_path, ensemble, recorded)
    assert notes(tmp_path) == [
        "started",
        "stopped after epoch 2",
        "resumed",
        "from the checkpoint of epoch 2",
        "stopped after epoch 4",
        "resumed",
        "from the checkpoint of epoch 4",
    ]


def test_a_stopped_run_keeps_where_it_stands(record: Record, host_run: HostRun, tmp_path: Path) -> None:
    """Its best parameters, and a checkpoint, also in an epoch that has none otherwise."""
    with pytest.raises(Interrupted):
        record(tmp_path, dataclasses.replace(ONE, checkpoint_every=2), {3: ask_to_stop})
    assert {path.name for path in (tmp_path / "progress").iterdir()} == {"000002", "000003"}
    assert_same_bits(load_run(tmp_path).params, host_run.states[2].best_params)


def test_a_killed_run_goes_on(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    """Killed when the lines of epoch 4 were written and its checkpoint was not."""
    with pytest.raises(Killed):
        record(tmp_path, ONE, {4: die})
    assert recorded.log.startswith((tmp_path / "metrics.jsonl").read_bytes())
    ensemble = record(tmp_path, GO_ON, {3: die})
    assert_as_if_not_stopped(tmp_path, ensemble, recorded)
    assert notes(tmp_path)[-1] == "from the checkpoint of epoch 3"


def test_fewer_checkpoints_only_repeat_more(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    every_second = dataclasses.replace(ONE, checkpoint_every=2)
    with pytest.raises(Killed):
        record(tmp_path, every_second, {4: die})
    ensemble = record(tmp_path, dataclasses.replace(every_second, resume=True), {2: die})
    assert_as_if_not_stopped(tmp_path, ensemble, recorded)
    assert notes(tmp_path)[-1] == "from the checkpoint of epoch 2"


def test_killed_before_the_first_checkpoint(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        record(tmp_path, ONE, {1: die})
    assert (tmp_path / "metrics.jsonl").exists()
    assert_as_if_not_stopped(tmp_path, record(tmp_path, GO_ON), recorded)
    assert notes(tmp_path)[-1] == "no checkpoint yet: from the start"


def test_without_checkpoints_there_is_nothing_to_go_on_from(
    record: Record, recorded: Recorded, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(Interrupted) as stop:
        record(tmp_path, dataclasses.replace(ONE, checkpoint_every=0), {2: ask_to_stop})
    assert "--resume" not in str(stop.value)
    assert not (tmp_path / "progress").exists()
    assert_as_if_not_stopped(tmp_path, record(tmp_path, GO_ON), recorded)


def test_killed_after_the_last_checkpoint(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    """Nothing is left to train."""
    record(tmp_path, ONE)
    assert_as_if_not_stopped(tmp_path, record(tmp_path, GO_ON, dict.fromkeys(range(7), die)), recorded)


def test_asked_to_stop_in_the_last_epoch(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    assert_as_if_not_stopped(tmp_path, record(tmp_path, ONE, {6: ask_to_stop}), recorded)


def test_going_on_with_more_devices(record: Record, recorded: Recorded, tmp_path: Path) -> None:
    """Equal up to rounding: the program for two devices is another one."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    with pytest.raises(Interrupted):
        record(tmp_path, ONE, {3: ask_to_stop})
    half = (tmp_path / "metrics.jsonl").read_bytes()
    ensemble = record(tmp_path, dataclasses.replace(GO_ON, devices=2))
    assert_close(ensemble, recorded.ensemble)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert log.startswith(half) and recorded.log.startswith(half)
    for line, expected in zip(log.splitlines(), recorded.log.splitlines(), strict=True):
        assert_close(json.loads(line), json.loads(expected))


def test_other_options_are_refused(record: Record, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        record(tmp_path, ONE, {2: ask_to_stop})
    with pytest.raises(InputError, match="the run was started with 0") as stop:
        record(tmp_path, GO_ON, seed=1)
    assert stop.value.argument == "seed"


# ---- several processes ----


def test_all_stop_when_one_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recording.any_process(True) and not recording.any_process(False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for other in (False, True):
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda flag, other=other: np.array([flag, other]))
        assert recording.any_process(False) == other
        assert recording.any_process(True)


def test_a_lost_process_ends_the_run(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose() -> None:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        raise JaxRuntimeError("Gloo AllGather failed: Connection reset by peer\nand more")

    with pytest.raises(RunError, match=r"another process .* has died .*\(Gloo .* peer\); start .* with --resume"):
        record(tmp_path, ONE, {2: lose})


# ---- placement ----


def test_placement_follows_the_options() -> None:
    devices = min(jax.device_count(), 3)
    default = recording.placement_of(Compute(), 3)
    assert default.devices == devices
    assert recording.placement_of(Compute(devices=1), 3) == Placement(1, default.together)
    assert recording.placement_of(Compute(together=2), 3) == Placement(devices, 2)
    with pytest.raises(InputError, match="devices"):
        recording.placement_of(Compute(devices=jax.device_count() + 1), 3)
