"""Figures hold what they should, where they should, and never depend on pyplot or on the clock."""

import functools
import io
import subprocess
import sys

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


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def bags(bag_count: int, slots: int, *channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    instances = rng.uniform(size=(bag_count, slots, 6, 6, *channels)).astype(np.float32)
    attention = rng.dirichlet(np.ones(slots), size=bag_count).astype(np.float32)
    return instances, np.ones((bag_count, slots), bool), attention


def image(axes: Axes, number: int) -> np.ndarray:
    return np.asarray(axes.images[number].get_array())


def curves(members: int, epochs: int) -> np.ndarray:
    """Training and validation loss, training and validation accuracy."""
    return np.random.default_rng(1).uniform(0.1, 0.9, (4, members, epochs))


def learning(values: np.ndarray, best_epoch: list[int]) -> Figure:
    return plots.learning_curves(*values, np.array(best_epoch, dtype=np.int32))


# --- Bags ---------------------------------------------------------------------------------------


def test_bag_title_leaves_out_what_is_not_known():
    assert plots.bag_title(17, 1) == "bag 17 · label 1"
    assert plots.bag_title(17, "cat", "dog") == "bag 17 · label cat · predicted dog"
    title = plots.bag_title(np.int64(17), np.int32(1), np.int32(1), np.float32(0.976))
    assert title == "bag 17 · label 1 · predicted 1 (0.98)"


def test_bags_figure_prints_each_weight_above_its_image():
    instances, mask, _ = bags(2, 3)
    attention = np.array([[0.7, 0.2, 0.1], [0.0, 0.004, 0.996]], np.float32)
    figure = plots.bags_figure(instances, mask, ["first", "second"], attention, heading="All bags")
    assert figure.get_suptitle() == "All bags"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    assert [texts(axes) for axes in figure.axes] == [["0.70", "0.20", "0.10"], ["0.00", "0.00", "1.00"]]
    for axes in figure.axes:
        for picture, text in zip(axes.images, axes.texts, strict=True):
            left, right, _, top = picture.get_extent()
            x, y = text.get_position()
            assert x == pytest.approx((left + right) / 2)
            assert top - cards.WEIGHT_LINE < y < top, "y grows downwards"


def test_bags_figure_keeps_the_order_and_frames_grow_with_the_weight():
    instances, mask, _ = bags(1, 3)
    attention, spread = np.array([[0.1, 0.6, 0.3]]), np.array([[0.04, 0.031, 0.0]])
    axes = plots.bags_figure(instances, mask, ["bag"], attention, spread).axes[0]
    assert_allclose([image(axes, slot) for slot in range(3)], instances[0], rtol=1e-6)
    lefts = [picture.get_extent()[0] for picture in axes.images]
    assert lefts == sorted(lefts)
    widths = [frame.get_linewidth() for frame in axes.patches]
    assert widths[0] < widths[2] < widths[1]
    assert len({to_hex(frame.get_edgecolor()) for frame in axes.patches}) == 3
    assert texts(axes) == ["0.10 ± 0.04", "0.60 ± 0.03", "0.30 ± 0.00"]


def test_bags_figure_scale_fits_small_weights():
    instances, mask, _ = bags(1, 12)
    figure = plots.bags_figure(instances, mask, ["bag"], np.full((1, 12), 1 / 12, np.float32))
    assert legend_texts(figure) == ["weight 0", "0.05", "0.1"]


def test_bags_figure_leaves_out_padding():
    instances, mask, attention = bags(3, 4)
    mask[0, 1:], mask[1, [0, 2]], mask[2] = False, False, False
    instances[~mask] = 1e6  # must not stretch the grey scale either
    figure = plots.bags_figure(instances, mask, ["a", "b", "c"], attention)
    assert [len(axes.images) for axes in figure.axes] == [1, 2, 0]
    assert_allclose(image(figure.axes[1], 0), instances[1, 1], rtol=1e-6)
    assert texts(figure.axes[2]) == ["no\ninstance"]


def test_bags_figure_points_at_positive_instances():
    instances, mask, attention = bags(1, 3)
    figure = plots.bags_figure(instances, mask, ["bag"], attention, positive=np.array([[False, True, False]]))
    (axes,) = figure.axes
    (mark,) = axes.lines
    left, right, bottom, _ = axes.images[1].get_extent()
    (x,), (y,) = np.asarray(mark.get_data())
    assert x == pytest.approx((left + right) / 2) and y > bottom
    assert legend_texts(figure)[-1] == "truly positive instance"
    plain = plots.bags_figure(instances, mask, ["bag"])
    assert not plain.legends and not plain.axes[0].texts


@given(slots=st.integers(1, 50))
@settings(deadline=None, max_examples=10)
def test_bags_figure_shows_the_heaviest_twenty_and_counts_the_rest(slots: int):
    instances, mask, attention = bags(1, slots)
    axes = plots.bags_figure(instances, mask, ["bag"], attention).axes[0]
    if slots <= 20:
        assert len(axes.images) == len(axes.texts) == slots
        return
    heaviest, hidden = np.split(np.argsort(-attention[0]), [19])
    assert texts(axes)[:-1] == [f"{attention[0, slot]:.2f}" for slot in np.sort(heaviest)]
    assert texts(axes)[-1] == f"+{len(hidden)} more\n≤ {attention[0, hidden].max():.2g} each"
    assert max(picture.get_extent()[1] for picture in axes.images) <= cards.PAGE


@given(
    bag_count=st.integers(1, 7),
    sizes=st.lists(st.integers(0, 12), min_size=7, max_size=7),
    title=st.text("ab ·", max_size=60),
    as_images=st.booleans(),
)
@settings(deadline=None, max_examples=8)
def test_bags_do_not_overlap_and_stay_on_the_page(bag_count: int, sizes: list[int], title: str, as_images: bool):
    instances, _, attention = bags(bag_count, 30)
    mask = np.arange(30) < 2 * np.array(sizes[:bag_count])[:, None]
    titles = [title] * bag_count
    figure = plots.bags_figure(instances if as_images else None, mask, titles, attention, heading="heading")
    boxes = [np.asarray(axes.get_tightbbox()) for axes in figure.axes]  # (x0, y0), (x1, y1)
    for number, box in enumerate(boxes):
        assert (box[0] >= -1).all() and (box[1] <= figure.bbox.size + 1).all()
        for other in boxes[:number]:
            assert (np.minimum(box[1], other[1]) - np.maximum(box[0], other[0])).min() <= 1


@pytest.mark.parametrize("shape", [None, (166,), (), (6, 6, 2)])
def test_instances_that_are_no_images_are_bars_as_high_as_their_weights(shape):
    _, mask, _ = bags(1, 3)
    instances = None if shape is None else np.ones((1, 3, *shape))
    attention, spread = np.array([[0.2, 0.6, 0.1]]), np.array([[0.1, 0.5, 0.1]])
    figure = plots.bags_figure(instances, mask, ["bag"], attention, spread, attention > 0.5)
    (axes,) = figure.axes
    assert not axes.images and texts(axes) == ["0.20", "0.60", "0.10"]
    bars = [patch for patch in axes.patches if patch.get_fill()]
    assert_allclose([-bar.get_height() / cards.BAR_HEIGHT for bar in bars], attention[0])
    whiskers = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() == "None"]
    ends = (bars[0].get_y() - np.stack(whiskers)) / cards.BAR_HEIGHT
    assert_allclose(ends, [[0.1, 0.3], [0.1, 1.0], [0.0, 0.2]], atol=1e-9)
    assert legend_texts(figure) == ["weight 0", "0.5", "1", "± standard deviation", "truly positive instance"]
    plain = plots.bags_figure(instances, mask, ["bag"]).axes[0]
    assert [patch.get_fill() for patch in plain.patches] == [False] * 3


