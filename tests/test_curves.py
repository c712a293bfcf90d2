"""The points of curves: scikit-learn as reference."""

import numpy as np
import sklearn.metrics as sk
from conftest import message_of

from mil_jax.curves import precision_recall_curve, roc_curve


def test_curves_equal_scikit_learn():
    """200 cases of tied scores and labels of both classes."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        score = rng.integers(0, rng.choice([2, 5, 1000]), 24) / 1000
        label = np.append([0, 1], rng.random(22) < rng.choice([0.1, 0.5, 0.9])).astype(int)
        wanted = sk.roc_curve(label, score, drop_intermediate=False)[:2]
        np.testing.assert_allclose(roc_curve(score, label), wanted)
        precision, recall, _ = sk.precision_recall_curve(label, score)
        np.testing.assert_allclose(precision_recall_curve(score, label), (recall[::-1], precision[::-1]))


def test_curves_of_one_class_are_refused():
    for label in (np.array([1, 1]), np.array([], int)):
        assert "label" in message_of(roc_curve, np.arange(float(len(label))), label)
    assert "label = [0]" in message_of(precision_recall_curve, np.array([0.1]), np.array([0]))
