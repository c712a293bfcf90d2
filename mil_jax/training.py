"""Training one member: a step, an epoch, and a whole run as a function of a key.

`fit_epoch(state, …) -> (state, info)` is the unit: `fit` loops over it inside the compiled program, and a host loop
(see `ensemble`) calls it epoch by epoch, to show and save. Both stop each member on its own epoch and keep the
parameters of its best one. All that a member draws follows from its keys: initialisation and order of bags.

Axes: B bags, K slots, C classes, E epochs, S members; M bags of a batch.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from mil_jax.attention import AttentionStats, stats_of_bags, sum_stats
from mil_jax.bags import Bags, Scaler, View, gather
from mil_jax.buckets import at_width, map_bags
from mil_jax.errors import checked
from mil_jax.losses import l2_penalty
from mil_jax.model import MIL, Params, Prediction, apply, attention_kernels, bag_loss, init_params, is_noisy
from mil_jax.optimizer import Hyper, mean_gradient_norm, optimizer
from mil_jax.states import (
    Batch,
    EpochInfo,
    FitConfig,
    FitState,
    MemberKeys,
    StepInfo,
    TrainState,
    Validation,
    ValidationSums,
)

# ---- a member before its first epoch ----


@checked
def member_key(key: Key[Array, ""]) -> MemberKeys:
    """The two keys of one member."""
    return MemberKeys(*jax.random.split(key))


def init_fit(model: MIL, keys: MemberKeys, bag_size: int, instance_shape: tuple[int, ...]) -> FitState:
    """A member before its first epoch, for bags of `bag_size` instances of `instance_shape`."""
    params = init_params(model, keys.init, bag_size, instance_shape)
    zero = jnp.zeros((), jnp.int32)
    # The optimizer's state does not depend on its hyperparameters.
    opt_state = optimizer(Hyper(jnp.float32(0), None, jnp.ones(model.target.count))).init(params)
    train = TrainState(params, opt_state, zero)
    return FitState(train, params, jnp.float32(jnp.inf), zero, zero, zero, jax.random.key_data(keys.order))


# ---- one step ----


def batch_loss(
    params: Params, model: MIL, hyper: Hyper, batch: Batch, keys: Key[Array, " M"] | None = None
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Mean over the valid bags of weight * loss, plus L2; and how many are classified right."""
    given: tuple[Any, ...] = (batch.instances, batch.mask, *([] if keys is None else [keys]))
    outputs, label = jax.vmap(partial(apply, model, params))(*given), jnp.asarray(batch.label)
    weighted = hyper.class_weight[label] * jax.vmap(partial(bag_loss, model))(outputs, label)
    mean = jnp.sum(weighted, where=batch.valid) / jnp.sum(batch.valid)
    right = jnp.sum(model.target.is_right(outputs.logits, label), where=batch.valid)
    return penalised(mean, params, hyper), right


def penalised(loss: Float[Array, ""], params: Params, hyper: Hyper) -> Float[Array, ""]:
    """The loss with the L2 penalty, where there is one."""
    return loss if hyper.l2 is None else loss + hyper.l2 * l2_penalty(attention_kernels(params))


def train_step(
    model: MIL,
    hyper: Hyper,
    bags: Bags,
    state: TrainState,
    index: Int[Array, " M"],
    valid: Bool[Array, " M"],
    key: Key[Array, ""] | None = None,
) -> tuple[TrainState, StepInfo]:
    """One step of Adam on the valid ones of the bags at `index`; `key` decides noise and augmentation."""
    gradient_of = jax.value_and_grad(batch_loss, has_aux=True)
    keys = None if key is None else jax.random.split(jax.random.fold_in(key, state.step), index.shape[0])

    def at(view: View, params: Params) -> Any:
        batch = Batch(gather(bags.pool, view.rows, hyper.scaler), view.mask, view.label, valid)
        return gradient_of(params, model, hyper, batch, keys)

    chosen = jax.tree.map(lambda leaf: leaf[index], bags.view)
    info, gradient = at_width(at, chosen, state.params)
    updates, opt_state = optimizer(hyper).update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1), StepInfo(*info)