def test_bags_figure_draws_colour_and_bytes_and_stretches_other_floats():
    instances, mask, _ = bags(1, 2, 3)
    as_bytes = np.round(instances * 255).astype(np.uint8)
    for pictures, expected in ((instances, instances), (as_bytes, as_bytes / 255)):
        axes = plots.bags_figure(pictures, mask, ["bag"]).axes[0]
        assert_allclose(image(axes, 0), expected[0, 0], rtol=1e-6)
    axes = plots.bags_figure((instances - 0.5) * 6, mask, ["bag"]).axes[0]
    values = np.stack([image(axes, number) for number in range(2)])
    assert values.min() == 0 and values.max() == 1


def test_bags_figure_takes_grey_images_with_a_channel_and_jax_arrays():
    instances, mask, attention = bags(2, 3)
    plain = plots.bags_figure(instances, mask, ["a", "b"], attention)
    same = plots.bags_figure(jnp.asarray(instances[..., None]), jnp.asarray(mask), ["a", "b"], jnp.asarray(attention))
    assert png(plain) == png(same)


def test_bags_figure_refuses_what_it_cannot_draw():
    instances, mask, _ = bags(2, 3)
    with pytest.raises(InputError, match="titles"):
        plots.bags_figure(instances, mask, ["only one"])
    with pytest.raises(InputError, match="at least one bag"):
        plots.bags_figure(instances[:0], mask[:0], [])


