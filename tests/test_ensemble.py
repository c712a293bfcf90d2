"""Many members: each is what it would be alone, wherever and with whomever it runs; and what is no member."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    HostRun,
    assert_close,
    assert_parts,
    assert_same_bits,
    changed,
    draw_bags,
    hyper_of,
    member,
    message_of,
)

from mil_jax import ensemble
from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import Bags, fit_scaler, stack_bags, take
from mil_jax.ensemble import Ensemble, Execution, average, fit_ensemble, member_keys, predict, same_for_all
from mil_jax.epochs import init_members
from mil_jax.evaluation import evaluate_members, warnings_of
from mil_jax.losses import Classes
from mil_jax.model import MIL, ModelConfig, Prediction, build
from mil_jax.optimizer import Hyper, HyperConfig, make_hyper
from mil_jax.placement import Placement
from mil_jax.states import EpochInfo, FitConfig, MemberKeys
from mil_jax.training import predict_member

pytestmark = pytest.mark.usefixtures("quickly_compiled")
Fit = Callable[..., Ensemble]
ONE = Execution(Placement(1, 1))


def strangers(count: int) -> MemberKeys:
    """Keys of members that are not in `host_run`."""
    return member_keys(jax.random.key(99), count)


def join(*keys: MemberKeys) -> MemberKeys:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *keys)


@pytest.fixture(scope="module")
def programs(host_run: HostRun) -> Iterator[list[str]]:
    """The text of each program of an epoch; from here on nothing may move to a device while one runs."""
    run_epoch, texts = ensemble.run_epoch, []

    def lower(*arguments: Any) -> SimpleNamespace:
        compiled = run_epoch.lower(*arguments).compile()
        texts.append(compiled.as_text())

        def run(*args: Any) -> Any:
            placed = jax.device_put(args, compiled.input_shardings[0])
            with jax.transfer_guard("disallow"):
                return compiled(*placed)

        return SimpleNamespace(compile=lambda: run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "run_epoch", SimpleNamespace(lower=lower))
        yield texts


@pytest.fixture(scope="module")
def fit(programs: list[str], concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_hyper: Hyper) -> Fit:
    """`fit_ensemble` on the bags of `host_run`: (keys, config, placement) -> Ensemble."""

    def run(keys: MemberKeys, config: FitConfig, placement: Placement | None) -> Ensemble:
        return fit_ensemble(concat_model, keys, train_bags, val_bags, config, quick_hyper, Execution(placement))

    return run


@pytest.fixture(scope="module")
def two_devices(fit: Fit, programs: list[str], host_run: HostRun, quick_config: FitConfig) -> tuple[Ensemble, list]:
    """Three members on two devices: a stranger, the second of `host_run`, the stranger again; and what was compiled."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    stranger, before = strangers(1), len(programs)
    keys = join(stranger, member(host_run.keys, slice(1, 2)), stranger)
    return fit(keys, quick_config, Placement(2, 1)), programs[before:]


# ---- a member does not depend on others, nor on where it runs ----


def test_a_member_on_two_devices_among_strangers(two_devices, host_run):
    """Near, for a few epochs: a program for two devices rounds otherwise. Equal keys make equal members, bit by bit."""
    assert_close(member(two_devices[0], 1), member(host_run.ensemble, 1))
    assert_same_bits(member(two_devices[0], 0), member(two_devices[0], 2))


def test_other_members_change_no_bit(fit, two_devices, host_run, quick_config):
    """A member alone, placed by default, is what it is among strangers on two devices."""
    alone = fit(member(host_run.keys, slice(1, 2)), quick_config, None)
    assert_same_bits(member(alone, 0), member(two_devices[0], 1))


