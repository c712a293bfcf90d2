"""Folds of bags in groups: nobody is cut, everybody is judged once in a round, and nothing leaks into a hold-out."""

from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_parts, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.errors import InputError
from mil_jax.folds import Plan, check_taught, check_uncut, draw_plan, given_plan
from mil_jax.protocols import Folds

KEY = jax.random.key(0)


def present(part: np.ndarray) -> np.ndarray:
    return part[part >= 0]


def groups_of(numbers: np.ndarray) -> list[str]:
    return [f"patient{number}" for number in numbers]


def assert_sound(plan: Plan, label: np.ndarray, groups: list[str]) -> None:
    """What every plan promises, whatever the bags are."""
    bags, kept = np.arange(len(label)), np.setdiff1d(np.arange(len(label)), plan.holdout)
    check_uncut(plan.folds, groups)
    check_taught(plan.folds, label, list(map(str, range(label.max() + 1))))
    for parts in zip(*plan.folds, strict=True):
        assert sorted(np.concatenate([present(part) for part in parts])) == kept.tolist()
        assert all(len(present(part)) for part in parts)
    for number in range(plan.rounds):
        assert sorted(present(plan.folds.test[plan.round == number])) == kept.tolist()
    np.testing.assert_array_equal(plan.tested(), kept)
    of_holdout = {groups[bag] for bag in plan.holdout}
    assert not of_holdout & {groups[bag] for bag in kept} and set(bags) == {*kept, *plan.holdout}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_are_never_cut_and_every_bag_is_tested_once_in_a_round(data: st.DataObject) -> None:
    """For any groups, of one class or of several; what cannot be drawn is refused."""
    count = data.draw(st.integers(4, 40))
    number = np.array(data.draw(st.lists(st.integers(0, 15), min_size=count, max_size=count)))
    drawn = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    label = np.unique(drawn, return_inverse=True)[1]  # every class has a bag
    options: dict[str, Any] = {"folds": data.draw(st.integers(2, 4)), "repeats": data.draw(st.integers(1, 2))}
    options |= {"holdout": data.draw(st.sampled_from([0.0, 0.2])), "val_share": data.draw(st.sampled_from([0.1, 0.4]))}
    key = jax.random.key(data.draw(st.integers(0, 9)))
    try:
        plan = draw_plan(key, label, groups_of(number), **options)
    except InputError as error:
        assert error.argument in ("folds", "label", "groups", "holdout")
        return
    assert plan.rounds == options["repeats"] and plan.fits == options["folds"] * options["repeats"]
    assert (len(plan.holdout) > 0) == (options["holdout"] > 0)
    assert_sound(plan, label, groups_of(number))


def test_parts_are_stratified_and_of_about_the_shares_asked_for() -> None:
    """100 patients of two slides, a fifth of them positive: every part has about a fifth."""
    number = np.arange(200) // 2
    label = (number % 5 == 0).astype(int)
    plan = draw_plan(KEY, label, groups_of(number), folds=5, repeats=2, val_share=0.25, holdout=0.2)
    assert_sound(plan, label, groups_of(number))
    assert len(plan.holdout) == 40 and label[plan.holdout].mean() == pytest.approx(0.2)
    for part, count in zip(plan.folds, (96, 32, 32), strict=True):
        for bags in map(present, part):
            assert abs(len(bags) - count) <= 4 and label[bags].mean() == pytest.approx(0.2, abs=0.06)


def test_the_key_decides_the_draw_and_rounds_differ() -> None:
    label, groups = np.arange(40) % 2, groups_of(np.arange(40))
    one, same, other = (draw_plan(jax.random.key(i), label, groups, repeats=2, holdout=0.1) for i in (0, 0, 1))
    for left, right in ((one.folds, same.folds), (one.holdout, same.holdout), (one.round, same.round)):
        jax.tree.map(np.testing.assert_array_equal, left, right)
    assert not np.array_equal(one.folds.test, other.folds.test)
    rounds = [{frozenset(present(test)) for test in one.folds.test[one.round == i]} for i in (0, 1)]
    assert not rounds[0] & rounds[1]


def test_members_have_the_bags_of_their_fit_setting_by_setting() -> None:
    plan = draw_plan(KEY, np.arange(12) % 2, groups_of(np.arange(12)), folds=3)
    repeated = plan.repeated(2, 4)
    for place, (_, fit, _) in enumerate(np.ndindex(2, 3, 4)):
        for of_members, of_fits in zip(repeated, plan.folds, strict=True):
            np.testing.assert_array_equal(of_members[place], of_fits[fit])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"folds": 4}, ("folds = 4", "at most 3, the groups with a bag of class 0")),
        ({"folds": 1}, ("folds = 1", "from 2")),
        ({"repeats": 0}, ("repeats = 0", "from 1")),
        ({"val_share": 0.0}, ("val_share = 0.0", "more than 0")),
        ({"val_share": 0.6}, ("val_share = 0.6", "at most 0.5")),
        ({"holdout": -0.1}, ("holdout = -0.1", "at least 0")),
        ({"holdout": float("nan")}, ("holdout = nan",)),
        ({"groups": ["a"]}, ("groups = 1", "the group of each of 12 bags")),
        ({"label": np.zeros(12, int)}, ("label = [0]", "two classes or more")),
        ({"key": 1}, ("key", "a key of jax.random.key")),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict, parts: tuple[str, ...]) -> None:
    """Twelve bags of six patients, of whom three are positive."""
    number = np.arange(12) // 2
    given_options = {"key": KEY, "label": number % 2, "groups": groups_of(number), "folds": 3} | change
    assert_parts(message_of(draw_plan, **given_options), *parts)


def folds_of(*fits: tuple[list[int], list[int], list[int]]) -> Folds:
    """Given folds; -1 where a part is short."""
    longest = max(len(part) for fit in fits for part in fit)
    pad = lambda part: part + [-1] * (longest - len(part))  # noqa: E731
    return Folds(*(np.array([pad(fit[i]) for fit in fits]) for i in range(3)))


def test_given_folds_are_one_round_where_no_bag_is_tested_twice() -> None:
    disjoint = given_plan(folds_of(([0, 1], [2], [3]), ([2, 3], [0], [1, 4])))
    overlapping = given_plan(folds_of(([0, 1], [2], [3, 4]), ([0, 2], [1], [4])))
    assert disjoint.round.tolist() == [0, 0] and (disjoint.rounds, disjoint.fits) == (1, 2)
    assert disjoint.tested().tolist() == [1, 3, 4] and not len(disjoint.holdout)
    assert overlapping.round.tolist() == [0, 1] and overlapping.rounds == 2


def test_a_given_split_that_cuts_a_group_or_teaches_no_class_is_named() -> None:
    folds, groups = folds_of(([0, 1], [2], [3]), ([0, 3], [1], [2])), ["a", "b", "c", "b"]
    assert_parts(message_of(check_uncut, folds, groups), "group = 'b'", "split 0", "some in train and some in test")
    check_uncut(folds, ["a", "b", "c", "d"])
    label, names = np.array([0, 1, 0, 0]), ("benign", "tumour")
    assert_parts(message_of(check_taught, folds, label, names), "splits = 1", "none of 'tumour'")
    check_taught(folds, np.array([0, 1, 0, 1]), names)