# --- Curves over epochs -------------------------------------------------------------------------


def test_learning_curves_mark_the_best_epoch_of_each_member():
    values, best = curves(3, 6), [2, 6, 4]
    figure = learning(values, best)
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats per bag)", "accuracy (share of bags)"]
    for axes, panel in zip(figure.axes, (values[1], values[3]), strict=True):
        (dots,) = drawn(axes, "best epoch")
        assert_array_equal(dots.get_xdata(), best)
        assert_array_equal(dots.get_ydata(), panel[[0, 1, 2], [1, 5, 3]])


def test_learning_curves_draw_members_thin_and_their_mean_bold():
    values = curves(5, 4)
    axes = learning(values, [1] * 5).axes[0]
    members, means = drawn(axes, "member"), drawn(axes, "mean")
    assert (len(members), len(means)) == (10, 2)
    assert max(line.get_linewidth() for line in members) < min(mean.get_linewidth() for mean in means)
    assert_array_equal(means[0].get_xdata(), [1, 2, 3, 4])
    assert_allclose([mean.get_ydata() for mean in means], values[:2].mean(axis=1), rtol=1e-6)
    assert to_hex(means[0].get_color()) != to_hex(means[1].get_color())


def test_one_member_is_drawn_once_and_one_epoch_is_a_visible_dot():
    figure = learning(curves(1, 5), [3])
    for axes in figure.axes:
        assert not drawn(axes, "member") and len(drawn(axes, "mean")) == 2
    assert legend_texts(figure) == ["training", "validation", "best epoch"]
    axes = learning(curves(2, 1), [1, 1]).axes[0]
    assert all(line.get_marker() == "o" for line in axes.lines)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 1.5] == [1]


def test_the_mean_is_solid_while_all_run_dotted_then_and_ends_below_half():
    values = np.tile(np.array([[0.4], [0.2], [0.0], [0.6]]), (4, 1, 6))
    values[:, 2, 4:] = 0.1
    for member, epochs_run in enumerate((6, 4, 3, 2)):
        values[:, member, epochs_run:] = np.nan
    figure = learning(values, [1, 1, 1, 1])
    assert_allclose(drawn(figure.axes[0], "mean")[0].get_ydata(), [0.3, 0.3, np.nan, np.nan, np.nan, np.nan])
    dotted = drawn(figure.axes[0], "mean of some")[0]
    assert_array_equal(dotted.get_xdata(), [2, 3, 4])
    assert_allclose(dotted.get_ydata(), [0.3, 0.2, 0.3])
    assert "mean of members still running" in legend_texts(figure)


