"""Figures hold what they should, where they should, and never depend on pyplot or on the clock."""

import io
import itertools
import subprocess
import sys
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose, assert_array_equal

from mil_jax import plots
from mil_jax.errors import InputError
from mil_jax.plots import cards, style


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return file.getvalue()


def drawn(axes: Axes, gid: str) -> list:
    return [line for line in axes.lines if line.get_gid() == gid]


def texts(artists: Iterable) -> list[str]:
    return [artist.get_text() for artist in artists if artist.get_text()]


def legend_texts(figure: Figure) -> list[str]:
    return [text for legend in figure.legends for text in texts(legend.get_texts())]


def bags(bag_count: int, slots: int, *channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    instances = rng.uniform(size=(bag_count, slots, 6, 6, *channels)).astype(np.float32)
    attention = rng.dirichlet(np.ones(slots), size=bag_count).astype(np.float32)
    return instances, np.ones((bag_count, slots), bool), attention


def images(axes: Axes) -> np.ndarray:
    return np.array([picture.get_array() for picture in axes.images])


def learning(values: np.ndarray, best_epoch: list[int]) -> Figure:
    return plots.learning_curves(values[0], values[1], values[2], values[3], np.array(best_epoch, dtype=np.int32))


def curves(members: int, epochs: int) -> np.ndarray:
    """Training and validation loss, training and validation accuracy."""
    return np.random.default_rng(1).uniform(0.1, 0.9, (4, members, epochs))


CURVE, BINS = (np.array([0, 0.1, 1.0]), np.array([0, 0.9, 1.0])), np.array([0.6, 0.9])
IMAGES, MASK, WEIGHTS = bags(2, 3)
PATCHES = np.full((2, 4, 4, 3), 200, np.uint8)


def test_bag_title_leaves_out_what_is_not_known():
    assert plots.bag_title(17, 1) == "bag 17 · label 1"
    assert plots.bag_title(17, "cat", "dog") == "bag 17 · label cat · predicted dog"
    assert plots.bag_title(np.int64(17), 1, 1, np.float32(0.976)) == "bag 17 · label 1 · predicted 1 (0.98)"


def test_bags_figure_prints_each_weight_above_its_image():
    instances, mask, _ = bags(2, 3)
    attention = np.array([[0.7, 0.2, 0.1], [0.0, 0.004, 0.996]], np.float32)
    figure = plots.bags_figure(instances, mask, ["first", "second"], attention, heading="All bags")
    assert figure.get_suptitle() == "All bags"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    assert [texts(axes.texts) for axes in figure.axes] == [["0.70", "0.20", "0.10"], ["0.00", "0.00", "1.00"]]
    for picture, text in (pair for axes in figure.axes for pair in zip(axes.images, axes.texts, strict=True)):
        left, right, _, top = picture.get_extent()
        x, y = text.get_position()
        assert x == pytest.approx((left + right) / 2)
        assert top - cards.WEIGHT_LINE < y < top, "y grows downwards"


def test_bags_figure_keeps_the_order_and_frames_grow_with_the_weight():
    instances, mask, _ = bags(1, 3)
    attention, spread = np.array([[0.1, 0.6, 0.3]]), np.array([[0.04, 0.031, 0.0]])
    figure = plots.bags_figure(instances, mask, ["bag"], attention, spread, np.array([[False, True, False]]))
    (axes,) = figure.axes
    assert_allclose(images(axes), instances[0], rtol=1e-6)
    assert np.all(np.diff([picture.get_extent()[0] for picture in axes.images]) > 0)
    assert list(np.argsort([frame.get_linewidth() for frame in axes.patches])) == [0, 2, 1]
    assert len({to_hex(frame.get_edgecolor()) for frame in axes.patches}) == 3
    assert texts(axes.texts) == ["0.10 ± 0.04", "0.60 ± 0.03", "0.30 ± 0.00"]
    (mark,), (left, right, bottom, _) = axes.lines, axes.images[1].get_extent()
    ((x, y),) = np.asarray(mark.get_xydata())
    assert x == pytest.approx((left + right) / 2) and y > bottom
    assert legend_texts(figure) == ["weight 0", "0.5", "1", "truly positive instance"]
    small, plain = (plots.bags_figure(instances, mask, ["bag"], weights) for weights in (attention / 8, None))
    assert legend_texts(small) == ["weight 0", "0.05", "0.1"], "the scale fits small weights"
    assert not plain.legends and not plain.axes[0].texts


def test_bags_figure_leaves_out_padding():
    instances, mask, attention = bags(3, 4)
    mask[0, 1:], mask[1, [0, 2]], mask[2] = False, False, False
    instances[~mask] = 1e6  # must not stretch the grey scale either
    figure = plots.bags_figure(instances, mask, ["a", "b", "c"], attention)
    assert [len(axes.images) for axes in figure.axes] == [1, 2, 0]
    assert_allclose(images(figure.axes[1]), instances[1, [1, 3]], rtol=1e-6)
    assert texts(figure.axes[2].texts) == ["no\ninstance"]


@given(slots=st.integers(1, 50))
@settings(deadline=None, max_examples=10)
def test_bags_figure_shows_the_heaviest_twenty_and_counts_the_rest(slots: int):
    instances, mask, attention = bags(1, slots)
    axes = plots.bags_figure(instances, mask, ["bag"], attention).axes[0]
    heaviest, hidden = np.split(np.argsort(-attention[0]), [19 if slots > 20 else slots])
    rest = [f"+{len(hidden)} more\n≤ {attention[0, hidden].max():.2g} each"] if len(hidden) else []
    assert texts(axes.texts) == [f"{attention[0, slot]:.2f}" for slot in np.sort(heaviest)] + rest
    assert len(axes.images) == len(heaviest) and max(image.get_extent()[1] for image in axes.images) <= cards.PAGE


@given(st.lists(st.integers(0, 24), min_size=1, max_size=7), st.text("ab ·", max_size=60), st.booleans())
@settings(deadline=None, max_examples=8)
def test_bags_do_not_overlap_and_stay_on_the_page(sizes: list[int], title: str, as_images: bool):
    instances, _, attention = bags(len(sizes), 24)
    mask = np.arange(24) < np.array(sizes)[:, None]
    figure = plots.bags_figure(instances if as_images else None, mask, [title] * len(mask), attention, heading="bags")
    boxes = [np.asarray(axes.get_tightbbox()) for axes in figure.axes]  # (x0, y0), (x1, y1)
    assert all((box[0] >= -1).all() and (box[1] <= np.array(figure.bbox.size) + 1).all() for box in boxes)
    for box, other in itertools.combinations(boxes, 2):
        assert (np.minimum(box[1], other[1]) - np.maximum(box[0], other[0])).min() <= 1


@pytest.mark.parametrize("shape", [None, (166,), (), (6, 6, 2)])
def test_instances_that_are_no_images_are_bars_as_high_as_their_weights(shape):
    mask, instances = np.ones((1, 3), bool), None if shape is None else np.ones((1, 3, *shape))
    attention, spread = np.array([[0.2, 0.6, 0.1]]), np.array([[0.1, 0.5, 0.1]])
    figure = plots.bags_figure(instances, mask, ["bag"], attention, spread, attention > 0.5)
    (axes,) = figure.axes
    assert not axes.images and texts(axes.texts) == ["0.20", "0.60", "0.10"]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    assert_allclose([-bar.get_height() / cards.BAR_HEIGHT for bar in bars], attention[0])
    whiskers = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() == "None"]
    ends = (bars[0].get_y() - np.stack(whiskers)) / cards.BAR_HEIGHT
    assert_allclose(ends, [[0.1, 0.3], [0.1, 1.0], [0.0, 0.2]], atol=1e-9)
    assert legend_texts(figure) == ["weight 0", "0.5", "1", "± standard deviation", "truly positive instance"]
    assert not any(patch.get_fill() for patch in plots.bags_figure(instances, mask, ["bag"]).axes[0].patches)


