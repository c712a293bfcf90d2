"""How well bags are told apart: ROC and precision-recall curves, and calibration."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from mil_jax.plots import style
from mil_jax.plots.style import BLUE, DASHED, GREY, Pair, Values, key, panel_grid, styled

Curve = tuple[Float[Values, " _"], Float[Values, " _"]]  # every curve has a length of its own
PerBin = Float[Values, " bins"]


@styled
def roc_curves(members: Sequence[Curve], ensemble: Curve, auc_members: Sequence[float], auc_ensemble: float) -> Figure:
    """True against false positive rate; where the curves hug the corner, the corner is enlarged.

    A curve, of each member and of the ensemble, is its (false positive rates, true positive rates), rising; its AUC
    is printed.
    """
    names = ("false positive rate (share of negative bags)", "true positive rate (share of positive bags)")
    labels = _labels("AUC", auc_members, auc_ensemble, "chance")
    return _rates_figure([*members, ensemble], labels, (0.0, 1.0), names, corner=0.0, draw_style="default")


@styled
def precision_recall_curves(
    members: Sequence[Curve], ensemble: Curve, ap_members: Sequence[float], ap_ensemble: float, prevalence: float
) -> Figure:
    """Precision against recall, in steps; where the curves hug the corner, the corner is enlarged.

    A curve, of each member and of the ensemble, is its (recalls, precisions), recall rising or falling. The steps are
    those of average precision, AP = sum over n of (R_n - R_{n-1}) P_n: between two recalls the precision is that of the
    higher one. The prevalence, the share of positive bags, is the precision of guessing.
    """
    names = ("recall (share of positive bags)", "precision (share of bags called positive)")
    labels = _labels("AP", ap_members, ap_ensemble, f"prevalence {prevalence:.3f}")
    guess = (prevalence, prevalence)
    return _rates_figure([*members, ensemble], labels, guess, names, corner=1.0, draw_style="steps-pre")


def _labels(area: str, members: Sequence[float], ensemble: float, guess: str) -> list[str]:
    """Legend texts: the ensemble, the members if there are several, and guessing."""
    if len(members) <= 1:
        return [f"{'one member' if members else 'ensemble'}, {area} {ensemble:.4f}", guess]
    low, mean, high = min(members), sum(members) / len(members), max(members)
    text = f"{len(members)} members, {area} {mean:.4f} on average ({low:.4f} to {high:.4f})"
    return [f"ensemble, {area} {ensemble:.4f}", text, guess]


def _rates_figure(
    curves: Sequence[Curve], labels: list[str], guess: Pair, names: tuple[str, str], corner: float, draw_style: str
) -> Figure:
    """Curves in the unit square, the ensemble's last, and beside it their corner at (``corner``, 1)."""
    *members, ensemble = rising = [np.stack(curve)[:, :: 1 if curve[0][0] <= curve[0][-1] else -1] for curve in curves]
    distances = [np.maximum(np.abs(x - corner), 1 - y).min(initial=1.0) for x, y in rising]
    # The side of the square to enlarge, or None where most curves stay away from the corner.
    size = next((size for size in (0.05, 0.1, 0.2, 0.3) if np.median(distances) <= size / 3), None)
    panels, height = (1, 4.6) if size is None else (2, 4.3)
    figure, grid = panel_grid(panels, panels, panel=(4.1, height))
    looks = [{"color": style.ENSEMBLE, "linewidth": 2.0}, {"color": GREY, "linewidth": 1, "linestyle": DASHED}]
    if len(members) > 1:
        looks.insert(1, {"color": style.MEMBER, "linewidth": 0.9})
    for axes in grid:
        axes.plot((0, 1), guess, **looks[-1])
        for curve in members if len(members) > 1 else ():
            axes.plot(*curve, **looks[1], alpha=style.member_alpha(len(members)), drawstyle=draw_style, gid="member")
        axes.plot(*ensemble, **looks[0], solid_joinstyle="miter", drawstyle=draw_style, gid="ensemble")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=names[0], ylabel=names[1])
        axes.set_aspect("equal", adjustable="box")
    if size is not None:
        room, left, bottom = 0.03 * size, corner * (1 - size), 1 - size
        x_limits = (left, 1 + room) if corner else (-room, size)
        grid[1].set(xlim=x_limits, ylim=(bottom, 1 + room), title="the corner, enlarged")
        frame = {"fill": False, "edgecolor": GREY, "linewidth": 0.8, "zorder": 1.5}
        grid[0].add_patch(Rectangle((left, bottom), size, size, **frame))
    handles = [key(label, **look) for label, look in zip(labels, looks, strict=True)]
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if panels == 2 else 1)
    return figure