def test_epochs_that_nobody_ran_are_left_out():
    values = curves(4, 20)
    values[:, :, 3:] = np.nan
    axes = learning(values, [3, 2, 1, 3]).axes[0]
    assert axes.get_xlim() == (0.5, 3.5)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 3.5] == [1, 2, 3]


def test_a_member_without_a_best_epoch_gets_no_dot():
    values = curves(4, 5)
    values[1][1] = np.nan
    values[1][2, 3] = np.inf
    (dots,) = drawn(learning(values, [0, 2, 4, 5]).axes[0], "best epoch")
    assert_array_equal(dots.get_xdata(), [5])


def test_nothing_but_nan_is_said_not_drawn():
    figure = learning(np.full((4, 3, 5), np.nan), [0, 0, 0])
    assert [(len(axes.lines), texts(axes)) for axes in figure.axes] == [(0, ["no values"])] * 2
    assert png(figure)


@given(members=st.integers(1, 5), epochs=st.integers(1, 7), seed=st.integers(0, 2**31), missing=st.floats(0, 1))
@settings(deadline=None, max_examples=6)
def test_any_pattern_of_nan_is_drawn_without_a_warning(members, epochs, seed, missing):
    rng = np.random.default_rng(seed)
    values = rng.uniform(size=(4, members, epochs))
    values[rng.uniform(size=values.shape) < missing] = np.nan
    figure = learning(values, rng.integers(0, epochs + 1, members).tolist())
    for line in (line for axes in figure.axes for line in axes.lines):
        xs = np.asarray(line.get_xdata())
        assert ((xs >= 1) & (xs <= epochs)).all()


def test_attention_curves_have_a_panel_per_statistic_with_fitting_limits():
    share, nothing = np.random.default_rng(2).uniform(0.4, 0.6, (3, 5)), np.full((3, 5), np.nan)
    statistics = {
        "entropy / log K": (share, share / 2),
        "effective number of instances": (1.5 + share, 2 + share),
        "mass on positives": (share, nothing),
        "hit@1": (share, nothing),
    }
    figure = plots.attention_curves(statistics, np.array([1, 3, 5]))
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == list(statistics), "and no empty panel is left"
    entropy, instances, mass, _ = panels.values()
    low, high = entropy.get_ylim()
    assert -0.1 < low < 0 and 1 < high < 1.1 and 0.9 < instances.get_ylim()[0] < 1
    assert {to_hex(line.get_color()) for line in mass.lines} == {style.POSITIVE.lower()}
    negative, positive = drawn(entropy, "mean")
    assert to_hex(negative.get_color()) == style.NEGATIVE.lower()
    assert_allclose(positive.get_ydata(), share.mean(axis=0))
    assert_array_equal([dots.get_xdata() for dots in drawn(entropy, "best epoch")], [[1, 3, 5]] * 2)


def test_curves_refuse_nothing():
    with pytest.raises(InputError, match="curves"):
        plots.attention_curves({}, np.array([1]))
    with pytest.raises(InputError, match="train_loss"):
        learning(np.zeros((4, 0, 3)), [])


# --- Maps and scores ----------------------------------------------------------------------------


def test_confusion_matrix_has_counts_and_row_percentages():
    (axes,) = plots.confusion_matrix(np.array([[90, 10], [1, 3]]), ["no", "yes"]).axes
    assert texts(axes) == ["90\n90.0 %", "10\n10.0 %", "1\n25.0 %", "3\n75.0 %"]
    places = [text.get_position() for text in axes.texts]
    assert places == [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)]
    assert axes.get_ylim() == (2, 0), "the first class is on top"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]
    (axes,) = plots.confusion_matrix(np.array([[2, 2], [0, 0]]), ["a", "b"]).axes
    assert texts(axes) == ["2\n50.0 %", "2\n50.0 %", "0", "0"], "an absent class has no percentage"