def test_bags_figure_draws_colour_bytes_channels_and_jax_arrays_and_stretches_other_floats():
    instances, mask, attention = bags(2, 3, 3)
    as_bytes = np.round(instances * 255).astype(np.uint8)
    for pictures, expected in ((instances, instances), (as_bytes, as_bytes / 255)):
        assert_allclose(images(plots.bags_figure(pictures, mask, ["a", "b"]).axes[0]), expected[0], rtol=1e-6)
    values = np.stack([images(axes) for axes in plots.bags_figure((instances - 0.5) * 6, mask, ["a", "b"]).axes])
    assert (values.min(), values.max()) == (0, 1)
    plain = instances[..., 0], mask, attention
    same = map(jnp.asarray, (instances[..., :1], mask, attention))
    first, second = (png(plots.bags_figure(x, there, ["a", "b"], weight)) for x, there, weight in (plain, same))
    assert first == second


def test_learning_curves_draw_members_thin_their_mean_bold_and_mark_best_epochs():
    values, best = curves(3, 6), [2, 6, 4]
    figure = learning(values, best)
    labels = [("epoch", "loss (nats per bag)"), ("epoch", "accuracy (share of bags)")]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes] == labels
    for axes, (train, val) in zip(figure.axes, (values[:2], values[2:]), strict=True):
        marks = [dots.get_xydata() for dots in drawn(axes, "best epoch")]
        assert_array_equal(marks, [np.stack([best, val[[0, 1, 2], [1, 5, 3]]], axis=1)])
        members, means = drawn(axes, "member"), drawn(axes, "mean")
        assert (len(members), len(means)) == (6, 2)
        assert max(line.get_linewidth() for line in members) < min(mean.get_linewidth() for mean in means)
        assert_array_equal(means[0].get_xdata(), np.arange(1, 7))
        assert_allclose([mean.get_ydata() for mean in means], [train.mean(axis=0), val.mean(axis=0)], rtol=1e-6)
        assert to_hex(means[0].get_color()) != to_hex(means[1].get_color())