def test_some_together_on_two_devices(fit, host_run, quick_config):
    """Eight members, four on each of two devices, two at a time; nobody stops early here."""
    if jax.device_count() < 2:
        pytest.skip("needs two devices")
    patient = dataclasses.replace(quick_config, patience=quick_config.epochs)
    crowd = fit(join(host_run.keys, strangers(5)), patient, Placement(2, 2))
    assert crowd.epochs_run.tolist() == [6] * 8
    assert_close(member(crowd, 1), member(host_run.ensemble, 1))
    for i, end in enumerate(host_run.ensemble.epochs_run):
        assert_close(*(member(run.curves, np.s_[i, :end]) for run in (crowd, host_run.ensemble)))


def test_compaction_gives_up_slots_and_changes_nothing(fit, quick_config, host_run, monkeypatch):
    """Members that stop at 4, 6 and 3 of 6 epochs: three slots, then two, then one."""
    widths: list[int] = []
    choose = ensemble.choose_slots

    def spy(*args: Any) -> Any:
        slots = choose(*args)
        widths.append(0 if slots is None else len(slots))
        return slots

    monkeypatch.setattr(ensemble, "choose_slots", spy)
    assert_close(fit(host_run.keys, quick_config, Placement(1, 3)), host_run.ensemble)
    assert widths == [3, 3, 3, 2, 1, 1, 0]


def test_keys_of_members_do_not_depend_on_their_number(host_run):
    few, many = (jax.tree.map(jax.random.key_data, member_keys(jax.random.key(3), count)) for count in (3, 8))
    assert_same_bits(few, member(many, slice(3)))
    assert len(np.unique(np.concatenate([many.init, many.order]), axis=0)) == 16
    kernels = host_run.ensemble.members.params["head"]["kernel"]
    assert all(abs(kernels[i] - kernels[j]).max() > 0.1 for i in range(3) for j in range(i))
    assert "members = 0: expected a whole number from 1" in message_of(member_keys, jax.random.key(0), 0)


# ---- members with their own ----


@pytest.fixture(scope="module")
def own_draws(train_bags: Bags) -> list[Bags]:
    """Three draws from one pool."""
    turned = take(train_bags, np.arange(23)[::-1])
    mirrored = {name: getattr(train_bags, name)[:, ::-1] for name in ("rows", "instance_label")}
    return [train_bags, turned, changed(train_bags, **mirrored)]


def test_a_member_with_its_own_is_what_it_is_alone(concat_model, own_draws, val_bags, quick_config):
    """Three members of the same initial parameters, each with its own bags, hyperparameters and order."""
    keys = MemberKeys(same_for_all(member_keys(jax.random.key(5), 3).init), member_keys(jax.random.key(6), 3).order)
    l2, weights = np.array([0, 0.01, 0.1], np.float32), np.array([[1, 1], [0.5, 2], [1, 3]], np.float32)
    hyper = Hyper(np.array([0.02, 0.01, 0.03], np.float32), l2, weights)
    together = fit_ensemble(concat_model, keys, stack_bags(own_draws), val_bags, quick_config, hyper, ONE)
    assert len(np.unique(together.curves.train_loss[:, 0])) == 3
    for i, draw in enumerate(own_draws):
        key, own = member(keys, slice(i, i + 1)), member(hyper, i)
        alone = fit_ensemble(concat_model, key, draw, val_bags, quick_config, own, ONE)
        # A program that reads shared bags is another one than that which reads own bags: equal up to rounding.
        assert_close(member(together, i), member(alone, 0))


def test_same_key_and_other_order_start_alike(concat_model, train_bags):
    one, other = member_keys(jax.random.key(5), 2), member_keys(jax.random.key(6), 2)
    state = init_members(concat_model, MemberKeys(same_for_all(one.init), other.order), train_bags)
    assert_same_bits(member(state.train.params, 0), member(state.train.params, 1))
    assert (state.order_key[0] != state.order_key[1]).any()
    assert_same_bits(state.order_key, init_members(concat_model, other, train_bags).order_key)


