"""The points of ROC and precision-recall curves, on the host.

Axes: B bags · T distinct scores.
"""

import numpy as np
from jaxtyping import Array, Float, Int

from mil_jax.errors import InputError, as_array, checked


@checked
def roc_curve(
    score: Float[np.ndarray | Array, " B"], label: Int[np.ndarray | Array, " B"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """The points (false positive rate, true positive rate) of the ROC curve of positive bags (label 1) against others.

    One point per distinct score, from high to low, after the point (0, 0); the last is (1, 1). Labels of one class
    alone are an InputError.
    """
    true_positives, false_positives = _counts_down_the_scores(score, label)
    if true_positives[-1] == 0 or false_positives[-1] == 0:
        raise InputError("label", sorted(set(np.asarray(label).tolist())), "expected positive and negative bags")
    return false_positives / false_positives[-1], true_positives / true_positives[-1]


@checked
def precision_recall_curve(
    score: Float[np.ndarray | Array, " B"], label: Int[np.ndarray | Array, " B"]
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """The points (recall, precision) of the precision-recall curve of positive bags (label 1) against others.

    One point per distinct score, from high to low, so that recall rises to 1, after the point (0, 1). Labels without
    a positive one are an InputError.
    """
    true_positives, false_positives = _counts_down_the_scores(score, label)
    if true_positives[-1] == 0:
        raise InputError("label", sorted(set(np.asarray(label).tolist())), "expected positive bags")
    called = true_positives + false_positives
    return true_positives / true_positives[-1], np.append(1.0, true_positives[1:] / called[1:])


def _counts_down_the_scores(score: object, label: object) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives at each distinct score from high to low, after a zero."""
    values, positive = as_array("score", score), as_array("label", label) > 0
    if len(values) != len(positive) or np.isnan(values).any():
        raise InputError("score", f"{len(values)} values", f"expected {len(positive)} numbers, one for each label")
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.diff(values[order]) != 0, True)[: len(values)]
    true = np.append(0, np.cumsum(positive[order])[last_of_tie])
    false = np.append(0, np.cumsum(~positive[order])[last_of_tie])
    return true, false