def test_one_member_is_drawn_once_and_one_epoch_is_a_visible_dot():
    figure = learning(curves(1, 5), [3])
    assert [(len(drawn(axes, "member")), len(drawn(axes, "mean"))) for axes in figure.axes] == [(0, 2)] * 2
    assert legend_texts(figure) == ["training", "validation", "best epoch"]
    axes = learning(curves(2, 1), [1, 1]).axes[0]
    assert all(line.get_marker() == "o" for line in axes.lines)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 1.5] == [1]


def test_the_mean_is_solid_while_all_run_dotted_then_and_ends_below_half():
    values = np.tile(np.array([[0.4], [0.2], [0.0], [0.6]]), (4, 1, 6))
    for member, epochs_run in enumerate((6, 4, 3, 2)):
        values[:, member, epochs_run:] = np.nan
    figure = learning(values, [1, 1, 1, 1])
    assert_allclose(drawn(figure.axes[0], "mean")[0].get_ydata(), [0.3, 0.3, np.nan, np.nan, np.nan, np.nan])
    assert_allclose(drawn(figure.axes[0], "mean of some")[0].get_xydata(), [[2, 0.3], [3, 0.2], [4, 0.3]])
    assert "mean of members still running" in legend_texts(figure)


def test_epochs_that_nobody_ran_and_best_epochs_that_are_none_are_left_out():
    values = curves(4, 20)
    values[:, :, 5:], values[1][1], values[1][2, 3] = np.nan, np.nan, np.inf
    axes = learning(values, [0, 2, 4, 5]).axes[0]
    assert axes.get_xlim() == (0.5, 5.5)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 5.5] == [1, 2, 3, 4, 5]
    assert_array_equal([dots.get_xdata() for dots in drawn(axes, "best epoch")], [[5]])


def test_curves_without_values_say_so():
    figure = learning(np.full((4, 3, 5), np.nan), [0, 0, 0])
    assert png(figure) and [(len(axes.lines), texts(axes.texts)) for axes in figure.axes] == [(0, ["no values"])] * 2