def test_standardised_by_the_run_is_standardised_by_hand(sum_model, train_bags, val_bags):
    """Features far from 0; the members keep the scale, so that what they predict from is as it was."""
    keys, config = member_keys(jax.random.key(2), 2), FitConfig(epochs=3, batch_size=5)
    train, val = (Bags(50 + 20 * bags.pool, bags.view) for bags in (train_bags, val_bags))
    scaler = fit_scaler(train)
    by_hand = [Bags((bags.pool - scaler.mean) * scaler.factor, bags.view) for bags in (train, val)]
    given = HyperConfig(0.02, standardize=True)
    ours = fit_ensemble(sum_model, keys, train, val, config, make_hyper(train, given), ONE)
    plain = make_hyper(train, dataclasses.replace(given, standardize=False))
    theirs = fit_ensemble(sum_model, keys, by_hand[0], by_hand[1], config, plain, ONE)
    assert_close(ours.curves, theirs.curves, 1e-4)
    assert ours.members.scaler is not None and theirs.members.scaler is None
    assert_close(predict(sum_model, ours.members, val), predict(sum_model, theirs.members, by_hand[1]), 1e-4)


# ---- one program, and nothing leaves it ----


def test_one_compilation_for_the_whole_training(host_run):
    programs = [name for _, name in host_run.compiled]
    assert sum("run_epoch" in name for name in programs) == 1
    assert not any("epoch" in name for done, name in host_run.compiled if 0 < done < 6)
    assert not any(1 < done < 6 for done, _ in host_run.compiled), "after the first epoch nothing is left to compile"
    assert host_run.announcements == 1


def test_nothing_leaves_the_device_inside_an_epoch(two_devices):
    """The run went through under a guard against transfers, and its program calls nobody."""
    (program,) = two_devices[1]
    assert "while" in program, "an epoch is a loop inside the program"
    assert not re.search(r"callback|infeed|outfeed|\bsend\(|\brecv\(", program)
    assert not re.search(r"all-(reduce|gather|to-all)|collective", program), "members are alone"


def test_the_guard_notices_transfers():
    compiled = jax.jit(lambda x: x + 1).lower(np.ones(3, np.float32)).compile()
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed"):
        compiled(np.ones(3, np.float32))


# ---- what comes back ----


def test_curves_and_ends_are_consistent(host_run, quick_config):
    """Blank after the stop; the best epoch is that of the lowest validation loss."""
    run, curves = host_run.ensemble, host_run.ensemble.curves
    assert run.epochs_run.tolist() == [4, 6, 3] and run.best_epoch.tolist() == [2, 6, 1]
    for i, (end, best) in enumerate(zip(run.epochs_run, run.best_epoch, strict=True)):
        assert end == min(quick_config.epochs, best + quick_config.patience)
        assert curves.epoch[i].tolist() == [*range(1, end + 1), *[0] * (6 - end)]
        for name, curve in vars(curves).items():
            for values in jax.tree.leaves(curve) if name != "epoch" else ():
                assert np.isfinite(values[i, :end]).all() and np.isnan(values[i, end:]).all()
        assert run.best_loss[i] == np.nanmin(curves.val_loss[i]) == curves.val_loss[i, best - 1]


def test_on_epoch_sees_what_comes_back(host_run):
    seen = jax.tree.map(lambda *epochs: np.stack(epochs, axis=1), *host_run.infos)
    assert isinstance(seen, EpochInfo)
    assert_same_bits(seen, host_run.ensemble.curves)
    last = host_run.states[-1]
    assert_same_bits(last.best_params, host_run.ensemble.members.params)
    assert_same_bits((last.epoch, last.best_loss), (host_run.ensemble.epochs_run, host_run.ensemble.best_loss))


def test_curves_are_blank_where_all_stopped_early(host_run, quick_hyper, train_bags):
    """The loop ends with the last member, and the curves are still [S, E]."""
    config = FitConfig(epochs=9, batch_size=5, patience=2)
    whole = ensemble.collect(host_run.states[-1], host_run.infos, 3, config, quick_hyper, train_bags)
    assert {leaf.shape for leaf in jax.tree.leaves(whole.curves)} == {(3, 9)}
    assert whole.curves.epoch[:, 6:].tolist() == [[0] * 3] * 3
    assert np.isnan(whole.curves.val_loss[:, 6:]).all()
    assert_same_bits(whole.curves.val_loss[:, :6], host_run.ensemble.curves.val_loss)