def test_confusion_matrix_wraps_long_names_and_wants_all_of_them():
    names = ["negative (no tumour found in it)", "positive"]
    axes = plots.confusion_matrix(np.eye(2, dtype=int), names).axes[0]
    assert "\n" in axes.get_yticklabels()[0].get_text()
    with pytest.raises(InputError, match=r"row labels = \['only one'\]: expected 2"):
        plots.confusion_matrix(np.eye(2, dtype=int), ["only one"])


def test_heat_map_leaves_nan_cells_empty():
    values = np.array([[0.5, np.nan, 0.75], [1.0, 2.0, 3.0]])
    axes, bar = plots.heat_map(values, ["r", "s"], ["a", "b", "c"], "rows", "columns", "AUC").axes
    assert texts(axes) == ["0.5", "0.75", "1", "2", "3"]
    assert bar.get_ylabel() == "AUC"
    plots.heat_map(np.full((1, 1), np.nan), ["r"], ["a"], "rows", "columns", "AUC")
    plots.heat_map(np.ones((1, 2)), ["r"], ["a", "b"], "rows", "columns", "AUC")


def test_roc_curves_draw_members_and_ensemble_and_enlarge_a_crowded_corner():
    good = (np.array([0, 0, 0.02, 1]), np.array([0, 0.99, 1, 1]))
    poor = (np.array([0, 0.4, 1]), np.array([0, 0.6, 1]))
    figure = plots.roc_curves([good, good], good, [0.99, 0.97], 0.995)
    whole, corner = figure.axes
    assert len(drawn(whole, "member")) == 2
    (ensemble,) = drawn(whole, "ensemble")
    assert_array_equal(ensemble.get_xydata(), np.stack(good, axis=1))
    assert (corner.get_xlim()[1], corner.get_ylim()[0]) == pytest.approx((0.05, 0.95))
    members = "2 members, AUC 0.9800 on average (0.9700 to 0.9900)"
    assert legend_texts(figure) == ["ensemble, AUC 0.9950", members, "chance"]
    (only,) = plots.roc_curves([poor, good, poor], poor, [0.6, 0.9, 0.6], 0.6).axes
    assert len(drawn(only, "member")) == 3
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
    points = next(line for line in upper.lines if line.get_marker() == "o")
    assert_array_equal(points.get_xydata(), [[0.6, 0.5], [0.9, 0.95]])
    tops = [np.asarray(bar.vertices)[1] for bar in lower.collections[0].get_paths()]
    assert_allclose(tops, [[0.6, 4], [0.9, 96]])
    assert "gap (ECE 0.050)" in legend_texts(figure)
    assert png(plots.reliability_diagram(np.full(2, np.nan), np.full(2, np.nan), np.zeros(2, int), 0.0))


# --- Series -------------------------------------------------------------------------------------


def test_lines_with_band_hold_the_numbers():
    x, middle = np.array([50, 100, 200]), np.array([0.7, 0.8, 0.9])
    series = {"gated": (middle, middle - 0.1, middle + 0.1), "mean": (middle / 2, middle / 3, middle)}
    figure = plots.lines_with_band(x, series, "training bags", "test AUC", log_x=True)
    (axes,) = figure.axes
    assert_array_equal(axes.lines[0].get_ydata(), middle)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50", "100", "200"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training bags", "test AUC")
    assert legend_texts(figure) == ["gated", "mean"]
    outline = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert {*outline[:, 1].round(6)} == {0.6, 0.7, 0.8, 0.9, 1.0}


def test_many_series_all_look_different():
    x = np.array([1.0, 2.0])
    (axes,) = plots.loglog_lines(x, {f"series {number}": x + number for number in range(10)}, "x", "y").axes
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}) == 10


def test_loglog_lines_leave_out_what_has_no_logarithm():
    y = np.array([100.0, 0.0, -1.0, np.nan, 10.0])
    (axes,) = plots.loglog_lines(np.arange(1, 6), {"a": y}, "members", "time (µs)").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert_array_equal(axes.lines[0].get_ydata(), [100, np.nan, np.nan, np.nan, 10])