# ---- one epoch ----


def epoch_order(
    key: Key[Array, ""], bag_count: int, batch_size: int, present: Bool[Array, " B"] | None = None
) -> tuple[Int[Array, "steps M"], Bool[Array, "steps M"]]:
    """A new order of all bags, cut into batches; the last batch is filled up with slots that are not valid.

    Where `present` is given, the places without a bag come last, and their slots are not valid either.
    """
    steps = -(-bag_count // batch_size)
    order = jax.random.permutation(key, bag_count)
    if present is not None:
        order = order[jnp.argsort(~present[order], stable=True)]
    slots = jnp.arange(steps * batch_size)
    index, valid = order[slots % bag_count], slots < (bag_count if present is None else jnp.sum(present))
    shape = (steps, batch_size)
    return index.reshape(shape), valid.reshape(shape)


def train_epoch(
    model: MIL, config: FitConfig, hyper: Hyper, bags: Bags, state: TrainState, key: Key[Array, ""]
) -> tuple[TrainState, StepInfo]:
    """Visits every bag once, in an order that `key` decides; the info holds mean loss and accuracy."""
    state, sums, count = train_sums(model, config, hyper, bags, state, key)
    return state, StepInfo(sums.loss / count, sums.right / count)


def train_sums(
    model: MIL, config: FitConfig, hyper: Hyper, bags: Bags, state: TrainState, key: Key[Array, ""]
) -> tuple[TrainState, StepInfo, int | Array]:
    """`train_epoch` with sums over the bags instead of means, and the number of bags."""
    bag_count, partly = bags.label.shape[0], bags.view.partial
    key_order, key_noise = jax.random.split(key) if is_noisy(model) else (key, None)
    present = jnp.asarray(bags.label) >= 0 if partly else None
    batches = epoch_order(key_order, bag_count, config.batch_size, present)

    def step(state: TrainState, batch: tuple[Array, Array]) -> tuple[TrainState, StepInfo]:
        return train_step(model, hyper, bags, state, batch[0], batch[1], key_noise)

    def step_or_none(state: TrainState, batch: tuple[Array, Array]) -> tuple[TrainState, StepInfo]:
        nothing = StepInfo(jnp.float32(0), jnp.int32(0))
        return lax.cond(batch[1].any(), step, lambda state, _: (state, nothing), state, batch)

    state, steps = lax.scan(step_or_none if partly else step, state, batches)
    # Sums first, division last: a batch counts by its number of bags, so that the partial one is exact.
    size = jnp.sum(batches[1], axis=1)
    sums = StepInfo(jnp.sum(steps.loss * size), jnp.sum(steps.right))
    return state, sums, bag_count if present is None else jnp.sum(present)


def outputs_of(
    model: MIL, params: Params, scaler: Scaler | None, bags: Bags
) -> tuple[Float[Array, "B C"], Float[Array, "B K"], Float[Array, "B K"]]:
    """Logits, attention weights and scores of all bags, some bags at a time."""

    def one(view: View) -> tuple[Array, Array, Array]:
        out = apply(model, params, gather(bags.pool, view.rows, scaler), view.mask)
        attention, scores = (jnp.pad(values, (0, bags.slots - len(values))) for values in (out.attention, out.scores))
        return out.logits, attention, scores

    return map_bags(one, bags)


def predict_member(model: MIL, params: Params, scaler: Scaler | None, bags: Bags) -> Prediction:
    """Class probabilities [B, C], attention weights and scores [B, K] of one member."""
    logits, attention, scores = outputs_of(model, params, scaler, bags)
    return Prediction(model.target.prediction(logits), attention, scores)


def validate(model: MIL, params: Params, hyper: Hyper, bags: Bags) -> Validation:
    """Loss (unweighted, with L2), accuracy, and mean attention statistics of positive and negative bags."""
    return validation_of(validation_sums(model, params, hyper, bags), params, hyper)


def validation_sums(model: MIL, params: Params, hyper: Hyper, bags: Bags) -> ValidationSums:
    """What `validate` divides by numbers of bags; sums of several sets of bags add up to those of all."""
    logits, attention, _ = outputs_of(model, params, hyper.scaler, bags)
    loss = jax.vmap(model.target.loss)(logits, bags.label)
    stats = stats_of_bags(attention, bags.mask, bags.instance_label)
    present = bags.label >= 0
    right = model.target.is_right(logits, bags.label)
    loss, right = (jnp.sum(values, where=present) for values in (loss, right))
    by_label = sum_stats(stats, bags.label > 0), sum_stats(stats, bags.label == 0)
    return ValidationSums(loss, right, jnp.sum(present), *by_label)


def validation_of(sums: ValidationSums, params: Params, hyper: Hyper) -> Validation:
    """The means of what was added up, and the L2 penalty."""
    mean = lambda total, count: total / jnp.maximum(count, 1)  # noqa: E731
    positive, negative = (jax.tree.map(mean, *stats) for stats in (sums.positive, sums.negative))
    loss = penalised(sums.loss / sums.bags, params, hyper)
    return Validation(loss, sums.right / sums.bags, positive, negative)


def has_stopped(state: FitState, config: FitConfig) -> Bool[Array | np.ndarray, "*members"]:
    """True for a member that has trained all epochs, or has gone `patience` epochs without a better loss."""
    return (state.epoch >= config.epochs) | (state.stale >= config.patience)


def fit_epoch(
    model: MIL, config: FitConfig, hyper: Hyper, train: Bags, val: Bags, state: FitState
) -> tuple[FitState, EpochInfo]:
    """Trains one epoch, validates, and keeps the parameters if no epoch before had a lower loss."""
    trained, means = train_epoch(model, config, hyper, train, state.train, epoch_key(state))
    return close_epoch(state, trained, means, validate(model, trained.params, hyper, val))


def epoch_key(state: FitState) -> Key[Array, ""]:
    """What decides the order of bags in the epoch that comes next."""
    return jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.order_key)), state.epoch)


