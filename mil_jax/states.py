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
    """The choices that shape the compiled program of a run."""

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
    """What decides all that a member draws; with a leading axis S, those of S members."""

    init: Key[Array, "*members"]
    """Decides its initial parameters."""
    order: Key[Array, "*members"]
    """Decides its orders of bags, its augmentation and its dropout."""


@record
class Batch:
    """The bags of one step, with their instances."""

    instances: Float[Array, "M K ..."]
    """As the model sees them."""
    mask: Bool[Values, "M K"]
    """True where a slot holds an instance."""
    label: Int[Values, " M"]
    """Class of each bag."""
    valid: Bool[Array, " M"]
    """True where a place of the batch holds a bag."""


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


class ValidationSums(NamedTuple):
    """What validation adds up over bags; statistics as sums and the number of bags that define them."""

    loss: Float[Array, ""]
    right: Int[Array, ""]
    bags: Int[Array, ""]
    positive: tuple[AttentionStats, AttentionStats]
    negative: tuple[AttentionStats, AttentionStats]


@record
class TrainState:
    """What the next step needs."""

    params: Any
    opt_state: Any
    """Adam's moments."""
    step: Int[Values, "*members"]


@record
class FitState:
    """One member between two epochs; with a leading axis S, all of them."""

    train: TrainState
    best_params: Any
    """Parameters at the end of the best epoch (the initial ones before the first)."""
    best_loss: Float[Values, "*members"]
    """Validation loss of the best epoch."""
    best_epoch: Int[Values, "*members"]
    """The best epoch, from 1; 0 where no epoch has had a finite loss."""
    stale: Int[Values, "*members"]
    """Epochs since the best one."""
    epoch: Int[Values, "*members"]
    """Epochs trained."""
    order_key: UInt32[Values, "*members 2"]
    """Data of the key that decides the order of bags; raw, so that the record holds nothing but arrays that can be
    saved as they are."""


@record
class EpochInfo:
    """What a person wants to see of one epoch of one member; NaN where the member had stopped before."""

    epoch: Int[Values, "*axes"]
    """The epoch, from 1; 0 where the member had stopped before."""
    train_loss: Float[Values, "*axes"]
    """Mean over the epoch's steps, with class weights and L2, while the parameters change."""
    train_accuracy: Float[Values, "*axes"]
    """As `train_loss`."""
    gradient_norm: Float[Values, "*axes"]
    """Norm of Adam's first moment at the end: the mean gradient of the last steps."""
    val_loss: Float[Values, "*axes"]
    """Without class weights, with L2: early stopping looks at it."""
    val_accuracy: Float[Values, "*axes"]
    """Share of validation bags that are classified right."""
    positive: AttentionStats
    """Attention statistics, mean over the positive validation bags."""
    negative: AttentionStats
    """The same over the negative ones."""