@pytest.mark.parametrize(("draw", "match"), [
    (lambda: plots.attention_curves({}, np.array([1])), "curves"),
    (lambda: learning(np.zeros((4, 0, 3)), []), "train_loss"),
    (lambda: plots.bags_figure(IMAGES, MASK, ["only one"]), "titles"),
    (lambda: plots.bags_figure(IMAGES[:0], MASK[:0], []), "at least one bag"),
    (lambda: plots.confusion_matrix(np.eye(2, dtype=int), ["one"]), r"row labels = \['one'\]: expected 2"),
    (lambda: plots.panels_with_band(BINS, {}, "members"), "panels"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused(draw, match):
    with pytest.raises(InputError, match=match):
        draw()


@given(members=st.integers(1, 5), epochs=st.integers(1, 7), seed=st.integers(0, 2**31), missing=st.floats(0, 1))
@settings(deadline=None, max_examples=6)
def test_any_pattern_of_nan_is_drawn_without_a_warning(members, epochs, seed, missing):
    rng = np.random.default_rng(seed)
    values = np.where(rng.uniform(size=(4, members, epochs)) < missing, np.nan, curves(members, epochs))
    figure = learning(values, rng.integers(0, epochs + 1, members).tolist())
    xs = [np.asarray(line.get_xdata()) for axes in figure.axes for line in axes.lines]
    assert all(((x >= 1) & (x <= epochs)).all() for x in xs)


def test_attention_curves_have_a_panel_per_statistic_with_fitting_limits():
    share, nothing = np.random.default_rng(2).uniform(0.4, 0.6, (3, 5)), np.full((3, 5), np.nan)
    names = ["entropy / log K", "effective number of instances", "mass on positives", "hit@1"]
    pairs = [(share, share / 2), (1.5 + share, 2 + share), (share, nothing), (share, nothing)]
    figure = plots.attention_curves(dict(zip(names, pairs, strict=True)), np.array([1, 3, 5]))
    assert [axes.get_ylabel() for axes in figure.axes] == names, "and no empty panel is left"
    entropy, instances, mass, _ = figure.axes
    assert entropy.get_ylim() == pytest.approx((-0.04, 1.04)) and 0.9 < instances.get_ylim()[0] < 1
    assert {to_hex(line.get_color()) for line in mass.lines} == {style.POSITIVE.lower()}
    negative, positive = drawn(entropy, "mean")
    assert to_hex(negative.get_color()) == style.NEGATIVE.lower()
    assert_allclose(positive.get_ydata(), share.mean(axis=0))
    assert_array_equal([dots.get_xdata() for dots in drawn(entropy, "best epoch")], [[1, 3, 5]] * 2)


def test_confusion_matrix_has_counts_and_row_percentages():
    (axes,) = plots.confusion_matrix(np.array([[90, 10], [1, 3]]), ["negative (no tumour found in it)", "yes"]).axes
    assert texts(axes.texts) == ["90\n90.0 %", "10\n10.0 %", "1\n25.0 %", "3\n75.0 %"]
    assert [text.get_position() for text in axes.texts] == [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)]
    assert axes.get_ylim() == (2, 0), "the first class is on top"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert texts(axes.get_yticklabels()) == ["negative (no tumour\nfound in it)", "yes"]
    (axes,) = plots.confusion_matrix(np.array([[2, 2], [0, 0]]), ["a", "b"]).axes
    assert texts(axes.texts) == ["2\n50.0 %", "2\n50.0 %", "0", "0"], "an absent class has no percentage"


def test_heat_map_leaves_nan_cells_empty():
    values = np.array([[0.5, np.nan, 0.75], [1.0, 2.0, 3.0]])
    axes, bar = plots.heat_map(values, ["r", "s"], ["a", "b", "c"], "rows", "columns", "AUC").axes
    assert (texts(axes.texts), bar.get_ylabel()) == (["0.5", "0.75", "1", "2", "3"], "AUC")
    for same in (np.full((1, 2), np.nan), np.ones((1, 2))):
        assert png(plots.heat_map(same, ["r"], ["a", "b"], "rows", "columns", "AUC"))


def test_roc_curves_draw_members_and_ensemble_and_enlarge_a_crowded_corner():
    good = (np.array([0, 0, 0.02, 1]), np.array([0, 0.99, 1, 1]))
    poor = (np.array([0, 0.4, 1]), np.array([0, 0.6, 1]))
    figure = plots.roc_curves([good, good], good, [0.99, 0.97], 0.995)
    whole, corner = figure.axes
    assert_array_equal([line.get_xydata() for line in drawn(whole, "ensemble")], [np.stack(good, axis=1)])
    assert (corner.get_xlim()[1], corner.get_ylim()[0]) == pytest.approx((0.05, 0.95))
    members = "2 members, AUC 0.9800 on average (0.9700 to 0.9900)"
    assert legend_texts(figure) == ["ensemble, AUC 0.9950", members, "chance"]
    (only,) = plots.roc_curves([poor, good, poor], poor, [0.6, 0.9, 0.6], 0.6).axes
    assert (len(drawn(whole, "member")), len(drawn(only, "member"))) == (2, 3)
    figure = plots.roc_curves([poor], poor, [0.6], 0.6)
    assert not drawn(figure.axes[0], "member")
    assert legend_texts(figure) == ["one member, AUC 0.6000", "chance"]


def test_precision_recall_steps_enclose_the_average_precision():
    recall, precision = np.array([0, 0.25, 0.5, 1]), np.array([1, 0.9, 0.7, 0.4])
    figures = [plots.precision_recall_curves([], (recall[::way], precision[::way]), [], 0.6, 0.3) for way in (1, -1)]
    assert png(figures[0]) == png(figures[1]), "recall may rise or fall"
    (line,) = drawn(figures[0].axes[0], "ensemble")
    x, y = STEP_LOOKUP_MAP[line.get_drawstyle()](line.get_xdata(), line.get_ydata())
    assert np.trapezoid(y, x) == pytest.approx(np.sum(np.diff(recall) * precision[1:]))
    assert legend_texts(figures[0])[-1] == "prevalence 0.300"


def test_reliability_diagram_leaves_out_empty_bins():
    confidence, accuracy = np.array([np.nan, 0.6, 0.9]), np.array([np.nan, 0.5, 0.95])
    figure = plots.reliability_diagram(confidence, accuracy, np.array([0, 4, 96]), 0.05)
    upper, lower = figure.axes
    points = [line.get_xydata() for line in upper.lines if line.get_marker() == "o"]
    assert_array_equal(points, [[[0.6, 0.5], [0.9, 0.95]]])
    tops = [np.asarray(bar.vertices)[1] for bar in lower.collections[0].get_paths()]
    assert_allclose(tops, [[0.6, 4], [0.9, 96]])
    assert "gap (ECE 0.050)" in legend_texts(figure)
    assert png(plots.reliability_diagram(np.full(2, np.nan), np.full(2, np.nan), np.zeros(2, int), 0.0))


def test_lines_with_band_hold_the_numbers():
    x, middle = np.array([50, 100, 200]), np.array([0.7, 0.8, 0.9])
    series = {"gated": (middle, middle - 0.1, middle + 0.1), "mean": (middle / 2, middle / 3, middle)}
    figure = plots.lines_with_band(x, series, "training bags", "test AUC", log_x=True)
    (axes,) = figure.axes
    assert_array_equal(axes.lines[0].get_ydata(), middle)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("training bags", "test AUC", "log")
    assert (texts(axes.get_xticklabels()), legend_texts(figure)) == (["50", "100", "200"], ["gated", "mean"])
    outline = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert {*outline[:, 1].round(6)} == {0.6, 0.7, 0.8, 0.9, 1.0}


def test_loglog_lines_all_look_different_and_leave_out_what_has_no_logarithm():
    x, y = np.arange(1, 6), np.array([100.0, 0.0, -1.0, np.nan, 10.0])
    (axes,) = plots.loglog_lines(x, {f"series {number}": y + number for number in range(10)}, "x", "y").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert_array_equal(axes.lines[0].get_ydata(), [100, np.nan, np.nan, np.nan, 10])
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}) == 10


