"""What an ensemble is worth: subsets of members by two routes, disagreement against scikit-learn and by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import guesses, message_of
from sklearn import metrics as sk

from mil_jax import committee
from mil_jax.bags import Bags, View, take
from mil_jax.ensemble import average
from mil_jax.evaluation import evaluate, flatten
from mil_jax.model import Prediction

pytestmark = pytest.mark.usefixtures("quickly_compiled")
MEMBERS = 6


@pytest.fixture(scope="module")
def predicted(bags: Bags) -> Prediction:
    """Six members [S, B, …] that guess the label better than chance, with errors of their own."""
    return guesses(bags, MEMBERS, 2.0, -1.0)


def chosen(predicted: Prediction, subset: np.ndarray) -> Prediction:
    return jax.tree.map(lambda leaf: leaf[np.flatnonzero(subset)], predicted)


# ---- subsets ----


def test_random_subsets_have_their_size_and_are_fair() -> None:
    drawn = committee.random_subsets(jax.random.key(0), 8, 3, 4000)
    assert drawn.shape == (4000, 8) and (drawn.sum(axis=1) == 3).all()
    np.testing.assert_allclose(drawn.mean(axis=0), 3 / 8, atol=0.03)
    assert committee.random_subsets(jax.random.key(0), 5, 5, 2).all()


def test_disjoint_subsets_share_no_member() -> None:
    cut = committee.disjoint_subsets(7, 2)
    assert cut.shape == (3, 7) and (cut.sum(axis=1) == 2).all()
    assert (cut.sum(axis=0) == [1, 1, 1, 1, 1, 1, 0]).all()


def test_subsets_are_judged_as_ensembles_of_their_own(predicted: Prediction, bags: Bags) -> None:
    subsets = np.array([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]], bool)
    judged = flatten(committee.judge_subsets(predicted, bags, subsets))
    for i, subset in enumerate(subsets):
        alone = flatten(evaluate(average(chosen(predicted, subset)), bags))
        for name, value in alone.items():
            np.testing.assert_allclose(judged[name][i], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_member_that_diverged_spoils_only_the_ensembles_that_it_is_in(predicted: Prediction, bags: Bags) -> None:
    spoilt = jax.tree.map(lambda leaf: leaf.at[5].set(jnp.nan), predicted)
    loss = committee.judge_subsets(spoilt, bags, committee.disjoint_subsets(6, 2)).bags.loss
    np.testing.assert_array_equal(np.isnan(loss), [False, False, True])


@pytest.mark.parametrize("size", [0, 7])
def test_sizes_that_there_are_not(size: int, predicted: Prediction, bags: Bags) -> None:
    for call in (
        lambda: committee.random_subsets(jax.random.key(0), 6, size, 3),
        lambda: committee.disjoint_subsets(6, size),
        lambda: committee.gains(predicted, bags, jax.random.key(0), (size,)),
    ):
        assert message_of(call) == f"size = {size}: expected a whole number from 1 to 6"
    assert "subsets = 0" in message_of(committee.gains, predicted, bags, jax.random.key(0), subsets=0)
    whole = np.ones((1, 6), bool)
    for judge in (committee.disagreement, lambda said, of: committee.judge_subsets(said, of, whole)):
        assert "of these bags" in message_of(judge, predicted, take(bags, np.arange(20)))


# ---- gains ----


def test_sizes_are_powers_of_two_and_all() -> None:
    assert [committee.sizes_up_to(n) for n in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


def test_gains_go_from_the_mean_member_to_the_whole_ensemble(predicted: Prediction, bags: Bags) -> None:
    rows = {(row["size"], row["score"]): row for row in committee.gains(predicted, bags, jax.random.key(0))}
    assert {size for size, _ in rows} == {1, 2, 4, 6}
    whole = flatten(evaluate(average(predicted), bags))
    members = flatten(committee.judge_subsets(predicted, bags, np.eye(MEMBERS, dtype=bool)))
    for name in committee.GAINS:
        row = rows[MEMBERS, name]
        assert row["mean"] == pytest.approx(float(whole[name]), rel=1e-5)
        assert row["low"] == row["high"] == pytest.approx(row["mean"], rel=1e-6)
        alone = rows[1, name]
        assert (
            members[name].min() - 1e-6 <= alone["low"] <= alone["mean"] <= alone["high"] <= members[name].max() + 1e-6
        )
    # The loss is convex in the probabilities, so that averaging cannot harm it.
    losses = [rows[size, "bags_loss"]["mean"] for size in (1, 2, 4, 6)]
    assert losses == sorted(losses, reverse=True)


# ---- disagreement ----


def test_disagreement_equals_the_references_on_200_random_cases() -> None:
    rng = np.random.default_rng(1)
    probability = rng.dirichlet(np.ones(3), size=(5, 200))
    label = jnp.asarray(rng.integers(0, 3, 200))
    with jax.enable_x64(True):
        view = View(np.zeros((200, 1), int), np.ones((200, 1), bool), np.asarray(label), np.asarray(label)[:, None])
        bags = Bags(np.zeros((1, 1)), view)
        got = jax.device_get(committee.disagreement(Prediction(jnp.asarray(probability), jnp.ones((5, 200, 1))), bags))
    mean = probability.mean(axis=0)
    votes = [1 - np.bincount(column, minlength=3).max() / 5 for column in probability.argmax(axis=-1).T]
    information = scipy.stats.entropy(mean, axis=-1) - scipy.stats.entropy(probability, axis=-1).mean(axis=0)
    wrong = mean.argmax(axis=-1) != np.asarray(label)
    np.testing.assert_allclose(got.votes, votes, atol=1e-9)
    np.testing.assert_allclose(got.information, information, atol=1e-9)
    np.testing.assert_array_equal(got.wrong, wrong)
    for name, score in (("votes", votes), ("information", information), ("uncertainty", 1 - mean.max(axis=-1))):
        assert float(getattr(got, f"{name}_auc")) == pytest.approx(sk.roc_auc_score(wrong, score), abs=1e-9)


def test_disagreement_of_some_members_is_that_of_theirs_alone(predicted: Prediction, bags: Bags) -> None:
    subset = np.array([0, 1, 0, 1, 1, 0], bool)
    got, alone = (
        committee.disagreement(predicted, bags, subset),
        committee.disagreement(chosen(predicted, subset), bags),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, alone)


def test_places_without_a_bag_do_not_count(predicted: Prediction, bags: Bags) -> None:
    padded = Bags(bags.pool, dataclasses.replace(bags.view, label=np.where(np.arange(40) < 30, bags.label, -1)))
    got = committee.disagreement(predicted, padded)
    alone = committee.disagreement(
        Prediction(predicted.probability[:, :30], predicted.attention[:, :30]), take(bags, np.arange(30))
    )
    assert not np.any(got.wrong[30:])
    for name in ("votes_auc", "information_auc", "uncertainty_auc"):
        np.testing.assert_allclose(getattr(got, name), getattr(alone, name), rtol=1e-6)


def test_members_that_say_the_same_do_not_disagree(predicted: Prediction, bags: Bags) -> None:
    same = jax.tree.map(lambda leaf: leaf[jnp.zeros(4, int)], predicted)
    got = committee.disagreement(same, bags)
    assert not np.any(got.votes)
    np.testing.assert_allclose(got.information, 0, atol=1e-6)
    assert float(got.votes_auc) == 0.5


def test_without_an_error_there_is_nothing_to_predict(bags: Bags) -> None:
    sure = jax.nn.one_hot(bags.label, 2)
    got = committee.disagreement(Prediction(jnp.stack([sure, sure]), jnp.ones((2, 40, 3)) / 3), bags)
    assert not np.any(got.wrong) and np.isnan(got.votes_auc) and np.isnan(got.information_auc)