# ---- prediction ----


@pytest.fixture(scope="module")
def predicted(concat_model: MIL, host_run: HostRun, val_bags: Bags) -> Prediction:
    """Three members on all devices, which do not divide them."""
    return predict(concat_model, host_run.ensemble.members, val_bags)


def test_predictions_are_those_of_each_member_alone_wherever_it_runs(predicted, concat_model, host_run, val_bags):
    assert predicted.probability.shape == (3, 17, 2) and predicted.attention.shape == (3, 17, 3)
    members = host_run.ensemble.members
    assert_close(predict(concat_model, members, val_bags, Placement(1, 1)), predicted)
    alone = jax.jit(lambda params, bags: predict_member(concat_model, params, None, bags))
    for i in range(3):
        assert_close(member(predicted, i), alone(member(members.params, i), val_bags))


def test_average_is_the_mean_over_members(predicted):
    mean = average(predicted)
    assert_close(mean, jax.tree.map(lambda leaf: np.float64(leaf).mean(axis=0), predicted))
    np.testing.assert_allclose(mean.attention.sum(axis=-1), 1, rtol=1e-5)
    for whole in (mean, member(predicted, 0)):
        assert "expected the predictions of members, [S, B, C]" in message_of(average, whole)


# ---- a member that diverges ----


def test_a_member_that_diverged_is_in_no_result(sum_model, diverged_run, val_bags):
    assert (diverged_run.best_epoch > 0).tolist() == [True, False, True]
    assert diverged_run.best_loss[1] == np.inf and diverged_run.epochs_run[1] == 2, "its patience"
    params = diverged_run.members.params
    assert np.isnan(jax.tree.leaves(member(params, 1))[0]).all()
    assert np.isfinite(np.concatenate([leaf[[0, 2]].ravel() for leaf in jax.tree.leaves(params)])).all()
    predicted = predict(sum_model, diverged_run.members, val_bags)
    assert np.isnan(predicted.probability[1]).all() and np.isfinite(predicted.probability[[0, 2]]).all()
    assert_same_bits(average(predicted), average(member(predicted, np.array([0, 2]))))
    assert np.isnan(average(member(predicted, np.array([1, 1]))).probability).all(), "nothing is left"
    judged = evaluate_members(predicted, val_bags)
    assert np.isnan(jax.tree.leaves(member(judged, 1))).all()
    assert np.isfinite(judged.bags.loss[np.array([0, 2])]).all()


def test_the_detector_fires_on_a_member_that_l2_has_flattened_and_on_no_healthy_one(concat_model, train_bags, val_bags):
    """Both trained alike, from the same initial parameters, but for a far too large L2."""
    keys = member(member_keys(jax.random.key(0), 1), np.array([0, 0]))
    hyper = dataclasses.replace(hyper_of(), l2=np.array([0.001, 100.0], np.float32))
    trained = fit_ensemble(concat_model, keys, train_bags, val_bags, FitConfig(30, 5, 30), hyper, ONE)
    predicted = predict(concat_model, trained.members, val_bags)
    healthy, flattened = warnings_of(predicted, val_bags)
    assert healthy == []
    assert len(flattened) == 1 and "uniform" in flattened[0] and "L2" in flattened[0]
    assert evaluate_members(predicted, val_bags).positive.hit_at_1[0] > 0.7


# ---- what cannot be trained, and what cannot be predicted from ----


def images(count: int, shape: tuple[int, ...]) -> Bags:
    rng = np.random.default_rng(0)
    return bags_from_arrays(list(rng.integers(0, 256, (count, 3, *shape), np.uint8)), np.arange(count) % 2)