def test_panels_share_one_legend_and_one_look_per_name():
    x, y = np.array([1, 10]), np.array([0.5, 0.6])
    two, one = {"a": (y, y - 0.1, y + 0.1), "b": (y, y, y)}, {"b": (y / 2, y / 4, y)}
    figure = plots.panels_with_band(x, {"AUC": two, "hit@1": one}, "members", log_x=True)
    first, second = figure.axes
    assert (legend_texts(figure), first.get_ylabel(), second.get_ylabel()) == (["a", "b"], "AUC", "hit@1")
    assert to_hex(first.lines[1].get_color()) == to_hex(second.lines[0].get_color())
    assert_array_equal(second.lines[0].get_ydata(), y / 2)
    assert not plots.panels_with_band(x, {"AUC": one}, "members").legends


def test_seeds_by_group_show_each_seed_and_the_mean_of_the_defined_ones():
    groups = {"gated": (np.array([0.2, 0.4, np.nan]), 0.2, 0.4), "plain": (np.array([0.5, 0.7, 0.6]), 0.55, 0.65)}
    (axes,) = plots.seeds_by_group({"AUC": groups}).axes
    means = [line.get_xydata() for line in axes.lines if line.get_marker() == "D"]
    assert_allclose(np.concatenate(means), [[0, 0.3], [1, 0.6]])
    joined = plots.seeds_by_group({"AUC": groups}, join=True)
    assert len(joined.axes[0].lines) == len(axes.lines) + 3  # one for each seed
    assert texts(axes.get_xticklabels()) == ["gated", "plain"]
    assert png(plots.seeds_by_group({"AUC": {"none": (np.full(2, np.nan), np.nan, np.nan)}}))