def close_epoch(
    state: FitState, trained: TrainState, means: StepInfo, validation: Validation
) -> tuple[FitState, EpochInfo]:
    """The member after an epoch that `state` began and `trained` ended; keeps the parameters if they are the best."""
    epoch, better = state.epoch + 1, validation.val_loss < state.best_loss
    keep = partial(jnp.where, better)
    advanced = FitState(
        train=trained,
        best_params=jax.tree.map(keep, trained.params, state.best_params),
        best_loss=keep(validation.val_loss, state.best_loss),
        best_epoch=keep(epoch, state.best_epoch),
        stale=keep(0, state.stale + 1),
        epoch=epoch,
        order_key=state.order_key,
    )
    norm = mean_gradient_norm(trained.opt_state)
    return advanced, EpochInfo(epoch, means.loss, means.right, norm, *validation)


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


@checked
def fit(
    model: MIL, config: FitConfig, hyper: Hyper, train: Bags, val: Bags, key: Key[Array, ""]
) -> tuple[FitState, EpochInfo]:
    """A whole training run as a pure function of a key: it can be jitted, vmapped and nested.

    Returns:
        The state at the end, with `best_params`, and the infos of all epochs [E], blank after the member stopped.
    """
    train, val = jax.tree.map(jnp.asarray, (train, val))  # they may be constants of a program
    state = init_fit(model, member_key(key), train.slots, train.kind.shape)
    blank = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (config.epochs,)), blank_info())

    def epoch(carry: tuple[FitState, EpochInfo]) -> tuple[FitState, EpochInfo]:
        state, infos = carry
        advanced, info = fit_epoch(model, config, hyper, train, val, state)
        return advanced, jax.tree.map(lambda all, one: all.at[state.epoch].set(one), infos, info)

    return lax.while_loop(lambda carry: ~has_stopped(carry[0], config), epoch, (state, blank))
