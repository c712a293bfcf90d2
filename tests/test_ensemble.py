"""Many members: each is what it would be alone, wherever and with whomever it runs."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FEW_OPTIMISATIONS, HostRun, assert_close, assert_same_bits, draw_bags

from mil_jax import ensemble
from mil_jax.bags import Bags
from mil_jax.ensemble import (
    Ensemble,
    Placement,
    average,
    default_placement,
    fit_ensemble,
    member_keys,
    predict_ensemble,
)
from mil_jax.errors import InputError
from mil_jax.model import MIL, Prediction
from mil_jax.training import EpochInfo, FitConfig, Hyper, predict

Fit = Callable[..., Ensemble]


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def strangers(count: int) -> jax.Array:
    """Keys of members that are not in `host_run`."""
    return member_keys(jax.random.key(99), count)


class GuardedEpoch:
    """`run_epoch`, but while its program runs, nothing may move from the host to a device.

    Attributes:
        run_epoch: the original.
        programs: the text of what was compiled.
    """

    def __init__(self) -> None:
        self.run_epoch: Any = ensemble.run_epoch
        self.programs: list[str] = []

    def lower(self, *args: Any) -> "GuardedEpoch":
        self.lowered = self.run_epoch.lower(*args)
        return self

    def compile(self) -> Callable[..., Any]:
        compiled = self.lowered.compile(FEW_OPTIMISATIONS)
        self.programs.append(compiled.as_text())

        def run(*args: Any) -> Any:
            placed = jax.device_put(args, compiled.input_shardings[0])
            with jax.transfer_guard("disallow"):
                return compiled(*placed)

        return run


@pytest.fixture(scope="module")
def guard(host_run: HostRun) -> Iterator[GuardedEpoch]:
    """From here on every epoch is guarded, and compiled with few optimisations."""
    guard = GuardedEpoch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "run_epoch", guard)
        yield guard


@pytest.fixture(scope="module")
def fit(
    guard: GuardedEpoch,
    concat_model: MIL,
    train_bags: Bags,
    val_bags: Bags,
    quick_hyper: Hyper,
) -> Callable[..., Ensemble]:
    """`fit_ensemble` on the bags of `host_run`: (keys, config, placement) -> Ensemble."""

    def run(keys: jax.Array, config: FitConfig, placement: Placement | None) -> Ensemble:
        return fit_ensemble(concat_model, keys, train_bags, val_bags, config, quick_hyper, placement)

    return run


@dataclasses.dataclass(frozen=True)
class TwoDevices:
    """A guarded run of `fit_ensemble` on two devices, and the text of what it compiled."""

    ensemble: Ensemble
    programs: list[str]


@pytest.fixture(scope="module")
def two_devices(fit: Fit, guard: GuardedEpoch, host_run: HostRun, quick_config: FitConfig) -> TwoDevices:
    """Three members on two devices: a stranger, the second of `host_run`, the stranger again."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    stranger, before = strangers(1), len(guard.programs)
    keys = jnp.concatenate([stranger, host_run.keys[1:2], stranger])
    run = fit(keys, quick_config, Placement(2, 1))
    return TwoDevices(run, guard.programs[before:])


# ---- a member does not depend on others, nor on where it runs ----


def test_on_two_devices_among_strangers(two_devices: TwoDevices, host_run: HostRun) -> None:
    """Up to rounding: the program for two devices is another one."""
    assert_close(member(two_devices.ensemble, 1), member(host_run.ensemble, 1))


def test_equal_keys_make_equal_members(two_devices: TwoDevices) -> None:
    """Bit by bit, though each is on another device."""
    assert_same_bits(member(two_devices.ensemble, 0), member(two_devices.ensemble, 2))


def test_different_keys_make_different_members(host_run: HostRun) -> None:
    kernels = np.asarray(host_run.ensemble.params["head"]["kernel"])
    for i in range(3):
        for j in range(i):
            assert abs(kernels[i] - kernels[j]).max() > 0.1


def test_other_members_change_no_bit(
    fit: Fit, two_devices: TwoDevices, host_run: HostRun, quick_config: FitConfig
) -> None:
    """A member alone, placed by default, is what it is among strangers on two devices."""
    alone = fit(host_run.keys[1:2], quick_config, None)
    assert_same_bits(member(alone, 0), member(two_devices.ensemble, 1))


