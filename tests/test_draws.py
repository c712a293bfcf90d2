"""Members with bags, hyperparameters or orders of their own; slots that are given up; runs that go on elsewhere."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import HostRun, assert_close, assert_same_bits, draw_bags

from mil_jax import ensemble
from mil_jax.bags import Bags, pad
from mil_jax.ensemble import Placement, Progress, fit_ensemble, member_keys, same_for_all, stack_bags
from mil_jax.errors import InputError
from mil_jax.evaluation import evaluate, evaluate_members
from mil_jax.model import MIL, ModelConfig, Prediction, build
from mil_jax.training import FitConfig, Hyper, make_hyper

ONE = Placement(1, 1)


def member(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


@pytest.fixture(scope="module")
def own_draws(train_bags: Bags) -> list[Bags]:
    """Three draws from one pool."""
    shuffled = [train_bags.rows, train_bags.rows[::-1], train_bags.rows[:, ::-1]]
    truth = [train_bags.instance_label, train_bags.instance_label[::-1], train_bags.instance_label[:, ::-1]]
    return [
        dataclasses.replace(train_bags, rows=rows, instance_label=labels, label=labels.max(axis=1))
        for rows, labels in zip(shuffled, truth, strict=True)
    ]


@pytest.fixture(scope="module")
def own_run(concat_model: MIL, own_draws: list[Bags], val_bags: Bags, quick_config: FitConfig) -> Any:
    """Three members, each with its own bags, hyperparameters and order, and what each is alone."""
    keys = same_for_all(member_keys(jax.random.key(5), 3))
    order_keys = member_keys(jax.random.key(6), 3)
    hyper = Hyper(jnp.array([0.02, 0.01, 0.03]), jnp.array([0.0, 0.01, 0.1]), jnp.array([[1.0, 1.0], [0.5, 2], [1, 3]]))
    together = fit_ensemble(
        concat_model, keys, stack_bags(own_draws), val_bags, quick_config, hyper, ONE, order_keys=order_keys
    )
    alone = [
        fit_ensemble(
            concat_model, keys[i : i + 1], own_draws[i], val_bags, quick_config, member(hyper, i), ONE,
            order_keys=order_keys[i : i + 1],
        )
        for i in range(3)
    ]  # fmt: skip
    return together, alone


@pytest.mark.parametrize("i", range(3))
def test_a_member_with_its_own_is_what_it_is_alone(own_run: Any, i: int) -> None:
    together, alone = own_run
    # A program that reads shared bags is another one than that which reads own bags: equal up to rounding.
    assert_close(member(together, i), member(alone[i], 0))


def test_what_differs_makes_members_differ(own_run: Any) -> None:
    losses = own_run[0].curves.train_loss[:, 0]
    assert len(np.unique(losses)) == 3


def test_same_key_and_other_order_start_alike(concat_model: MIL, train_bags: Bags, quick_config: FitConfig) -> None:
    keys, orders = same_for_all(member_keys(jax.random.key(5), 2)), member_keys(jax.random.key(6), 2)
    state = ensemble.start(concat_model, quick_config, keys, orders, train_bags, ONE)
    assert_same_bits(member(state.train.params, 0), member(state.train.params, 1))
    assert (state.key[0] != state.key[1]).any()
    # The order of a member is that of a member whose only key is its order key.
    whole = ensemble.start(concat_model, quick_config, orders, None, train_bags, ONE)
    assert_same_bits(state.key, whole.key)


def test_class_weights_are_of_each_members_own_bags(own_draws: list[Bags]) -> None:
    own = [own_draws[0], dataclasses.replace(own_draws[1], label=1 - own_draws[1].label)]
    weights = make_hyper(stack_bags(own)).class_weight
    assert_close(weights, jnp.stack([make_hyper(draw).class_weight for draw in own]))
    assert (weights[0] != weights[1]).all()


def test_draws_of_different_sizes_are_refused(own_draws: list[Bags]) -> None:
    with pytest.raises(InputError, match="pad them"):
        stack_bags([own_draws[0], pad(own_draws[1], 4)])


def test_members_are_judged_on_their_own_bags(own_draws: list[Bags]) -> None:
    shape = own_draws[0].rows.shape
    positive = np.random.default_rng(0).uniform(size=(3, shape[0])).astype(np.float32)
    attention = np.full((3, *shape), 1 / 3, np.float32)
    predicted = Prediction(np.stack([1 - positive, positive], axis=-1), attention)  # type: ignore[arg-type]
    together = evaluate_members(predicted, stack_bags(own_draws))
    for i, draw in enumerate(own_draws):
        one: Prediction = jax.tree.map(jnp.asarray, member(predicted, i))
        assert_close(member(together, i), evaluate(one, draw))


def test_compaction_gives_up_slots_and_changes_nothing(
    concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_hyper: Hyper, host_run: HostRun, monkeypatch: Any
) -> None:
    """Members that stop at 4, 6 and 3 of 6 epochs: three slots, then two, then one."""
    widths: list[int] = []
    choose = ensemble.choose_slots

    def spy(*args: Any) -> Any:
        slots = choose(*args)
        widths.append(0 if slots is None else len(slots))
        return slots

    monkeypatch.setattr(ensemble, "choose_slots", spy)
    config = FitConfig(epochs=6, batch_size=5, patience=2)
    together = fit_ensemble(concat_model, host_run.keys, train_bags, val_bags, config, quick_hyper, Placement(1, 3))
    assert widths == [3, 3, 3, 2, 1, 1, 0]
    assert_close(together, host_run.ensemble)


def test_a_run_goes_on_from_its_progress(
    concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_hyper: Hyper, quick_config: FitConfig, host_run: HostRun
) -> None:
    progress = Progress(host_run.states[1], tuple(host_run.infos[:2]))
    for devices in sorted({1, min(2, jax.device_count())}):
        rest = fit_ensemble(
            concat_model, host_run.keys, train_bags, val_bags, quick_config, quick_hyper, Placement(devices, 1),
            progress=progress,
        )  # fmt: skip
        same = assert_same_bits if devices == 1 else assert_close
        same(rest, host_run.ensemble)


def refused(concat_model: MIL, members: int, train: Bags, val: Bags) -> str:
    with pytest.raises(InputError) as error:
        fit_ensemble(concat_model, member_keys(jax.random.key(0), 3)[:members], train, val)
    return str(error.value)


def test_what_cannot_be_trained_is_refused(concat_model: MIL, train_bags: Bags, val_bags: Bags) -> None:
    assert "at least one member" in refused(concat_model, 0, train_bags, val_bags)
    assert "each of the 3 members" in refused(concat_model, 3, stack_bags([train_bags] * 2), val_bags)
    other_pool = dataclasses.replace(val_bags, pool=val_bags.pool[:, :4])
    assert "shape (6,)" in refused(concat_model, 1, train_bags, other_pool)
    three = dataclasses.replace(val_bags, label=val_bags.label + 1)
    assert "use 0 to 1" in refused(concat_model, 1, train_bags, three)
    pairs = dataclasses.replace(
        val_bags,
        **{name: getattr(val_bags, name)[:, :2] for name in ("rows", "mask", "instance_label")},
    )
    assert "bags of 3" in refused(concat_model, 1, train_bags, pairs)


def test_a_sum_head_takes_validation_bags_of_another_size(train_bags: Bags, quick_hyper: Hyper) -> None:
    model = build(ModelConfig(hidden=(4,), attention_units=3, head="sum"))
    config, keys = FitConfig(epochs=1), member_keys(jax.random.key(0), 1)
    exact, padded = draw_bags(2, 17), pad(draw_bags(2, 17), 5)
    first, second = (fit_ensemble(model, keys, train_bags, val, config, quick_hyper, ONE) for val in (exact, padded))
    assert_close(first.params, second.params)
    assert_close(first.best_loss, second.best_loss)
