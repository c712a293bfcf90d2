"""The records of training: choices, keys, states between epochs, and what is said of an epoch.

Axes: S members, E epochs; M bags of a batch, K slots.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mil_jax.attention import AttentionStats
from mil_jax.bags import Values
from mil_jax.errors import check_whole
from mil_jax.record import record


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The choices that shape the compiled program of a run; a number below 1 is an InputError."""

    epochs: int = 20
    """The most epochs that a member trains for, E."""
    batch_size: int = 1
    """Bags per step."""
    patience: int = 10
    """A member stops after this many epochs without a better validation loss."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_whole(field.name, getattr(self, field.name), 1)


@record
class MemberKeys:
    """What decides all that a member draws; with a leading axis S, those of S members.

    Attributes:
        init: decides its initial parameters.
        order: decides its orders of bags, its augmentation and its dropout.
    """

    init: Key[Array, "*members"]
    order: Key[Array, "*members"]


@record
class Batch:
    """The bags of one step, with their instances.

    Attributes:
        instances: as the model sees them.
        mask: True where a slot holds an instance.
        label: class of each bag.
        valid: True where a place of the batch holds a bag.
    """

    instances: Float[Array, "M K ..."]
    mask: Bool[Values, "M K"]
    label: Int[Values, " M"]
    valid: Bool[Array, " M"]


class StepInfo(NamedTuple):
    """What a step or an epoch says: its loss, and how many bags, or which share of them, it classified right."""

    loss: Float[Array, ""]
    right: Array


class Validation(NamedTuple):
    """What an epoch's parameters score on the validation bags; the fields are those of `EpochInfo`."""

    val_loss: Float[Array, ""]
    val_accuracy: Float[Array, ""]
    positive: AttentionStats
    negative: AttentionStats


@record
class TrainState:
    """What the next step needs.

    Attributes:
        params: the model's parameters.
        opt_state: Adam's moments.
        step: steps taken.
    """

    params: Any
    opt_state: Any
    step: Int[Values, "*members"]


@record
class FitState:
    """One member between two epochs; with a leading axis S, all of them.

    Attributes:
        train: parameters and moments.
        best_params: parameters at the end of the best epoch (the initial ones before the first).
        best_loss: validation loss of the best epoch.
        best_epoch: the best epoch, from 1; 0 where no epoch has had a finite loss.
        stale: epochs since the best one.
        epoch: epochs trained.
        order_key: data of the key that decides the order of bags; raw, so that the record holds nothing but arrays
            that can be saved as they are.
    """

    train: TrainState
    best_params: Any
    best_loss: Float[Values, "*members"]
    best_epoch: Int[Values, "*members"]
    stale: Int[Values, "*members"]
    epoch: Int[Values, "*members"]
    order_key: UInt32[Values, "*members 2"]


@record
class EpochInfo:
    """What a person wants to see of one epoch of one member; NaN where the member had stopped before.

    Attributes:
        epoch: the epoch, from 1; 0 where the member had stopped before.
        train_loss: mean over the epoch's steps, with class weights and L2, while the parameters change.
        train_accuracy: likewise.
        gradient_norm: norm of Adam's first moment at the end: the mean gradient of the last steps.
        val_loss: without class weights, with L2: early stopping looks at it.
        val_accuracy: share of validation bags that are classified right.
        positive: attention statistics, mean over the positive validation bags.
        negative: the same over the negative ones.
    """

    epoch: Int[Values, "*axes"]
    train_loss: Float[Values, "*axes"]
    train_accuracy: Float[Values, "*axes"]
    gradient_norm: Float[Values, "*axes"]
    val_loss: Float[Values, "*axes"]
    val_accuracy: Float[Values, "*axes"]
    positive: AttentionStats
    negative: AttentionStats