@styled
def one_against_rest(
    roc: Mapping[str, Curve], precision_recall: Mapping[str, Curve], areas: Mapping[str, tuple[float, float]]
) -> Figure:
    """The ROC and the precision-recall curve of each class, told from all others by its probability.

    Curves are those of `roc_curves` and `precision_recall_curves`; the areas are AUC and average precision, printed.
    """
    figure, (left, right) = panel_grid(2, 2, panel=(4.1, 4.3))
    left.plot((0, 1), (0, 1), color=GREY, linewidth=1, linestyle=DASHED)
    handles = []
    for number, name in enumerate(roc):
        look = {"color": style.CLASSES[number % len(style.CLASSES)], "linewidth": 1.6}
        look["linestyle"] = ("-", "--", ":")[number // len(style.CLASSES) % 3]
        left.plot(*roc[name], **look)
        right.plot(*precision_recall[name], drawstyle="steps-pre", **look)
        auc, precision = areas[name]
        handles.append(key(f"{name}, AUC {auc:.3f}, AP {precision:.3f}", **look))
    names = (("false positive rate", "true positive rate"), ("recall", "precision"))
    for axes, (x, y) in zip((left, right), names, strict=True):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
        axes.set_aspect("equal", adjustable="box")
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


@styled
def reliability_diagram(confidence: PerBin, accuracy: PerBin, count: Num[Values, " bins"], ece: float) -> Figure:
    """How often predictions of a confidence are right, and how many there are of each.

    Bars of one standard error, sqrt(p (1 - p) / n), tell a gap from noise (Guo et al. 2017).

    Args:
        confidence: mean probability of the predicted class in each bin.
        accuracy: share of right predictions in each bin.
        count: bags in each bin; empty bins are left out, whatever their other values.
        ece: expected calibration error, printed.
    """
    filled = np.asarray(count) > 0
    x, y, n = (np.asarray(values)[filled] for values in (confidence, accuracy, count))
    error = np.sqrt(np.clip(y * (1 - y), 0, None) / n)
    lowest = min(x.min(initial=0.9), (y - error).min(initial=0.9))
    low = max(0.0, math.floor(10 * lowest) / 10)
    limits = (low - 0.02 * (1 - low), 1 + 0.02 * (1 - low))
    figure = Figure(figsize=(4.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED, label="calibrated")
    upper.vlines(x, x, y, color=style.ORANGE, alpha=0.5, linewidth=6, label=f"gap (ECE {ece:.3f})")
    upper.errorbar(x, y, error, fmt="o", color=BLUE, markersize=5, elinewidth=1, label="± std. error")
    upper.set(ylabel="accuracy (share of bags)", xlim=limits, ylim=limits)
    upper.tick_params(labelbottom=False)
    lower.vlines(x, 0.5, n, color=BLUE, linewidth=4)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="bags in bin")
    decades = 10 ** np.arange(math.ceil(math.log10(max(n.max(initial=1), 2))) + 1)
    lower.set(yscale="log", ylim=(0.5, 1.5 * decades[-1]))
    lower.set_yticks(decades, [f"{decade}" for decade in decades])
    lower.yaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.5)
    return figure
