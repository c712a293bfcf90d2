"""Attention-based deep multiple instance learning in JAX and Flax.

What a user needs has a name here; `import mil_jax as mil` loads neither matplotlib nor TensorFlow Datasets nor Orbax.
"""

from typing import TYPE_CHECKING, Any

from mil_jax.arrays import bags_from_arrays, bags_from_set
from mil_jax.bags import Bags, take
from mil_jax.datasets import load
from mil_jax.ensemble import average, fit_ensemble, member_keys, predict
from mil_jax.errors import InputError
from mil_jax.evaluation import evaluate
from mil_jax.losses import Classes
from mil_jax.members import Members
from mil_jax.model import ModelConfig, Prediction, build
from mil_jax.optimizer import HyperConfig, make_hyper
from mil_jax.placement import use_all_cores
from mil_jax.run.config import Compute, Problem, RunConfig
from mil_jax.run.saved import load_run
from mil_jax.sampling import BagsConfig, Splits, sample_splits
from mil_jax.training import FitConfig, fit

if TYPE_CHECKING:
    from mil_jax import plots
    from mil_jax.run.experiment import run_bags

__all__ = [
    "Bags", "BagsConfig", "Classes", "Compute", "FitConfig", "HyperConfig", "InputError", "Members", "ModelConfig",
    "Prediction", "Problem", "RunConfig", "Splits", "average", "bags_from_arrays", "bags_from_set", "build",
    "evaluate", "fit", "fit_ensemble", "load", "load_run", "make_hyper", "member_keys", "plots", "predict", "run_bags",
    "sample_splits", "take", "use_all_cores",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What draws is loaded when it is first used."""
    if name == "run_bags":
        from mil_jax.run.experiment import run_bags

        return run_bags
    if name == "plots":
        import mil_jax.plots as plots  # `from mil_jax import plots` would ask this function again

        return plots
    raise AttributeError(f"module 'mil_jax' has no attribute {name!r}")
