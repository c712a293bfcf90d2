"""Does a pooling find what is known? Training on the problems, what comes out as rows, and the verdicts.

`known_answers` asks a module of anyone's own, in a minute; `experiments/known_answers.py` asks all poolings, with more
seeds and problems.

Axes: S seeds, G groups, B bags, K slots per bag.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mil_jax.encoders import MLPEncoder
from mil_jax.ensemble import fit_ensemble, member_keys, predict
from mil_jax.errors import check_whole, checked
from mil_jax.evaluation import evaluate_members
from mil_jax.known_answers.explained import evidence_found, weight_on
from mil_jax.known_answers.sets import Counts, Group, Sets, by_group, raff_holt_sets, shifted_mean_sets
from mil_jax.known_answers.shifted_mean import ShiftedMean
from mil_jax.known_answers.verdicts import Verdict, judge_seeds
from mil_jax.losses import Classes
from mil_jax.members import Members
from mil_jax.model import MIL, Prediction
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.placement import Placement
from mil_jax.states import FitConfig, MemberKeys

HYPER = HyperConfig(learning_rate=1e-3, l2=None, weight_decay=1e-4, class_weights=False)
FIT = FitConfig(epochs=30, batch_size=4, patience=8)
COUNTS = Counts(200, 100, 400)


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What S seeds of a pooling made of one problem."""

    group: Group
    """The problem, and what is asked for."""
    verdict: Verdict
    scores: dict[str, Float[np.ndarray, " S"]]
    """Of each seed: `train_auc`, `test_auc`; of the attention and of the instances' scores on test bags `…_auroc`,
    `…_auprc`, `…_two_sided` against the evidence; and `poison_weight`, the attention on poison where there is some."""

    def __str__(self) -> str:
        """One line, with the share of seeds that pass, its interval, and the mean AUCs."""
        share, auc = self.verdict, {name: self.scores[f"{name}_auc"].mean() for name in ("train", "test")}
        return (
            f"{self.group.problem}: {share.word} (passed by {share.passes:.0%} of {len(self.scores['test_auc'])} seeds "
            f"[{share.low:.0%}, {share.high:.0%}]; AUC {auc['train']:.3f} in training, {auc['test']:.3f} in the test)"
        )


def keys_of_seeds(key: Key[Array, ""], seeds: int, groups: int) -> MemberKeys:
    """Keys of S * G members: a seed has the same ones in all groups."""
    return jax.tree.map(lambda keys: jnp.repeat(keys, groups), member_keys(key, seeds))


def answers_of(mil: MIL, members: Members, sets: Sets, placement: Placement | None = None) -> list[Answer]:
    """Judges trained members on their training bags and on the test bags: an answer for each group."""
    known, test = sets.test, predict(mil, members, sets.test.bags, placement)
    on_train = predict(mil, members, sets.train.bags, placement)
    scores = {
        "train_auc": np.asarray(evaluate_members(on_train, sets.train.bags).bags.auc),
        "test_auc": np.asarray(evaluate_members(test, known.bags).bags.auc),
        **explanation_scores(test, sets),
    }
    of_groups = {name: by_group(values, len(sets.groups)) for name, values in scores.items()}
    answers = []
    for number, group in enumerate(sets.groups):
        own = {name: values[number] for name, values in of_groups.items()}
        verdict = judge_seeds(own["train_auc"], own["test_auc"], group.asked, group.trap)
        answers.append(Answer(group, verdict, own))
    return answers


def explanation_scores(predicted: Prediction, sets: Sets) -> dict[str, Float[np.ndarray, " SG"]]:
    """How well the attention and the scores of test instances agree with the evidence, and the weight on the poison."""
    known, columns = sets.test, {}
    for name in ("attention", "scores"):
        found = evidence_found(getattr(predicted, name), known.sign, known.bags.mask)
        columns |= {f"{name}_{field}": np.asarray(value) for field, value in vars(found).items()}
    poison = np.asarray(known.kind) == (-2 if sets.poison is None else sets.poison)
    return columns | {"poison_weight": weight_on(np.asarray(predicted.attention), poison)}


@checked
def known_answers(pooling: nn.Module, key: Key[Array, ""] | None = None, *, seeds: int = 8) -> list[Answer]:
    """Asks a pooling: the three tests of Raff and Holt, and a small shifted mean.

    It stands in a model with two dense layers before it and a linear classifier with one output; nothing about it is
    tuned. The answers are `str`-able, a line each.

    Args:
        pooling: a Flax module `(embeddings [K, D], mask [K]) -> Pooled`.
        key: decides the bags, the initial parameters and the order of training; `jax.random.key(0)` where not given.
        seeds: S; with fewer than four no share can be told from one half.

    Raises:
        InputError: no seed.
    """
    check_whole("seeds", seeds, 1)
    key = jax.random.key(0) if key is None else key
    mil = MIL(MLPEncoder((64, 32)), pooling, Classes(2), sigmoid=True)
    key_tests, key_shift, key_members = jax.random.split(key, 3)
    law = ShiftedMean(delta=3.0, features=16)
    sets = (
        raff_holt_sets(key_tests, seeds, COUNTS),
        shifted_mean_sets(key_shift, seeds, law, (COUNTS.train,), COUNTS.val, COUNTS.test),
    )
    return [answer for part in sets for answer in answers_of(mil, fit_sets(mil, part, key_members), part)]


def fit_sets(mil: MIL, sets: Sets, key: Key[Array, ""]) -> Members:
    """Trains a member for each seed and group, all in one program."""
    groups = len(sets.groups)
    keys = keys_of_seeds(key, sets.train.bags.label.shape[0] // groups, groups)
    hyper = make_hyper(sets.train.bags, HYPER, mil.target)
    return fit_ensemble(mil, keys, sets.train.bags, sets.val.bags, FIT, hyper).members


def row_of(answer: Answer) -> dict[str, Any]:
    """An answer as a record of plain values: the problem, the verdict, and the means over seeds of all scores."""
    group, verdict = (dataclasses.asdict(part) for part in (answer.group, answer.verdict))
    verdict["pass_rate"], verdict["verdict"] = verdict.pop("passes"), verdict.pop("word")
    return group | verdict | {name: float(values.mean()) for name, values in answer.scores.items()}