EVERY_FIGURE = {
    "images": lambda: plots.bags_figure(IMAGES, MASK, ["a", "b"], WEIGHTS, positive=MASK),
    "bars": lambda: plots.bags_figure(None, MASK, ["a", "b"], WEIGHTS, WEIGHTS / 9, MASK),
    "learning": lambda: learning(curves(3, 4), [1, 2, 4]),
    "attention": lambda: plots.attention_curves({"hit@1": (WEIGHTS, WEIGHTS / 2)}, np.ones(2, int)),
    "confusion": lambda: plots.confusion_matrix(np.array([[5, 1], [2, 9]]), ["a", "b"]),
    "confusion of ten": lambda: plots.confusion_matrix(np.arange(100).reshape(10, 10), ["class number"] * 10),
    "heat": lambda: plots.heat_map(np.eye(2), ["a", "b"], ["c", "d"], "r", "c", "v"),
    "patches": lambda: plots.patch_map(PATCHES, np.array([[2.0, 2], [9, 5]]), BINS, BINS > 0.7, "image"),
    "roc": lambda: plots.roc_curves([CURVE, CURVE], CURVE, [0.9, 0.9], 0.9),
    "precision": lambda: plots.precision_recall_curves([CURVE, CURVE], CURVE, [0.9, 0.9], 0.9, 0.3),
    "reliability": lambda: plots.reliability_diagram(BINS, BINS, np.array([3, 400]), 0.0),
    "band": lambda: plots.lines_with_band(BINS, {"a": (BINS, BINS / 2, BINS * 2)}, "x", "y"),
    "loglog": lambda: plots.loglog_lines(BINS, {"a": BINS}, "x", "y"),
    "panels": lambda: plots.panels_with_band(BINS, {"y": {"a": (BINS, BINS, BINS), "b": (BINS, BINS, BINS)}}, "x"),
    "seeds": lambda: plots.seeds_by_group({"y": {"a": (BINS, 0.6, 0.9), "b": (BINS, 0.7, 0.8)}}, join=True),
}


@pytest.mark.parametrize("draw", EVERY_FIGURE.values(), ids=EVERY_FIGURE)
def test_every_figure_is_the_same_whatever_the_settings_and_comes_laid_out(draw):
    figure = draw()
    places = [axes.get_position(original=True).bounds for axes in figure.axes]
    first = png(figure)
    assert places == [axes.get_position(original=True).bounds for axes in figure.axes]
    with rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        second = draw()
    assert first == png(second)
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02, "all is on the page"
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_pyplot_is_not_imported():
    program = "import sys; from mil_jax import plots; plots.confusion_matrix([[1]], 'a'); "
    program += "sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
