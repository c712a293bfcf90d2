"""How parameters descend: hyperparameters as arrays, and Adam as Keras has it, as one chain of Optax.

Axes: B bags, C classes, F features, S members.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mil_jax.bags import ABSENT, Bags, Scaler, Values, fit_scaler
from mil_jax.errors import InputError, check_number, checked
from mil_jax.losses import Classes, l2_penalty
from mil_jax.record import record


@dataclasses.dataclass(frozen=True)
class HyperConfig:
    """The numbers that a member trains with; the defaults are the Keras example's."""

    learning_rate: float = 1e-3
    """Of Adam."""
    l2: float | None = 0.01
    """Factor of the sum of squares of the attention's parameters; none for a program without it."""
    weight_decay: float | None = None
    """Factor of every parameter in its gradient, as in PyTorch's Adam; none for a program without it."""
    class_weights: bool = True
    """Weigh the training loss by total / (2 * count) of the bag's class."""
    standardize: bool = False
    """Shift and scale each feature by its mean and standard deviation over the member's training bags."""

    def __post_init__(self) -> None:
        check_number("learning_rate", self.learning_rate, 0, 1e3, ends="(]")
        for name in ("l2", "weight_decay"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0)


@record
class Hyper:
    """Hyperparameters as arrays: changing them recompiles nothing; each is shared or has a leading axis S."""

    learning_rate: Float[Values, "..."]
    """Of Adam."""
    l2: Float[Values, "..."] | None
    """Factor of the sum of squares of the attention's V, U and w; None for a program without it."""
    class_weight: Float[Values, "... C"]
    """Factor of the training loss of each class."""
    weight_decay: Float[Values, "..."] | None = None
    """Factor of every parameter, added to its gradient (half the factor of an L2 penalty on all, as in PyTorch's Adam
    and the paper); None for a program without it."""
    scaler: Scaler | None = None
    """How the features that a member sees are standardised; None for as they are."""


@checked
def make_hyper(train: Bags, config: HyperConfig = HyperConfig(), target: Classes = Classes()) -> Hyper:
    """Hyperparameters for a set of training bags; class weights are B / (C * count) or 1.

    Where each member has bags of its own, the class weights are [S, C], and the scaler's arrays [S, F].

    Raises:
        InputError: a label outside 0 … C - 1, with class weights a missing class, or no features to standardise.
    """
    target.check(train.label, least=ABSENT if train.by_member else 0)
    label = np.asarray(train.label)
    draws = label if train.by_member else label[None]
    ones = jnp.ones(target.count)
    weights = [target.weights(draw[draw != ABSENT]) if config.class_weights else ones for draw in draws]
    return Hyper(
        learning_rate=jnp.float32(config.learning_rate),
        l2=None if config.l2 is None else jnp.float32(config.l2),
        class_weight=jnp.stack(weights) if train.by_member else weights[0],
        weight_decay=None if config.weight_decay is None else jnp.float32(config.weight_decay),
        scaler=fit_scaler(train) if config.standardize else None,
    )


def by_member(hyper: Hyper, members: int) -> Hyper:
    """The same with a leading axis S on every array, what is shared repeated; an InputError for another S."""

    def spread(path: Any, leaf: Any) -> np.ndarray:
        shape = np.shape(leaf)
        shared = shape[len(shape) - (path[-1].name in ("class_weight", "mean", "factor")) :]
        if shape not in (shared, (members, *shared)):
            raise InputError(path[0].name, shape, f"expected {shared}, or {(members, *shared)} for {members} members")
        return np.broadcast_to(leaf, (members, *shared))

    return jax.tree_util.tree_map_with_path(spread, hyper)


def scale_by_keras_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7) -> optax.GradientTransformation:
    """Adam's direction (Kingma and Ba 2015, the order of computation before section 2.1), as Keras computes it.

    sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps), where Optax corrects v before it adds epsilon: Keras' epsilon
    weighs more in the first steps. With one division per parameter instead of three it is also faster on a CPU.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        direction = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """Weight decay where there is any, Adam, and the learning rate."""
    # All chains have states of one structure, so that a state can be made before the hyperparameters are known.
    rate, weight_decay = jnp.asarray(hyper.learning_rate), hyper.weight_decay
    decay = optax.identity() if weight_decay is None else optax.add_decayed_weights(jnp.asarray(weight_decay))
    return optax.chain(decay, scale_by_keras_adam(), optax.scale_by_learning_rate(rate))


def mean_gradient_norm(opt_state: Any) -> Float[Array, ""]:
    """The norm of Adam's first moment, corrected for its start at 0: the mean gradient of the last steps."""
    moment: Any = optax.tree_utils.tree_get(opt_state, "mu")
    count: Any = optax.tree_utils.tree_get(opt_state, "count")
    return jnp.sqrt(l2_penalty(moment)) / (1 - 0.9**count)
