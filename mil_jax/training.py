"""Training one member: a step, an epoch, and a whole run as a function of a key.

`fit_epoch(state, …) -> (state, info)` is the unit: `fit` loops over it inside the compiled program, and a host loop
(see `ensemble`) calls it epoch by epoch, to show and save. Both stop each member on its own epoch and keep the
parameters of its best one. All that a member draws follows from its key: initialisation and order of bags.

Axes: B bags, K slots, C classes, E epochs; M bags of a batch.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from mil_jax import losses
from mil_jax.attention import AttentionStats, mean_stats, stats_of_bags
from mil_jax.bags import Bags, gather
from mil_jax.errors import InputError
from mil_jax.model import MIL, MILOutput, Params, Prediction, apply, drops, init_params

# Bags and slots evaluated at a time: memory stays bounded however many there are.
EVALUATION_BAGS, EVALUATION_SLOTS = 512, 2048

Augment = Callable[[Key[Array, ""], Float[Array, "K ..."]], Float[Array, "K ..."]]


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The choices that shape the compiled program of a run.

    Raises:
        InputError: a number below 1.
    """

    epochs: int = 20
    """The most epochs that a member trains for, E."""
    batch_size: int = 1
    """Bags per step."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""
    unroll: int = 1
    """Steps that a turn of the compiled loop holds: 2 save a CPU the copies of parameters from turn to turn (5 % of the
    example's time), take twice as long to compile, and change numbers by rounding."""
    widths: tuple[int, ...] | None = None
    """Numbers of slots that bags are cut to, ascending, the last one all (see `bags.bucket_widths`). It decides time
    alone, not numbers; `fit_ensemble` chooses them where not given, and `fit` cuts nothing."""
    augment: Augment | None = None
    """What a training step does to a bag's instances [K, ...] first, given a key; a function of a module."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "unroll"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(name, value, "use at least 1")
        widths = self.widths or (1,)
        if widths[0] < 1 or list(widths) != sorted(set(widths)):
            raise InputError("widths", self.widths, "use whole numbers from 1, ascending")


@no_type_check
@struct.dataclass
class Hyper:
    """Hyperparameters as arrays: changing them recompiles nothing, and members may differ in them.

    Attributes:
        learning_rate: [] of Adam.
        l2: [] factor of the sum of squares of the pooling's parameters V, U and w; None for a program without it.
        class_weight: [C] factor of the training loss of each class.
        weight_decay: [] factor of every parameter, added to its gradient (half the factor of an L2 penalty on all, as
            in PyTorch's Adam and the paper); None for a program without it.
    """

    learning_rate: jax.Array
    l2: jax.Array | None
    class_weight: jax.Array
    weight_decay: jax.Array | None = None


@no_type_check
@struct.dataclass
class TrainState:
    """What the next step needs.

    Attributes:
        params: the model's parameters.
        opt_state: Adam's moments.
        step: [] steps taken.
    """

    params: Any
    opt_state: Any
    step: jax.Array


@no_type_check
@struct.dataclass
class FitState:
    """One member between two epochs.

    Attributes:
        train: parameters and moments.
        best_params: parameters at the end of the best epoch (the initial ones before the first).
        best_loss: [] validation loss of the best epoch.
        best_epoch: [] the best epoch, from 1; 0 where no epoch has had a finite loss.
        stale: [] epochs since the best one.
        epoch: [] epochs trained.
        key: [2] data of the key that decides the order of bags, with the epoch folded in; raw, so that the record
            holds nothing but arrays that can be saved as they are.
    """

    train: TrainState
    best_params: Any
    best_loss: jax.Array
    best_epoch: jax.Array
    stale: jax.Array
    epoch: jax.Array
    key: jax.Array


@no_type_check
@struct.dataclass
class EpochInfo:
    """What a person wants to see of one epoch of one member; NaN where the member had stopped before.

    Attributes:
        epoch: [] the epoch, from 1; 0 where the member had stopped before.
        train_loss: [] mean over the epoch's steps, with class weights and L2, while the parameters change.
        train_accuracy: [] likewise.
        gradient_norm: [] norm of Adam's first moment at the end: the mean gradient of the last steps.
        val_loss: [] without class weights, with L2: early stopping looks at it.
        val_accuracy: [].
        positive: attention statistics, mean over the positive validation bags.
        negative: the same over the negative ones.
    """

    epoch: jax.Array
    train_loss: jax.Array
    train_accuracy: jax.Array
    gradient_norm: jax.Array
    val_loss: jax.Array
    val_accuracy: jax.Array
    positive: AttentionStats
    negative: AttentionStats


def make_hyper(
    train: Bags,
    classes: int = 2,
    *,
    learning_rate: float = 1e-3,
    l2: float | None = 0.01,
    class_weights: bool = True,
    weight_decay: float | None = None,
) -> Hyper:
    """Hyperparameters for a set of training bags; class weights are B / (C * count) or 1.

    Where each member has its own bags, [S, B], the class weights are [S, C].

    Raises:
        InputError: a value out of range, a label outside 0 … C - 1, or, with class weights, a missing class.
    """
    if not 0 < learning_rate < float("inf"):
        raise InputError("learning_rate", learning_rate, "use a positive number, such as 1e-3")
    if l2 is not None and not 0 <= l2 < float("inf"):
        raise InputError("l2", l2, "use 0 or more, such as 0.01")
    if weight_decay is not None and not 0 <= weight_decay < float("inf"):
        raise InputError("weight_decay", weight_decay, "use 0 or more, such as 1e-4")
    for label in (int(train.label.min()), int(train.label.max())):
        if not 0 <= label < classes:
            raise InputError("label", label, f"use 0 to {classes - 1}, or more classes")
    draws = train.label if train.label.ndim == 2 else train.label[None]
    weights = [losses.class_weights(label, classes) if class_weights else jnp.ones(classes) for label in draws]
    weight = jnp.stack(weights) if train.label.ndim == 2 else weights[0]
    strength = None if l2 is None else jnp.float32(l2)
    decay = None if weight_decay is None else jnp.float32(weight_decay)
    return Hyper(jnp.float32(learning_rate), strength, weight, decay)


# ---- one step ----


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


# The learning rate is applied by hand, because it is traced and may differ by member.
adam = scale_by_keras_adam()


def output_of(
    model: MIL,
    params: Params,
    bags: Bags,
    i: Int[Array, ""],
    width: int | None = None,
    augment: Augment | None = None,
    key: Key[Array, ""] | None = None,
) -> MILOutput:
    """The model's output for the bag at `i`; the gather is part of the compiled step.

    Args:
        model: the model.
        params: its parameters.
        bags: bags shared by the members, or of one member.
        i: [] which of them.
        width: slots to look at; all where not given.
        augment: what is done to the instances first, where there is a key.
        key: of augmentation and dropout; neither where not given.
    """
    instances, mask = gather(bags.pool, bags.rows[i, :width], bags.scaler), bags.mask[i, :width]
    if key is None:
        return apply(model, params, instances, mask)
    key_augment, key_dropout = jax.random.split(key)
    if augment is not None:
        instances = augment(key_augment, instances)
    return apply(model, params, instances, mask, key_dropout if drops(model) else None)


def batch_loss(
    params: Params,
    model: MIL,
    hyper: Hyper,
    bags: Bags,
    index: Int[Array, " M"],
    valid: Bool[Array, " M"],
    width: int | None = None,
    augment: Augment | None = None,
    keys: Key[Array, " M"] | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Mean over the valid bags of weight * cross-entropy, plus L2; and how many are classified right."""
    of_bag = lambda i, key=None: output_of(model, params, bags, i, width, augment, key).logits  # noqa: E731
    logits = jax.vmap(of_bag)(index) if keys is None else jax.vmap(of_bag)(index, keys)
    label = bags.label[index]
    weighted = hyper.class_weight[label] * jax.vmap(losses.cross_entropy)(logits, label)
    mean = jnp.sum(weighted, where=valid) / jnp.sum(valid)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == label, where=valid)
    return penalised(mean, params, hyper), correct


def penalised(loss: Float[Array, ""], params: Params, hyper: Hyper) -> Float[Array, ""]:
    """The loss with the L2 penalty, where there is one."""
    return loss if hyper.l2 is None else loss + hyper.l2 * losses.l2_penalty(params.get("pooling", {}))


def by_width(
    function: Callable[[int], Callable[..., Any]], widths: tuple[int, ...], size: Int[Array, ""], *args: Any
) -> Any:
    """`function(width)(*args)` for the least of the widths that is not below `size`; each is compiled once."""
    if len(widths) == 1:
        return function(widths[0])(*args)
    which = jnp.sum(size > jnp.array(widths[:-1]))
    return lax.switch(which, [function(width) for width in widths], *args)


def widths_of(widths: tuple[int, ...] | None, bags: Bags) -> tuple[int, ...]:
    """The widths that these bags are cut to: those of `widths` that cut anything, and at last all slots."""
    slots = bags.rows.shape[-1]
    return (*(width for width in widths or () if width < slots), slots)


def train_step(
    model: MIL,
    config: FitConfig,
    hyper: Hyper,
    bags: Bags,
    state: TrainState,
    index: Int[Array, " M"],
    valid: Bool[Array, " M"],
    key: Key[Array, ""] | None = None,
) -> tuple[TrainState, tuple[Float[Array, ""], Int[Array, ""]]]:
    """One step of Adam on the valid ones of the bags at `index`; info is (loss, number classified right).

    The bags are cut to the least width that holds the largest of them. `key` decides dropout and augmentation.
    """
    grad = jax.value_and_grad(batch_loss, has_aux=True)
    keys = None if key is None else jax.random.split(jax.random.fold_in(key, state.step), index.shape[0])

    def at(width: int) -> Callable[[Params], Any]:
        return lambda params: grad(params, model, hyper, bags, index, valid, width, config.augment, keys)

    size = jnp.sum(bags.mask[index], axis=-1).max()
    info, gradient = by_width(at, widths_of(config.widths, bags), size, state.params)
    if hyper.weight_decay is not None:
        gradient = jax.tree.map(lambda g, p: g + hyper.weight_decay * p, gradient, state.params)
    direction, opt_state = adam.update(gradient, state.opt_state)
    descend = lambda p, d: p - hyper.learning_rate * d  # noqa: E731
    params = jax.tree.map(descend, state.params, direction)
    return TrainState(params, opt_state, state.step + 1), info


# ---- one epoch ----


def epoch_order(
    key: Key[Array, ""], bag_count: int, batch_size: int
) -> tuple[Int[Array, "steps M"], Bool[Array, "steps M"]]:
    """A new order of all bags, cut into batches; the last batch is filled up with slots that are not valid."""
    steps = -(-bag_count // batch_size)
    order = jax.random.permutation(key, bag_count)
    slots = jnp.arange(steps * batch_size)
    index = order[slots % bag_count]
    shape = (steps, batch_size)
    return index.reshape(shape), (slots < bag_count).reshape(shape)


def train_epoch(
    model: MIL, config: FitConfig, hyper: Hyper, bags: Bags, state: TrainState, key: Key[Array, ""]
) -> tuple[TrainState, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Visits every bag once, in an order that `key` decides; info is (mean loss, accuracy)."""
    bag_count = bags.label.shape[0]
    noisy = config.augment is not None or drops(model)
    key_order, key_noise = jax.random.split(key) if noisy else (key, None)
    batches = epoch_order(key_order, bag_count, config.batch_size)
    step = lambda state, batch: train_step(model, config, hyper, bags, state, *batch, key=key_noise)  # noqa: E731
    state, (loss, correct) = lax.scan(step, state, batches, unroll=config.unroll)
    # Sums first, division last: a batch counts by its number of bags, so that the partial one is exact.
    size = jnp.sum(batches[1], axis=1)
    return state, (jnp.sum(loss * size) / bag_count, jnp.sum(correct) / bag_count)


def map_bags(function: Callable[[Array, int], Any], bags: Bags, widths: tuple[int, ...]) -> Any:
    """`function(i, width)` of every bag, a chunk of bags at a time, each chunk cut to its largest bag.

    Args:
        function: of a bag's index and the slots to look at; its result must not depend on the latter in shape.
        bags: B bags.
        widths: ascending, the last one all slots.

    Returns:
        The results, with a leading axis B.
    """
    count = bags.label.shape[0]
    chunk = max(1, min(EVALUATION_BAGS, EVALUATION_SLOTS // widths[-1]))
    if len(widths) == 1:
        return lax.map(lambda i: function(i, widths[0]), jnp.arange(count), batch_size=chunk)
    chunk = max(1, min(chunk, count // (4 * len(widths))))  # few bags, so that most chunks are narrow
    sizes = bags.mask.sum(axis=-1)
    order = jnp.argsort(sizes)  # so that the bags of a chunk are of like sizes
    padded = jnp.pad(order, (0, -count % chunk), mode="edge").reshape(-1, chunk)

    def of_chunk(index: Array) -> Any:
        at = lambda width: jax.vmap(lambda i: function(i, width))  # noqa: E731
        return by_width(at, widths, sizes[index].max(), index)

    results = lax.map(of_chunk, padded)
    place = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[place], results)


def outputs_of(
    model: MIL, params: Params, bags: Bags, widths: tuple[int, ...] | None = None
) -> tuple[Float[Array, "B C"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Logits, attention weights and scores of all bags, a chunk of bags at a time."""
    slots = bags.rows.shape[-1]

    def one(i: Array, width: int) -> tuple[Array, Array, Array]:
        out = output_of(model, params, bags, i, width)
        whole = lambda values: jnp.pad(values, (0, slots - width))  # noqa: E731
        return out.logits, whole(out.attention), whole(out.scores)

    return map_bags(one, bags, widths_of(widths, bags))


def predict(model: MIL, params: Params, bags: Bags, widths: tuple[int, ...] | None = None) -> Prediction:
    """Class probabilities [B, C], attention weights and scores [B, K] of one member."""
    logits, attention, scores = outputs_of(model, params, bags, widths)
    return Prediction(jax.nn.softmax(logits), attention, scores)


def validate(
    model: MIL, config: FitConfig, params: Params, hyper: Hyper, bags: Bags
) -> tuple[Float[Array, ""], Float[Array, ""], AttentionStats, AttentionStats]:
    """Loss (unweighted, with L2), accuracy, and mean attention statistics of positive and negative bags."""
    logits, attention, _ = outputs_of(model, params, bags, config.widths)
    loss = jax.vmap(losses.cross_entropy)(logits, bags.label)
    stats = stats_of_bags(attention, bags.mask, bags.instance_label)
    present = bags.label >= 0
    mean = lambda values: jnp.sum(values, where=present) / jnp.sum(present)  # noqa: E731
    accuracy = mean(jnp.argmax(logits, axis=-1) == bags.label)
    positive, negative = mean_stats(stats, bags.label > 0), mean_stats(stats, bags.label == 0)
    return penalised(mean(loss), params, hyper), accuracy, positive, negative


def init_fit(
    model: MIL,
    key: Key[Array, ""],
    bag_size: int,
    instance_shape: tuple[int, ...],
    order_key: Key[Array, ""] | None = None,
) -> FitState:
    """A member before its first epoch; `key` decides its parameters and its orders of bags.

    Where `order_key` is given, the orders are those of a member with that key, and `key` decides the parameters.
    """
    key_init, key_order = jax.random.split(key)
    if order_key is not None:
        _, key_order = jax.random.split(order_key)
    params = init_params(model, key_init, bag_size, instance_shape)
    zero = jnp.zeros((), jnp.int32)
    train = TrainState(params, adam.init(params), zero)
    raw = jax.random.key_data(key_order)
    return FitState(train, params, jnp.float32(jnp.inf), zero, zero, zero, raw)


def has_stopped(state: FitState, config: FitConfig) -> Bool[Array, "*members"]:
    """True for a member that has trained all epochs, or has gone `patience` epochs without a better loss."""
    return (state.epoch >= config.epochs) | (state.stale >= config.patience)


def fit_epoch(
    model: MIL, config: FitConfig, hyper: Hyper, train: Bags, val: Bags, state: FitState
) -> tuple[FitState, EpochInfo]:
    """Trains one epoch, validates, and keeps the parameters if no epoch before had a lower loss."""
    key_order = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.epoch)
    trained, (train_loss, train_accuracy) = train_epoch(model, config, hyper, train, state.train, key_order)
    val_loss, val_accuracy, positive, negative = validate(model, config, trained.params, hyper, val)
    epoch, better = state.epoch + 1, val_loss < state.best_loss
    keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
    advanced = FitState(
        train=trained,
        best_params=jax.tree.map(keep, trained.params, state.best_params),
        best_loss=keep(val_loss, state.best_loss),
        best_epoch=keep(epoch, state.best_epoch),
        stale=keep(0, state.stale + 1),
        epoch=epoch,
        key=state.key,
    )
    moment = jnp.sqrt(losses.l2_penalty(trained.opt_state.mu)) / (1 - 0.9**trained.step)
    return advanced, EpochInfo(epoch, train_loss, train_accuracy, moment, val_loss, val_accuracy, positive, negative)


def blank_info() -> EpochInfo:
    """The info of an epoch that a member did not train, because it had stopped: epoch 0, all else NaN."""
    nan = jnp.float32(jnp.nan)
    stats = AttentionStats(**{f.name: nan for f in dataclasses.fields(AttentionStats)})
    return EpochInfo(jnp.int32(0), nan, nan, nan, nan, nan, stats, stats)


def advance(
    model: MIL, config: FitConfig, hyper: Hyper, train: Bags, val: Bags, state: FitState
) -> tuple[FitState, EpochInfo]:
    """`fit_epoch` for a member that has not stopped; one that has stays as it is, bit by bit."""
    run = partial(fit_epoch, model, config, hyper, train, val)
    return lax.cond(has_stopped(state, config), lambda s: (s, blank_info()), run, state)


# ---- a whole run ----


def fit(
    model: MIL, config: FitConfig, hyper: Hyper, train: Bags, val: Bags, key: Key[Array, ""]
) -> tuple[FitState, EpochInfo]:
    """A whole training run as a pure function of a key: it can be jitted, vmapped and nested.

    Returns:
        The state at the end, with `best_params`, and the infos of all epochs [E], blank after the member stopped.
    """
    state = init_fit(model, key, train.rows.shape[-1], train.pool.shape[1:])
    blank = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (config.epochs,)), blank_info())

    def epoch(carry: tuple[FitState, EpochInfo]) -> tuple[FitState, EpochInfo]:
        state, infos = carry
        advanced, info = fit_epoch(model, config, hyper, train, val, state)
        return advanced, jax.tree.map(lambda all, one: all.at[state.epoch].set(one), infos, info)

    running = lambda carry: ~has_stopped(carry[0], config)  # noqa: E731
    return lax.while_loop(running, epoch, (state, blank))
