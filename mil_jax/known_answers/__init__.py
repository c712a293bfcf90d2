"""Problems with known answers, and whether a pooling finds them."""

from mil_jax.known_answers.digit_problems import DIGITS, PROBLEMS, digit_bags
from mil_jax.known_answers.judge import Answer, known_answers
from mil_jax.known_answers.raff_holt import TESTS, raff_holt
from mil_jax.known_answers.records import KnownBags, join
from mil_jax.known_answers.shifted_mean import ShiftedMean, bayes_auc, shifted_mean

__all__ = [
    "DIGITS", "PROBLEMS", "TESTS", "Answer", "KnownBags", "ShiftedMean", "bayes_auc", "digit_bags", "join",
    "known_answers", "raff_holt", "shifted_mean",
]  # fmt: skip