@pytest.mark.parametrize(("change", "parts"), [
    (lambda given: {"train": stack_bags([given["train"]] * 2)}, ("train.rows", "bags of 3 members")),
    (lambda given: {"val": Bags(given["val"].pool[:, :4], given["val"].view)}, ("features [6], as in train",)),
    (lambda given: {"val": images(17, (6,))}, ("val = 'pixels [6]'", "features [6]")),
    (lambda given: {"val": changed(given["val"], label=given["val"].label + 1)}, ("label = 2", "0 to 1")),
    (lambda given: {"val": draw_of_size(2)}, ("val = 'bags of 2'", "bags of 3, as in train, or the head 'sum'")),
    (lambda given: {"train": changed(given["train"], rows=given["train"].rows + 9)}, ("train.rows", "of the pool")),
    (lambda given: {"val": Bags(np.nan * given["val"].pool, given["val"].view)}, ("val.pool", "finite values")),
    (lambda given: {"train": changed(given["train"], label=0 * given["train"].label)}, ("no bag of class 1",)),
    (lambda given: {"hyper": hyper_of(weights=(1, 1, 1))}, ("hyper.class_weight = 3", "each of 2 classes")),
    (lambda given: {"model": build(ModelConfig(), Classes(3)), "hyper": hyper_of()}, ("each of 3 classes",)),
    (lambda given: {"hyper": hyper_of(float("nan"))}, ("hyper.learning_rate", "expected finite values")),
    (lambda given: {"hyper": hyper_of(scaler=fit_scaler(of_features(4)))}, ("hyper.scaler", "features [6]")),
    (lambda given: {"model": build(ModelConfig(encoder="lenet"))}, ("instances = [6]", "encoder can take")),
])  # fmt: skip
def test_what_cannot_be_trained_is_refused(change, parts, concat_model, train_bags, val_bags):
    """Before anything is compiled."""
    given = {"model": concat_model, "keys": strangers(3), "train": train_bags, "val": val_bags}
    assert_parts(message_of(fit_ensemble, **(given | change(given))), *parts)


def draw_of_size(size: int) -> Bags:
    bags = draw_bags(2, 17)
    parts = {name: getattr(bags, name)[:, :size] for name in ("rows", "mask", "instance_label")}
    return changed(bags, **parts)


def of_features(count: int) -> Bags:
    return bags_from_arrays([np.eye(count)] * 2, [0, 1])


def test_empty_slots_need_the_sum_head(concat_model, ragged_bags, train_bags, host_run):
    keys, members = host_run.keys, host_run.ensemble.members
    for call, *bags in (
        (fit_ensemble, ragged_bags, train_bags),
        (fit_ensemble, train_bags, ragged_bags),
        (predict, ragged_bags),
    ):
        message = message_of(call, concat_model, members if call is predict else keys, *bags)
        assert_parts(message, "bags with empty slots", "full bags of one size, or the head 'sum'")


@pytest.mark.parametrize(("other", "parts"), [
    (images(2, (6,)), ("bags = 'pixels [6]'", "features [6], which the members were trained on")),
    (images(2, (2, 3)), ("bags = 'pixels [2, 3]'",)),
    (draw_of_size(2), ("bag_size = 2",)),
    (stack_bags([draw_bags(2, 4)] * 2), ("bags", "bags of 3 members, or shared ones")),
    (changed(draw_bags(2, 4), rows=draw_bags(2, 4).rows + 60), ("bags.rows", "rows of the pool, 0 to 59")),
])  # fmt: skip
def test_bags_that_the_members_were_not_made_for_are_refused(other, parts, concat_model, host_run):
    assert_parts(message_of(predict, concat_model, host_run.ensemble.members, other), *parts)


def test_parameters_of_another_model_are_refused(host_run, val_bags):
    ungated = build(ModelConfig(hidden=(8, 4), attention_units=5, pooling="attention"))
    assert_parts(message_of(predict, ungated, host_run.ensemble.members, val_bags), "members", "pooling/U/kernel")
