"""The settings that a run tries on bags whose features nobody knows yet, as hyperparameters of its members.

Axes: F fits, G settings, M members of a fit, S = G * F * M members in all.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from mil_jax.bags import Bags, InstanceKind, Scaler
from mil_jax.errors import InputError, check_choice, check_number
from mil_jax.losses import Classes
from mil_jax.optimizer import Hyper, HyperConfig, make_hyper

SCALES = ("standard", "raw", "l2")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a fit is trained with."""

    scale: str
    learning_rate: float
    weight_decay: float

    def __str__(self) -> str:
        return f"{self.scale}, rate {self.learning_rate:g}, decay {self.weight_decay:g}"


@dataclasses.dataclass(frozen=True)
class Search:
    """The settings that are tried; each fit keeps the one with the lowest loss on its validation bags.

    Raises:
        InputError: a number out of range, or nothing to try.
    """

    scale: Literal["auto", "standard", "raw", "l2"] = "auto"
    """Features standardised by the training bags, as they are, or instances of length 1; auto tries all three."""
    learning_rates: tuple[float, ...] = (5e-4,)
    """Of Adam; all of them are tried."""
    weight_decays: tuple[float, ...] = (1e-4,)
    """Factors of every parameter in its gradient, as in PyTorch's Adam; all of them are tried."""
    l2: float | None = None
    """Factor of the sum of squares of the attention's parameters; none for a program without it."""
    class_weights: bool = True
    """Weigh the training loss by total / (C * count) of the bag's class."""

    def __post_init__(self) -> None:
        check_choice("scale", self.scale, ("auto", *SCALES))
        for name in ("learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(name, values, "expected one or more different numbers")
        for rate in self.learning_rates:
            check_number("learning_rates", rate, 0, 1e3, ends="(]")
        for decay in self.weight_decays:
            check_number("weight_decays", decay, 0)

    def settings(self, kind: InstanceKind) -> list[Setting]:
        """All settings, G, for instances of this kind: pixels are not scaled any further.

        Raises:
            InputError: a scale of features for images.
        """
        if kind.pixels and self.scale not in ("auto", "raw"):
            raise InputError("scale", self.scale, f"expected raw for {kind}")
        auto = ("raw",) if kind.pixels else SCALES
        return [
            Setting(scale, rate, decay)
            for scale in (auto if self.scale == "auto" else (self.scale,))
            for rate in self.learning_rates
            for decay in self.weight_decays
        ]


def member_hyper(
    train: Bags, fitted: Scaler | None, search: Search, settings: Sequence[Setting], members: int, target: Classes
) -> Hyper:
    """Hyperparameters of S = G * F * M members, setting by setting, fit by fit.

    Args:
        train: bags with the labels of each fit's training bags, with a leading axis F; what they hold is not looked at.
        fitted: how each fit standardises its features; None where no setting does.
        search: penalties that all settings share.
        settings: G of them.
        members: M.
        target: what the bags are labelled with.
    """
    count, repeat = len(np.asarray(train.label)), lambda leaf: np.repeat(np.asarray(leaf), members, axis=0)
    base = make_hyper(train, HyperConfig(l2=search.l2, class_weights=search.class_weights), target)
    weight = np.tile(repeat(base.class_weight), (len(settings), 1))
    of = lambda name: np.repeat([getattr(s, name) for s in settings], count * members).astype(np.float32)  # noqa: E731
    scales = [setting.scale for setting in settings]
    scaler = None if set(scales) == {"raw"} else jax.tree.map(repeat, member_scaler(train, fitted, scales))
    return Hyper(of("learning_rate"), base.l2, weight, of("weight_decay"), scaler)


def member_scaler(train: Bags, fitted: Scaler | None, scales: Sequence[str]) -> Scaler:
    """The scaler of each setting and fit, [G * F, ...]."""
    count, features = len(np.asarray(train.label)), train.kind.shape[0]
    plain = Scaler(np.zeros((count, features), np.float32), np.ones((count, features), np.float32))
    chosen = [fitted if scale == "standard" and fitted is not None else plain for scale in scales]
    unit = np.repeat([float(scale == "l2") for scale in scales], count).astype(np.float32)
    mean, factor = (np.concatenate([getattr(scaler, name) for scaler in chosen]) for name in ("mean", "factor"))
    return Scaler(mean, factor, unit if "l2" in scales else None)
