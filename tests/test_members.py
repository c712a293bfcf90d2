"""What fits together: bags, members and models; and what does not."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import assert_parts, message_of

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import Bags, InstanceKind, Scaler, pad
from mil_jax.losses import Classes
from mil_jax.members import Members, check_full, check_members
from mil_jax.model import ModelConfig, build, param_shapes

CONCAT, K = ModelConfig(hidden=(7, 5), attention_units=6), 4
SUM = dataclasses.replace(CONCAT, head="sum")
WIDTHS = dataclasses.replace(CONCAT, hidden=(7, 4))
UNGATED = dataclasses.replace(CONCAT, pooling="attention")


def bags_of(kind: InstanceKind, size: int = K) -> Bags:
    values = np.random.default_rng(0).integers(0, 255, (2, size, *kind.shape))
    return bags_from_arrays(list(values.astype(np.uint8 if kind.pixels else np.float32)), [0, 1])


FEATURES = InstanceKind((6,), pixels=False)


def members_of(config: ModelConfig, kind: InstanceKind = FEATURES, classes: int = 2) -> Members:
    shapes = param_shapes(build(config, Classes(classes)), K, kind.shape)
    return Members(jax.tree.map(lambda leaf: np.ones((3, *leaf.shape), np.float32), shapes), None, kind)


def test_bags_that_the_head_can_take():
    for config, bags in (
        (CONCAT, bags_of(FEATURES)),
        (SUM, bags_of(FEATURES, K + 1)),
        (SUM, pad(bags_of(FEATURES), K + 3)),
    ):
        check_full(build(config), bags)
        check_members(build(config), members_of(config), bags)
    assert "bags with empty slots" in message_of(check_full, build(CONCAT), pad(bags_of(FEATURES), K + 1))


@pytest.mark.parametrize(("config", "members", "bags", "parts"), [
    (CONCAT, members_of(CONCAT), bags_of(FEATURES, 2), ("bag_size = 2", "size that the members were trained on")),
    (CONCAT, members_of(CONCAT), pad(bags_of(FEATURES), 5), ("mask", "full bags of one size")),
    (CONCAT, members_of(CONCAT), bags_of(InstanceKind((6,), True)), ("'pixels [6]'", "expected features [6]")),
    (CONCAT, members_of(CONCAT), bags_of(InstanceKind((2, 3), False)), ("'features [2, 3]'", "features [6]")),
    (CONCAT, members_of(CONCAT), bags_of(InstanceKind((3,), False)), ("'features [3]'", "features [6]")),
    (UNGATED, members_of(CONCAT), bags_of(FEATURES), ("members", "pooling/U/kernel")),
    (CONCAT, members_of(UNGATED), bags_of(FEATURES), ("members", "pooling/U/kernel")),
    (CONCAT, members_of(WIDTHS), bags_of(FEATURES), ("members", "pooling/V/kernel")),
    (SUM, members_of(SUM, classes=3), bags_of(FEATURES), ("members", "head/kernel")),
])  # fmt: skip
def test_members_of_another_model_or_of_other_instances_are_refused(config, members, bags, parts):
    assert_parts(message_of(check_members, build(config), members, bags), *parts)


def test_members_know_how_many_they_are():
    scaler = Scaler(np.zeros((3, 6), np.float32), np.ones((3, 6), np.float32))
    assert members_of(CONCAT).count == dataclasses.replace(members_of(CONCAT), scaler=scaler).count == 3