def test_panels_share_one_legend_and_one_look_per_name():
    x, y = np.array([1, 10]), np.array([0.5, 0.6])
    two, one = {"a": (y, y - 0.1, y + 0.1), "b": (y, y, y)}, {"b": (y / 2, y / 4, y)}
    figure = plots.panels_with_band(x, {"AUC": two, "hit@1": one}, "members", log_x=True)
    first, second = figure.axes
    assert legend_texts(figure) == ["a", "b"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["AUC", "hit@1"]
    assert to_hex(first.lines[1].get_color()) == to_hex(second.lines[0].get_color())
    assert_array_equal(second.lines[0].get_ydata(), y / 2)
    assert not plots.panels_with_band(x, {"AUC": one}, "members").legends
    with pytest.raises(InputError):
        plots.panels_with_band(x, {}, "members")


def test_seeds_by_group_show_each_seed_and_the_mean_of_the_defined_ones():
    groups = {"gated": (np.array([0.2, 0.4, np.nan]), 0.2, 0.4), "plain": (np.array([0.5, 0.7, 0.6]), 0.55, 0.65)}
    (axes,) = plots.seeds_by_group({"AUC": groups}).axes
    means = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() == "D"]
    assert_allclose(np.concatenate(means), [0.3, 0.6])
    joined = plots.seeds_by_group({"AUC": groups}, join=True)
    assert len(joined.axes[0].lines) == len(axes.lines) + 3  # one for each seed
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gated", "plain"]
    assert png(plots.seeds_by_group({"AUC": {"none": (np.full(2, np.nan), np.nan, np.nan)}}))


# --- All figures --------------------------------------------------------------------------------

CURVE = (np.array([0, 0.1, 1.0]), np.array([0, 0.9, 1.0]))
BINS = np.array([0.6, 0.9])
IMAGES, MASK, WEIGHTS = bags(2, 3)
HIT = curves(2, 3)[0]
TEN = [f"class number {number}" for number in range(10)]
PATCHES = np.full((2, 4, 4, 3), 200, np.uint8)
EVERY_FIGURE = {
    "images": lambda: plots.bags_figure(IMAGES, MASK, ["a", "b"], WEIGHTS, positive=MASK),
    "bars": lambda: plots.bags_figure(None, MASK, ["a", "b"], WEIGHTS, WEIGHTS / 9, MASK),
    "learning": lambda: learning(curves(3, 4), [1, 2, 4]),
    "attention": lambda: plots.attention_curves({"hit@1": (HIT, HIT / 2)}, np.ones(2, int)),
    "confusion": lambda: plots.confusion_matrix(np.array([[5, 1], [2, 9]]), ["a", "b"]),
    "confusion of ten": lambda: plots.confusion_matrix(np.arange(100).reshape(10, 10), TEN),
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
each_figure = pytest.mark.parametrize("name", EVERY_FIGURE)


@functools.cache
def figure_of(name: str) -> Figure:
    return EVERY_FIGURE[name]()


@each_figure
def test_same_input_gives_same_bytes_whatever_the_settings(name):
    first = png(figure_of(name))
    with rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        second = EVERY_FIGURE[name]()
    assert first == png(second)


@each_figure
def test_legends_and_labels_stay_on_the_page_and_off_the_axes(name):
    figure = figure_of(name)
    drawn_box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn_box.x0, drawn_box.y0) > -0.02
    assert drawn_box.x1 < width + 0.02 and drawn_box.y1 < height + 0.02
    for legend in figure.legends:
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


@each_figure
def test_a_figure_comes_laid_out(name):
    figure = figure_of(name)
    before = [axes.get_position(original=True).bounds for axes in figure.axes]
    png(figure)
    assert figure.get_layout_engine() is None
    assert before == [axes.get_position(original=True).bounds for axes in figure.axes]


def test_pyplot_is_not_imported():
    program = (
        "import sys, numpy as np; from mil_jax import plots;"
        "plots.loglog_lines(np.ones(2), {'a': np.ones(2)}, 'x', 'y');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
