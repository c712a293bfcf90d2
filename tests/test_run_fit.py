"""Training that leaves a trace: the trace is whole, and a run that was stopped goes on as if it had not been."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import HostRun, assert_close, assert_same_bits, commands_here, quick_programs

from mil_jax.bags import Bags
from mil_jax.ensemble import Ensemble
from mil_jax.errors import InputError
from mil_jax.model import MIL, ModelConfig
from mil_jax.optimizer import Hyper
from mil_jax.run import fit, processes
from mil_jax.run.config import Compute
from mil_jax.run.folder import open_run
from mil_jax.run.processes import Interrupted
from mil_jax.run.saved import load_run
from mil_jax.run.screen import Stopwatch, losses_text
from mil_jax.training import EpochInfo, FitConfig

ONE = Compute(devices=1)
GO_ON = dataclasses.replace(ONE, resume=True)
CONFIG = {
    "model": dataclasses.asdict(ModelConfig()), "classes": ("no", "yes"), "data": {},
    "instances": {"shape": (6,), "pixels": False},
}  # fmt: skip

Record = Callable[..., Ensemble]


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the compiled programs of this file's runs, which are all the same."""
    with commands_here(tmp_path_factory.mktemp("cache")):
        processes.start_jax(Compute(), 1)
        yield


