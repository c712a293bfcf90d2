"""Curves over epochs: a thin line per member, their mean bold. Epochs count from 1; what is not finite is not drawn."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from mil_jax.errors import InputError
from mil_jax.plots import style
from mil_jax.plots.style import BLACK, GREY, Values, key, panel_grid, styled

Curves = Float[Values, "S E"]
Epochs = Int[Values, " S"]


@styled
def learning_curves(
    train_loss: Curves, val_loss: Curves, train_accuracy: Curves, val_accuracy: Curves, best_epoch: Epochs
) -> Figure:
    """Loss (nats per bag) and accuracy (share of bags, 0..1) over epochs, [S, E] each, as thin lines and a bold mean.

    The mean is solid while every member runs. From where some have stopped, which is NaN, it is the mean of fewer
    members, so it is dotted, and it ends where fewer than half are left. The best epochs [S], from 1, are marked on the
    validation curves; 0 where a member has none.

    Raises:
        InputError: there is no member or no epoch.
    """
    _check_curves("train_loss", train_loss)
    figure, panels = panel_grid(2, 2, panel=(4.2, 3.4))
    loss = ("loss (nats per bag)", train_loss, val_loss, (0.0, np.nan))
    accuracy = ("accuracy (share of bags)", train_accuracy, val_accuracy, (np.nan, 1.0))
    for axes, (label, train, val, bounds) in zip(panels, (loss, accuracy), strict=True):
        _draw_members(axes, train, style.TRAINING)
        _draw_members(axes, val, style.VALIDATION, best_epoch)
        _finish_epochs(axes, label, np.concatenate([train, val]), bounds)
    _curve_legend(figure, {"training": style.TRAINING, "validation": style.VALIDATION}, [val_loss])
    return figure


@styled
def attention_curves(curves: Mapping[str, tuple[Curves, Curves]], best_epoch: Epochs) -> Figure:
    """Attention statistics over epochs, a panel each, positive against negative bags.

    Args:
        curves: the statistic's name, which becomes the y label, to its values on positive and on negative bags, [S, E]
            each; NaN where a member did not run, or where a statistic has no meaning on negative bags.
        best_epoch: [S], from 1; 0 where a member has none. Marked on both curves.

    Raises:
        InputError: there is no curve, no member or no epoch.
    """
    if not curves:
        raise InputError("curves", dict(curves), "expected at least one statistic")
    figure, panels = panel_grid(len(curves), min(3, len(curves)), panel=(2.9, 2.5), margin=(0.8, 0.5))
    for axes, (name, (positive, negative)) in zip(panels, curves.items(), strict=True):
        _check_curves(f"curves[{name!r}]", positive)
        _draw_members(axes, negative, style.NEGATIVE, best_epoch)
        _draw_members(axes, positive, style.POSITIVE, best_epoch)
        both = np.concatenate([positive, negative])
        _finish_epochs(axes, name, both, _natural_bounds(both))
    colours = {"positive bags": style.POSITIVE, "negative bags": style.NEGATIVE}
    _curve_legend(figure, colours, [values for pair in curves.values() for values in pair])
    return figure


def _check_curves(argument: str, values: Values) -> None:
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"{argument}.shape", values.shape, "expected [S, E], at least one member and one epoch")


def _draw_members(axes: Axes, values: Values, colour: str, best_epoch: Values | None = None) -> None:
    """Members thin and translucent, their mean bold; a single member is its own mean."""
    values, epochs = np.asarray(values), np.arange(1, values.shape[1] + 1)
    finite = np.isfinite(values)
    if not finite.any():
        return
    # A line through one point is invisible: that point needs a dot.
    dot = "o" if (finite.sum(axis=1) == 1).any() else None
    bold = {"color": colour, "linewidth": 2.0, "zorder": 4, "gid": "mean"}
    if len(values) > 1:
        bold["path_effects"] = [withStroke(linewidth=3.6, foreground="white")]
        look = {"color": colour, "alpha": style.member_alpha(len(values)), "linewidth": 0.8, "zorder": 2}
        axes.plot(epochs, np.where(finite, values, np.nan).T, **look, marker=dot, markersize=2.5, gid="member")
    running = finite.sum(axis=0)
    mean = np.where(running > 0, np.where(finite, values, 0).sum(axis=0) / np.maximum(running, 1), np.nan)
    everybody = running == running.max()
    axes.plot(epochs, np.where(everybody, mean, np.nan), **bold, marker=dot, markersize=4)
    if _some_stopped(values):
        # From the last epoch with everybody, so that the two parts join.
        shown = (running >= running.max() / 2) & (epochs >= epochs[everybody].max())
        axes.plot(epochs[shown], mean[shown], **bold | {"linestyle": style.DOTTED, "gid": "mean of some"})
    if best_epoch is not None:
        _mark_best(axes, values, np.asarray(best_epoch), colour)


def _some_stopped(values: Values) -> bool:
    """Whether an epoch was run by some members but not by as many as ran another."""
    running = np.isfinite(values).sum(axis=0)
    return bool((running[running > 0] < running.max()).any())


def _mark_best(axes: Axes, values: np.ndarray, best_epoch: np.ndarray, colour: str) -> None:
    """A dot on each member's curve at its best epoch."""
    members = np.flatnonzero((best_epoch >= 1) & (best_epoch <= values.shape[1]))
    epochs = best_epoch[members]
    heights = values[members, epochs - 1]
    seen = np.isfinite(heights)
    if seen.any():
        size = 6.5 if len(values) == 1 else 3.8 if len(values) <= 16 else 2.8
        look = {"color": colour, "markeredgecolor": BLACK, "markeredgewidth": size / 9, "markersize": size}
        axes.plot(epochs[seen], heights[seen], "o", **look, zorder=5, gid="best epoch")


def _natural_bounds(values: np.ndarray) -> tuple[float, float]:
    """Where a statistic can lie: in 0..1, from 1 (a number of instances), from 0 or anywhere."""
    finite = values[np.isfinite(values)]
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return next((bound for bound in (1.0, 0.0) if low >= bound), np.nan), np.nan


def _finish_epochs(axes: Axes, y_label: str, values: np.ndarray, bounds: tuple[float, float]) -> None:
    """Labels, whole epochs on the x axis up to the last one run, and y limits: the bounds, if no value breaks them."""
    finite = np.isfinite(values)
    last = int(np.flatnonzero(finite.any(axis=0)).max(initial=0)) + 1
    axes.set(xlabel="epoch", ylabel=y_label, xlim=(0.5, last + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    if not finite.any():
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color=GREY)
        return
    low, high = np.fmin(values[finite].min(), bounds[0]), np.fmax(values[finite].max(), bounds[1])
    room = 0.04 * max(high - low, 0.02)
    axes.set_ylim(low - room, high + room)


def _curve_legend(figure: Figure, colours: Mapping[str, str], curves: Sequence[Values]) -> None:
    """One line above the panels, where no curve can be."""
    handles = [key(name, color=colour) for name, colour in colours.items()]
    if len(curves[0]) > 1:
        handles.append(key("one member", color=GREY, alpha=0.6, linewidth=0.8))
        if any(map(_some_stopped, curves)):
            handles.append(key("mean of members still running", color=GREY, linestyle=style.DOTTED))
    look = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": BLACK, "markersize": 5}
    handles.append(key("best epoch", linestyle="none", **look))
    narrow = figure.get_size_inches()[0] < 5
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if narrow else len(handles))