def test_some_together_on_two_devices(fit: Fit, host_run: HostRun, quick_config: FitConfig) -> None:
    """Eight members, four on each of two devices, two at a time; nobody stops early here."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    keys = jnp.concatenate([host_run.keys, strangers(5)])
    patient = dataclasses.replace(quick_config, patience=quick_config.epochs)
    crowd = fit(keys, patient, Placement(2, 2))
    assert crowd.epochs_run.tolist() == [6] * 8
    assert_close(member(crowd, 1), member(host_run.ensemble, 1))
    for i, end in enumerate(host_run.ensemble.epochs_run):
        same_epochs = [
            jax.tree.map(lambda leaf, i=i, end=end: leaf[i, :end], curves)
            for curves in (crowd.curves, host_run.ensemble.curves)
        ]
        assert_close(*same_epochs)


def test_keys_of_members_do_not_depend_on_their_number() -> None:
    few, many = (member_keys(jax.random.key(3), count) for count in (3, 8))
    data = jax.random.key_data(many)
    assert_same_bits(jax.random.key_data(few), data[:3])
    assert len(np.unique(data, axis=0)) == 8


# ---- one program, and nothing leaves it ----


def test_one_compilation_for_the_whole_training(host_run: HostRun) -> None:
    programs = [name for _, name in host_run.compiled]
    assert sum("run_epoch" in name for name in programs) == 1
    between_epochs = [name for done, name in host_run.compiled if 0 < done < 6]
    late = [name for done, name in host_run.compiled if 1 < done < 6]
    assert not any("epoch" in name for name in between_epochs)
    assert late == [], "after the first epoch there is nothing left to compile"
    assert host_run.announcements == 1


def test_nothing_leaves_the_device_inside_an_epoch(two_devices: TwoDevices) -> None:
    """The run went through under a guard against transfers, and its program calls nobody."""
    assert len(two_devices.programs) == 1
    program = two_devices.programs[0]
    assert "while" in program, "an epoch is a loop inside the program"
    assert not re.search(r"callback|infeed|outfeed|\bsend\(|\brecv\(", program)
    assert not re.search(r"all-(reduce|gather|to-all)|collective", program), "members are alone"


def test_the_guard_notices_transfers() -> None:
    compiled = jax.jit(lambda x: x + 1).lower(np.ones(3, np.float32)).compile()
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed"):
        compiled(np.ones(3, np.float32))


# ---- what comes back ----


def test_curves_and_ends_are_consistent(host_run: HostRun, quick_config: FitConfig) -> None:
    """Blank after the stop; the best epoch is that of the lowest validation loss."""
    run, curves = host_run.ensemble, host_run.ensemble.curves
    assert run.epochs_run.tolist() == [4, 6, 3] and run.best_epoch.tolist() == [2, 6, 1]
    for i, (end, best) in enumerate(zip(run.epochs_run, run.best_epoch, strict=True)):
        assert end == min(quick_config.epochs, best + quick_config.patience)
        assert curves.epoch[i].tolist() == [*range(1, end + 1), *[0] * (6 - end)]
        for curve in jax.tree.leaves(dataclasses.replace(curves, epoch=None)):
            assert np.isfinite(curve[i, :end]).all() and np.isnan(curve[i, end:]).all()
        assert run.best_loss[i] == np.nanmin(curves.val_loss[i]) == curves.val_loss[i, best - 1]


def test_on_epoch_sees_what_comes_back(host_run: HostRun) -> None:
    seen = jax.tree.map(lambda *epochs: np.stack(epochs, axis=1), *host_run.infos)
    assert isinstance(seen, EpochInfo)
    assert_same_bits(seen, host_run.ensemble.curves)
    last = host_run.states[-1]
    assert_same_bits(last.best_params, host_run.ensemble.params)
    assert_same_bits((last.epoch, last.best_loss), (host_run.ensemble.epochs_run, host_run.ensemble.best_loss))


def test_curves_are_blank_where_all_stopped_early(monkeypatch: pytest.MonkeyPatch, host_run: HostRun) -> None:
    """The loop ends with the last member, and the curves are still [S, E]."""
    config = FitConfig(epochs=9, batch_size=5, patience=2)
    whole = ensemble.collect(host_run.states[-1], host_run.infos, 3, config)
    assert {leaf.shape for leaf in jax.tree.leaves(whole.curves)} == {(3, 9)}
    assert whole.curves.epoch[:, 6:].tolist() == [[0] * 3] * 3
    assert np.isnan(whole.curves.val_loss[:, 6:]).all()
    assert_same_bits(whole.curves.val_loss[:, :6], host_run.ensemble.curves.val_loss)


# ---- prediction ----


@pytest.fixture(scope="module")
def predicted(concat_model: MIL, host_run: HostRun, val_bags: Bags) -> Prediction:
    """Three members on all devices, which do not divide them."""
    return predict_ensemble(concat_model, host_run.ensemble.params, val_bags)


def test_predictions_are_those_of_each_member_alone(
    predicted: Prediction, concat_model: MIL, host_run: HostRun, val_bags: Bags
) -> None:
    assert predicted.probability.shape == (3, 17, 2) and predicted.attention.shape == (3, 17, 3)
    alone = jax.jit(lambda params, bags: predict(concat_model, params, bags))
    for i in range(3):
        params = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), host_run.ensemble.params)
        assert_close(member(predicted, i), alone(params, val_bags))


def test_placement_changes_no_prediction(
    predicted: Prediction, concat_model: MIL, host_run: HostRun, val_bags: Bags
) -> None:
    params = host_run.ensemble.params
    assert_close(predict_ensemble(concat_model, params, val_bags, Placement(1, 1)), predicted)


def test_average_is_the_mean_over_members(predicted: Prediction) -> None:
    mean = average(predicted)
    probability, attention = (np.float64(leaf) for leaf in (predicted.probability, predicted.attention))
    assert_close((mean.probability, mean.attention), (probability.mean(axis=0), attention.mean(axis=0)))
    assert predicted.scores is not None
    assert_close(mean.scores, np.float64(predicted.scores).mean(axis=0))
    np.testing.assert_allclose(mean.attention.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(mean.probability.sum(axis=-1), 1, rtol=1e-5)


# ---- placement, and bad input ----


def test_default_placement() -> None:
    count = jax.device_count()
    assert default_placement(99).devices == count
    assert default_placement(1).devices == min(2, count), "a program as for several members"
    together = 1 if jax.default_backend() == "cpu" else -(-99 // count)
    assert default_placement(99).together == together


def test_placement_refuses() -> None:
    count = jax.device_count()
    for devices in (0, -1, count + 1):
        with pytest.raises(InputError, match=f"devices = {devices}: .*{count}"):
            Placement(devices, 1)
    with pytest.raises(InputError, match="together = 0: use at least 1"):
        Placement(1, 0)


def test_concat_refuses_ragged_bags(concat_model: MIL, ragged_bags: Bags, train_bags: Bags, host_run: HostRun) -> None:
    needs_full = "bags with empty slots.*the concat head needs full bags.*'sum'"
    for train, val in ((ragged_bags, train_bags), (train_bags, ragged_bags)):
        with pytest.raises(InputError, match=needs_full):
            fit_ensemble(concat_model, host_run.keys, train, val)
    with pytest.raises(InputError, match=needs_full):
        predict_ensemble(concat_model, host_run.ensemble.params, ragged_bags)


def test_concat_refuses_bags_of_another_size(concat_model: MIL, host_run: HostRun) -> None:
    smaller = draw_bags(8, 4)
    smaller = dataclasses.replace(smaller, rows=smaller.rows[:, :2], mask=smaller.mask[:, :2])
    with pytest.raises(InputError, match="bag_size = 2: this model was made for 3"):
        predict_ensemble(concat_model, host_run.ensemble.params, smaller)


def test_a_missing_class_is_refused_before_anything_is_compiled(
    concat_model: MIL, train_bags: Bags, val_bags: Bags, host_run: HostRun
) -> None:
    negative = dataclasses.replace(train_bags, label=jnp.zeros_like(train_bags.label))
    with pytest.raises(InputError, match="no bag of class 1"):
        fit_ensemble(concat_model, host_run.keys, negative, val_bags)