@pytest.fixture(scope="module")
def record(
    host_run: HostRun, concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_config: FitConfig, quick_hyper: Hyper
) -> Record:
    """`fit_recorded` on the members of `host_run`: (folder, compute, at_epoch) -> Ensemble.

    `at_epoch` maps an epoch to what happens in it, after its lines are written and before its checkpoint.
    """
    task = fit.Task(concat_model, host_run.keys, train_bags, val_bags, quick_config, quick_hyper)

    def run(
        path: Path, compute: Compute, at_epoch: dict[int, Callable[[], Any]] | None = None, seed: int = 0
    ) -> Ensemble:
        def act(info: EpochInfo) -> str:
            (at_epoch or {}).get(int(info.epoch.max()), lambda: None)()
            return losses_text(info)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit, "losses_text", act)
            with open_run(path, {**CONFIG, "options": {"seed": seed}}, {}, compute.resume) as folder:
                return fit.fit_recorded(folder, task, compute, Stopwatch())

    return run


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A recorded run that was not stopped."""

    path: Path
    ensemble: Ensemble

    @property
    def log(self) -> bytes:
        return (self.path / "metrics.jsonl").read_bytes()

    def assert_equals(self, path: Path, ensemble: Ensemble) -> None:
        """The other run has the same log, byte by byte, and the same members, bit by bit."""
        assert (path / "metrics.jsonl").read_bytes() == self.log
        assert_same_bits(ensemble, self.ensemble)
        assert_same_bits(load_run(path).members.params, self.ensemble.members.params)


@pytest.fixture(scope="module")
def recorded(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    path = tmp_path_factory.mktemp("recorded") / "run"
    return Recorded(path, record(path, ONE))


stop = partial(os.kill, os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """As if the process had been killed: nobody catches it."""


def die() -> None:
    raise Killed


def notes(path: Path) -> list[str]:
    return [line.split("  ", 1)[1] for line in (path / "log.txt").read_text().splitlines()]


# ---- the trace ----


def test_a_line_for_each_member_and_epoch_that_it_trained(recorded, host_run):
    """And recording changes no bit."""
    recorded.assert_equals(recorded.path, host_run.ensemble)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in recorded.log.splitlines()]
    ends = host_run.ensemble.epochs_run
    expected = [(epoch, i) for epoch in range(1, 7) for i in range(3) if epoch <= ends[i]]
    assert [(line["epoch"], line["member"]) for line in lines] == expected
    for line in lines:
        info = host_run.infos[line["epoch"] - 1]
        columns = {name: getattr(info, name) for name in fit.LOGGED_SCORES}
        for label, stats in (("positive", info.positive), ("negative", info.negative)):
            for name in ("entropy", "normalized_entropy", "effective_instances", "largest_weight"):
                columns[f"{label}_bags_{name}"] = getattr(stats, name)
        for name in ("hit_at_1", "positive_mass"):
            columns[f"positive_bags_{name}"] = getattr(info.positive, name)
        for name, values in columns.items():
            assert line[name] == values[line["member"]]
        assert "negative_bags_hit_at_1" not in line
    last = host_run.infos[-1]  # on the screen are the losses of the one member that still trains
    assert f"val loss {last.val_loss[1]:.4f}" in losses_text(last) and "training 1 of 3" in losses_text(last)


# ---- stopping and going on ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_is_as_if_not_stopped(number, record, recorded, tmp_path):
    """Twice stopped: in epochs 2 and 4."""
    ask = partial(os.kill, os.getpid(), number)
    with pytest.raises(Interrupted) as first:
        record(tmp_path, ONE, {2: ask})
    assert f"{tmp_path} keeps the log of 2 epochs" in str(first.value) and "--resume" in str(first.value)
    assert recorded.log.startswith((tmp_path / "metrics.jsonl").read_bytes())
    with pytest.raises(InputError, match="expected 0, with which the run was started"):
        record(tmp_path, GO_ON, seed=1)
    with pytest.raises(Interrupted, match="log of 4 epochs"):
        record(tmp_path, GO_ON, {4: ask})
    recorded.assert_equals(tmp_path, record(tmp_path, GO_ON, dict.fromkeys(range(1, 5), die)))
    assert notes(tmp_path) == [
        "started", "stopped after epoch 2", "resumed", "from the checkpoint of epoch 2", "stopped after epoch 4",
        "resumed", "from the checkpoint of epoch 4",
    ]  # fmt: skip


@pytest.mark.parametrize(("every", "at", "note"), [
    (1, 4, "from the checkpoint of epoch 3"),  # killed when the lines were written and the checkpoint was not
    (2, 4, "from the checkpoint of epoch 2"),
    (1, 1, "no checkpoint yet: from the start"),
    (1, 7, "from the checkpoint of epoch 6"),  # it came to its end, and nothing is left to train
])  # fmt: skip
def test_a_killed_run_goes_on(every, at, note, record, recorded, tmp_path):
    compute = dataclasses.replace(ONE, checkpoint_every=every)
    if at > 6:
        record(tmp_path, compute)
    else:
        with pytest.raises(Killed):
            record(tmp_path, compute, {at: die})
    assert recorded.log.startswith((tmp_path / "metrics.jsonl").read_bytes())
    done = int(note[-1]) if note[-1].isdigit() else 0
    recorded.assert_equals(tmp_path, record(tmp_path, dataclasses.replace(compute, resume=True), {done: die}))
    assert notes(tmp_path)[-1] == note


def test_a_stopped_run_keeps_where_it_stands(record, host_run, tmp_path):
    """Its best parameters, and a checkpoint, also in an epoch that has none otherwise."""
    with pytest.raises(Interrupted):
        record(tmp_path, dataclasses.replace(ONE, checkpoint_every=2), {3: stop})
    assert {path.name for path in (tmp_path / "progress").iterdir()} == {"000002", "000003"}
    assert_same_bits(load_run(tmp_path).members.params, host_run.states[2].best_params)


def test_without_checkpoints_there_is_nothing_to_go_on_from(record, recorded, tmp_path):
    with pytest.raises(Interrupted) as stopped:
        record(tmp_path, dataclasses.replace(ONE, checkpoint_every=0), {2: stop})
    assert "--resume" not in str(stopped.value) and not (tmp_path / "progress").exists()
    recorded.assert_equals(tmp_path, record(tmp_path, GO_ON, {6: stop}))  # in the last epoch it is too late to stop


def test_going_on_with_more_devices(record, recorded, tmp_path):
    """Equal up to rounding: the program for two devices is another one."""
    with pytest.raises(Interrupted):
        record(tmp_path, ONE, {3: stop})
    half = (tmp_path / "metrics.jsonl").read_bytes()
    with quick_programs():
        assert_close(record(tmp_path, dataclasses.replace(GO_ON, devices=2)), recorded.ensemble)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    assert log.startswith(half) and recorded.log.startswith(half)
    for line, expected in zip(log.splitlines(), recorded.log.splitlines(), strict=True):
        assert_close(json.loads(line), json.loads(expected))
