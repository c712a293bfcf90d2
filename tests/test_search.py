"""Settings tried side by side: each member as if it were alone, and features scaled as by hand."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_close, assert_parts, make_pool, member, message_of

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import Bags, InstanceKind, Scaler, fit_scaler, gather
from mil_jax.datasets.bag_sources import BagSource, cohort_of_arrays
from mil_jax.ensemble import Ensemble, Execution, fit_ensemble, predict
from mil_jax.folds import draw_plan
from mil_jax.losses import Classes
from mil_jax.model import ModelConfig, build
from mil_jax.optimizer import by_member
from mil_jax.placement import Placement
from mil_jax.protocols import split_bags
from mil_jax.run.cohort import CohortConfig, member_task
from mil_jax.run.experiment import draw_keys
from mil_jax.run.fit import Task
from mil_jax.run.outcome import Material
from mil_jax.run.search import Search, Setting, member_hyper, member_scaler
from mil_jax.training import FitConfig
from mil_jax.windows import Windows

pytestmark = pytest.mark.usefixtures("quickly_compiled")
FEATURES = InstanceKind((6,), False)
BAGS, FITS, MEMBERS = 16, 2, 2
CONFIG = CohortConfig(
    members=MEMBERS, model=ModelConfig(hidden=(8, 4), attention_units=5, head="sum"), fit=FitConfig(epochs=2)
)


@pytest.fixture(scope="module")
def material() -> Material:
    """16 bags of 3 instances, of which the odd ones hold an instance that lies apart."""
    instances, classes = make_pool(0)
    positive, negative = np.flatnonzero(classes == 1), np.flatnonzero(classes != 1)
    rows = [[*negative[2 * i : 2 * i + 2], (positive if i % 2 else negative)[-1 - i]] for i in range(BAGS)]
    bags, names = bags_from_arrays([instances[row] for row in rows], np.arange(BAGS) % 2), list(map(str, range(BAGS)))
    plan = draw_plan(jax.random.key(0), np.arange(BAGS) % 2, names, folds=FITS)
    return Material(bags, plan, names, names, ("negative", "positive"))


def task_of(material: Material, settings: list[Setting]) -> Task:
    """What `member_task` says of bags in memory."""
    bags, plan = material.bags, material.plan
    fits, splits = split_bags(bags, plan.folds).train, split_bags(bags, plan.repeated(len(settings), MEMBERS))
    hyper = member_hyper(fits, fit_scaler(fits), CONFIG.search, settings, MEMBERS, Classes())
    keys = member(draw_keys(dataclasses.replace(CONFIG, members=FITS * MEMBERS)), np.arange(FITS * MEMBERS))
    keys = member(keys, np.tile(np.arange(FITS * MEMBERS), len(settings)))
    return Task(build(CONFIG.model, Classes()), keys, splits.train, splits.val, CONFIG.fit, hyper)


def train(task: Task) -> Ensemble:
    execution = Execution(Placement(1, 1))
    return fit_ensemble(task.model, task.keys, task.train, task.val, task.config, task.hyper, execution)


SETTINGS = Search(learning_rates=(0.02, 0.05), weight_decays=(0.0, 1e-2)).settings(FEATURES)


def test_all_combinations_are_tried_and_pixels_stay_as_they_are() -> None:
    assert len(SETTINGS) == len(set(SETTINGS)) == 3 * 2 * 2
    assert {setting.scale for setting in SETTINGS} == {"standard", "raw", "l2"}
    assert str(SETTINGS[1]) == "standard, rate 0.02, decay 0.01"
    pixels = InstanceKind((2, 2), True)
    assert [setting.scale for setting in Search().settings(pixels)] == ["raw"]
    assert_parts(message_of(Search(scale="l2").settings, pixels), "scale = 'l2'", "expected raw for pixels [2, 2]")


@pytest.mark.parametrize(
    ("change", "part"),
    [({"learning_rates": ()}, "learning_rates"), ({"learning_rates": (0.0,)}, "0.0"),
     ({"weight_decays": (0.1, -1.0)}, "-1.0"), ({"weight_decays": ()}, "weight_decays"),
     ({"learning_rates": (0.1, 0.1)}, "different")],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused(change: dict, part: str) -> None:
    assert part in message_of(Search, **change)


def test_members_are_ordered_by_setting_fit_and_seed(material: Material) -> None:
    """Bags, keys and hyperparameters of one place belong together, and keys differ inside a setting alone."""
    bags, plan = material.bags, material.plan
    fits, repeated = (split_bags(bags, folds) for folds in (plan.folds, plan.repeated(len(SETTINGS), MEMBERS)))
    arrays = [np.asarray(bags.pool)[row] for row in np.asarray(bags.rows)]
    sources = [
        BagSource(name=name, group=name, label=i % 2, arrays=(arrays[i], None)) for i, name in enumerate(material.names)
    ]
    cohort = cohort_of_arrays("made up", sources, material.class_names)
    windows = Windows(cohort, int(cohort.sizes.sum()), jax.random.key(0))
    task = member_task(CONFIG, build(CONFIG.model, Classes()), windows, plan, SETTINGS)
    for given, expected in ((task.train, repeated.train), (task.val, repeated.val)):
        np.testing.assert_array_equal(given.label, expected.label)
    keys = np.asarray(jax.random.key_data(task.keys.init)).reshape(len(SETTINGS), FITS * MEMBERS, -1)
    assert (keys == keys[:1]).all() and len(np.unique(keys[0], axis=0)) == FITS * MEMBERS
    hyper: Any = by_member(task.hyper, task.members)
    scaler = fit_scaler(fits.train)
    for place, (setting, fit, _) in enumerate(np.ndindex(len(SETTINGS), FITS, MEMBERS)):
        tried = SETTINGS[setting]
        assert hyper.learning_rate[place] == np.float32(tried.learning_rate)
        assert hyper.weight_decay[place] == np.float32(tried.weight_decay)
        assert hyper.scaler.unit[place] == (tried.scale == "l2")
        mean = scaler.mean[fit] if tried.scale == "standard" else np.zeros(6)
        np.testing.assert_allclose(hyper.scaler.mean[place], mean, atol=1e-6)
        label = np.asarray(fits.train.label[fit])
        np.testing.assert_allclose(hyper.class_weight[place], Classes().weights(label[label >= 0]))


@pytest.fixture(scope="module")
def grid(material: Material) -> tuple[list[Setting], Ensemble]:
    """Three scales, the second with another rate."""
    settings = [Setting("standard", 0.02, 0.0), Setting("raw", 0.05, 0.01), Setting("l2", 0.02, 0.01)]
    return settings, train(task_of(material, settings))


def test_a_grid_gives_each_member_the_numbers_that_it_has_alone(grid, material: Material) -> None:
    settings, together = grid
    alone, count = train(task_of(material, settings[:1])), FITS * MEMBERS
    of_setting = member(together, slice(count))
    assert_close((alone.members.params, alone.best_loss), (of_setting.members.params, of_setting.best_loss), 1e-6)
    said = [
        predict(task_of(material, settings).model, e.members, material.bags).probability for e in (alone, of_setting)
    ]
    assert_close(said[0], said[1], 1e-6)


def test_length_one_is_what_features_normalised_by_hand_give(grid, material: Material) -> None:
    """Training and prediction on x / |x| as raw features are those of the setting."""
    settings, together = grid
    pool = np.asarray(material.bags.pool)
    by_hand = Bags(pool / np.linalg.norm(pool, axis=1, keepdims=True), material.bags.view)
    given = dataclasses.replace(material, bags=by_hand)
    alone = train(task_of(given, [dataclasses.replace(settings[2], scale="raw")]))
    of_setting = member(together, slice(2 * FITS * MEMBERS, None))
    assert_close((alone.members.params, alone.best_loss), (of_setting.members.params, of_setting.best_loss), 1e-5)


def test_gather_makes_lengths_one_where_asked_and_zero_stays_zero() -> None:
    pool, rows = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32), np.array([0, 1, 0])
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    for unit, first in ((1.0, [0.6, 0.8]), (0.0, [3.0, 4.0])):
        np.testing.assert_allclose(
            gather(pool, rows, Scaler(zeros, ones, np.array(unit, np.float32))), [first, [0, 0], first]
        )


def test_raw_features_alone_need_no_scaler(material: Material) -> None:
    fits = split_bags(material.bags, material.plan.folds).train
    assert member_scaler(fits, fit_scaler(fits), ["raw", "standard"]).unit is None
    hyper = member_hyper(fits, None, Search(class_weights=False), [Setting("raw", 0.1, 0.0)], 3, Classes())
    assert hyper.scaler is None and np.shape(hyper.class_weight) == (FITS * 3, 2)
    assert (np.asarray(hyper.class_weight) == 1).all()
