"""Hyperparameters: what they are made of, by member, and what is refused; Adam itself is in test_training."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from conftest import assert_same_bits, changed, hyper_of, message_of

from mil_jax.bags import Bags, fit_scaler, stack_bags, take
from mil_jax.losses import Classes
from mil_jax.optimizer import HyperConfig, by_member, make_hyper

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", v) for v in (0.0, -1e-3, NAN, INF, 1e30)]
    + [(name, v) for name in ("l2", "weight_decay") for v in (-0.1, NAN, INF)],
)
def test_numbers_out_of_range_are_refused(field: str, value: float) -> None:
    assert message_of(HyperConfig, **{field: value}).startswith(f"{field} = {value!r}: expected a number, ")


def test_classes_are_weighed_by_their_rarity(train_bags: Bags) -> None:
    positive = int(train_bags.label.sum())
    hyper = make_hyper(train_bags, HyperConfig(0.5, 0.0))
    np.testing.assert_allclose(hyper.class_weight, [23 / (2 * (23 - positive)), 23 / (2 * positive)], rtol=1e-6)
    assert (hyper.learning_rate, hyper.l2, hyper.weight_decay, hyper.scaler) == (0.5, 0.0, None, None)
    turned = changed(train_bags, label=1 - train_bags.label)
    together = make_hyper(stack_bags([train_bags, turned]), HyperConfig(standardize=True))
    np.testing.assert_array_equal(together.class_weight, [hyper.class_weight, hyper.class_weight[::-1]])
    assert_same_bits(together.scaler, fit_scaler(stack_bags([train_bags, turned])))


def test_labels_that_do_not_fit_are_refused(train_bags: Bags) -> None:
    weighed, unweighed = HyperConfig(), HyperConfig(class_weights=False)
    for label, value in ((train_bags.label + 1, 2), (train_bags.label - 1, -1)):
        for config in (weighed, unweighed):
            message = message_of(make_hyper, changed(train_bags, label=label), config)
            assert message.startswith(f"label = {value}: expected 0 to 1")
    negative = changed(train_bags, label=0 * train_bags.label)
    assert "no bag of class 1 among 23" in message_of(make_hyper, negative)
    assert "no bag of class 2 among 23" in message_of(make_hyper, train_bags, weighed, Classes(3))
    assert make_hyper(negative, unweighed).class_weight.tolist() == [1, 1]


def test_what_is_shared_is_repeated(train_bags: Bags) -> None:
    draws = [take(train_bags, np.arange(i, i + 20)) for i in range(3)]
    own, shared = make_hyper(stack_bags(draws), HyperConfig(standardize=True)), hyper_of(0.02, None)
    spread: Any = by_member(shared, 3)
    assert spread.learning_rate.tolist() == [np.float32(0.02)] * 3 and spread.class_weight.shape == (3, 2)
    assert_same_bits(dataclasses.replace(by_member(own, 3), learning_rate=own.learning_rate, l2=own.l2), own)
    assert "expected (2,), or (2, 2) for 2 members" in message_of(by_member, own, 2)
