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
from matplotlib.patches import StepPatch

from mil_jax import plots
from mil_jax.errors import InputError


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
    train_loss, val_loss, train_accuracy, val_accuracy = values
    return plots.learning_curves(
        train_loss, val_loss, train_accuracy, val_accuracy, np.array(best_epoch, dtype=np.int32)
    )


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
    assert texts(figure.axes[0]) == ["0.70", "0.20", "0.10"]
    assert texts(figure.axes[1]) == ["0.00", "0.00", "1.00"]
    for axes in figure.axes:
        for picture, text in zip(axes.images, axes.texts, strict=True):
            left, right, _, top = picture.get_extent()
            x, y = text.get_position()
            assert x == pytest.approx((left + right) / 2)
            assert top - plots.WEIGHT_LINE < y < top, "y grows downwards"


def test_bags_figure_keeps_the_order_of_the_bag():
    instances, mask, attention = bags(1, 4)
    axes = plots.bags_figure(instances, mask, ["bag"], attention).axes[0]
    for slot in range(4):
        np.testing.assert_allclose(image(axes, slot), instances[0, slot], rtol=1e-6)
    lefts = [picture.get_extent()[0] for picture in axes.images]
    assert lefts == sorted(lefts)


def test_bags_figure_frames_grow_with_the_weight():
    instances, mask, _ = bags(1, 3)
    attention = np.array([[0.1, 0.6, 0.3]], np.float32)
    frames = plots.bags_figure(instances, mask, ["bag"], attention).axes[0].patches
    widths = [frame.get_linewidth() for frame in frames]
    assert widths[0] < widths[2] < widths[1]
    assert len({to_hex(frame.get_edgecolor()) for frame in frames}) == 3


def test_bags_figure_scale_fits_small_weights():
    instances, mask, _ = bags(1, 12)
    figure = plots.bags_figure(instances, mask, ["bag"], np.full((1, 12), 1 / 12, np.float32))
    assert legend_texts(figure) == ["weight 0", "0.05", "0.1"]


def test_bags_figure_prints_the_spread():
    instances, mask, _ = bags(1, 2)
    attention, spread = np.array([[0.9, 0.1]]), np.array([[0.04, 0.031]])
    figure = plots.bags_figure(instances, mask, ["bag"], attention, spread)
    assert texts(figure.axes[0]) == ["0.90 ± 0.04", "0.10 ± 0.03"]


def test_bags_figure_leaves_out_padding():
    instances, mask, attention = bags(3, 4)
    mask[0, 1:], mask[1, [0, 2]], mask[2] = False, False, False
    instances[~mask] = 1e6  # must not stretch the grey scale either
    figure = plots.bags_figure(instances, mask, ["a", "b", "c"], attention)
    assert [len(axes.images) for axes in figure.axes] == [1, 2, 0]
    np.testing.assert_allclose(image(figure.axes[1], 0), instances[1, 1], rtol=1e-6)
    assert texts(figure.axes[2]) == ["no\ninstance"]


def test_bags_figure_points_at_positive_instances():
    instances, mask, attention = bags(1, 3)
    positive = np.array([[False, True, False]])
    figure = plots.bags_figure(instances, mask, ["bag"], attention, positive=positive)
    axes = figure.axes[0]
    (mark,) = axes.lines
    left, right, bottom, _ = axes.images[1].get_extent()
    (x,), (y,) = np.asarray(mark.get_data())
    assert x == pytest.approx((left + right) / 2)
    assert y > bottom
    assert legend_texts(figure)[-1] == "truly positive instance"


def test_bags_figure_of_plain_bags_has_no_weights_and_no_key():
    instances, mask, _ = bags(2, 3)
    figure = plots.bags_figure(instances, mask, ["a", "b"])
    assert not figure.legends
    assert not any(axes.texts for axes in figure.axes)


@given(slots=st.integers(1, 30), limit=st.integers(2, 30))
@settings(deadline=None, max_examples=10)
def test_bags_figure_shows_at_most_the_limit_and_counts_the_rest(slots: int, limit: int):
    instances, mask, attention = bags(1, slots)
    axes = plots.bags_figure(instances, mask, ["bag"], attention, limit=limit).axes[0]
    if slots <= limit:
        assert len(axes.images) == slots
        assert len(axes.texts) == slots
        return
    assert len(axes.images) == limit - 1
    hidden = np.sort(attention[0])[: slots - limit + 1]
    assert texts(axes)[-1] == f"+{len(hidden)} more\n≤ {hidden.max():.2g} each"
    extents = [picture.get_extent() for picture in axes.images]
    assert max(right for _, right, _, _ in extents) <= 10 * (plots.TILE + plots.TILE_GAP)
    heaviest = np.sort(np.argsort(-attention[0])[: limit - 1])
    assert texts(axes)[:-1] == [f"{attention[0, slot]:.2f}" for slot in heaviest]


@given(
    bag_count=st.integers(1, 7),
    sizes=st.lists(st.integers(0, 12), min_size=7, max_size=7),
    title=st.text("ab ·", max_size=60),
)
@settings(deadline=None, max_examples=5)
def test_bags_do_not_overlap_and_stay_on_the_page(bag_count: int, sizes: list[int], title: str):
    instances, _, attention = bags(bag_count, 12)
    mask = np.arange(12) < np.array(sizes[:bag_count])[:, None]
    figure = plots.bags_figure(instances, mask, [title] * bag_count, attention, heading="heading")
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box is not None for box in boxes)
    width, height = figure.bbox.size
    for number, box in enumerate(boxes):
        assert box is not None
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
        for other in boxes[:number]:
            assert other is not None
            assert min(box.x1, other.x1) - max(box.x0, other.x0) <= 1 or (
                min(box.y1, other.y1) - max(box.y0, other.y0) <= 1
            )


def test_bags_figure_draws_colour_and_bytes():
    instances, mask, _ = bags(1, 2, 3)
    figure = plots.bags_figure(instances, mask, ["bag"])
    np.testing.assert_allclose(image(figure.axes[0], 0), instances[0, 0], rtol=1e-6)
    as_bytes = np.round(instances * 255).astype(np.uint8)
    figure = plots.bags_figure(as_bytes, mask, ["bag"])
    np.testing.assert_allclose(image(figure.axes[0], 0), as_bytes[0, 0] / 255)


def test_bags_figure_takes_grey_images_with_a_channel_and_jax_arrays():
    instances, mask, attention = bags(2, 3)
    plain = plots.bags_figure(instances, mask, ["a", "b"], attention)
    same = plots.bags_figure(jnp.asarray(instances[..., None]), jnp.asarray(mask), ["a", "b"], jnp.asarray(attention))
    assert png(plain) == png(same)


def test_bags_figure_stretches_other_floats():
    instances, mask, _ = bags(1, 3)
    standardised = (instances - 0.5) * 6
    axes = plots.bags_figure(standardised, mask, ["bag"]).axes[0]
    values = np.stack([image(axes, number) for number in range(3)])
    assert values.min() == 0 and values.max() == 1


def test_bags_figure_refuses_what_it_cannot_draw():
    instances, mask, _ = bags(2, 3)
    with pytest.raises(InputError, match="titles"):
        plots.bags_figure(instances, mask, ["only one"])
    with pytest.raises(InputError, match="limit = 1"):
        plots.bags_figure(instances, mask, ["a", "b"], limit=1)
    with pytest.raises(InputError, match="at least one bag"):
        plots.bags_figure(instances[:0], mask[:0], [])
    with pytest.raises(InputError, match=r"instances\.shape"):
        plots.bags_figure(np.zeros((2, 3, 6, 6, 2)), mask, ["a", "b"])


# --- Curves over epochs -------------------------------------------------------------------------


def test_learning_curves_mark_the_best_epoch_of_each_member():
    values, best = curves(3, 6), [2, 6, 4]
    figure = learning(values, best)
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch", "epoch"]
    labels = ["loss (nats per bag)", "accuracy (share of bags)"]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    for axes, panel in zip(figure.axes, (values[1], values[3]), strict=True):
        (dots,) = drawn(axes, "best epoch")
        np.testing.assert_array_equal(dots.get_xdata(), best)
        np.testing.assert_array_equal(dots.get_ydata(), panel[[0, 1, 2], [1, 5, 3]])


def test_learning_curves_draw_members_thin_and_their_mean_bold():
    values = curves(5, 4)
    axes = learning(values, [1] * 5).axes[0]
    members, means = drawn(axes, "member"), drawn(axes, "mean")
    assert (len(members), len(means)) == (10, 2)
    assert max(line.get_linewidth() for line in members) < min(m.get_linewidth() for m in means)
    np.testing.assert_array_equal(means[0].get_xdata(), [1, 2, 3, 4])
    for mean, panel in zip(means, values[:2], strict=True):
        np.testing.assert_allclose(mean.get_ydata(), panel.mean(axis=0), rtol=1e-6)
    assert to_hex(means[0].get_color()) != to_hex(means[1].get_color())


def test_one_member_is_drawn_once():
    figure = learning(curves(1, 5), [3])
    for axes in figure.axes:
        assert not drawn(axes, "member")
        assert len(drawn(axes, "mean")) == 2
    assert legend_texts(figure) == ["training", "validation", "best epoch"]


def test_the_mean_is_solid_while_all_run_dotted_then_and_ends_below_half():
    values = np.tile(np.array([[0.4], [0.2], [0.0], [0.6]]), (4, 1, 6))
    values[:, 2, 4:] = 0.1
    for member, epochs_run in enumerate((6, 4, 3, 2)):
        values[:, member, epochs_run:] = np.nan
    figure = learning(values, [1, 1, 1, 1])
    axes = figure.axes[0]
    np.testing.assert_allclose(drawn(axes, "mean")[0].get_ydata(), [0.3, 0.3, np.nan, np.nan, np.nan, np.nan])
    dotted = drawn(axes, "mean of some")[0]
    np.testing.assert_array_equal(dotted.get_xdata(), [2, 3, 4])
    np.testing.assert_allclose(dotted.get_ydata(), [0.3, 0.2, 0.3])
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
    axes = learning(values, [0, 2, 4, 5]).axes[0]
    (dots,) = drawn(axes, "best epoch")
    np.testing.assert_array_equal(dots.get_xdata(), [5])


def test_nothing_but_nan_is_said_not_drawn():
    figure = learning(np.full((4, 3, 5), np.nan), [0, 0, 0])
    for axes in figure.axes:
        assert not axes.lines
        assert texts(axes) == ["no values"]
    assert png(figure)


def test_one_epoch_is_a_visible_dot():
    axes = learning(curves(2, 1), [1, 1]).axes[0]
    assert all(line.get_marker() == "o" for line in axes.lines)
    assert [tick for tick in axes.get_xticks() if 0.5 < tick < 1.5] == [1]


@given(
    members=st.integers(1, 5),
    epochs=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    missing=st.floats(0, 1),
)
@settings(deadline=None, max_examples=6)
def test_any_pattern_of_nan_is_drawn_without_a_warning(members, epochs, seed, missing):
    rng = np.random.default_rng(seed)
    values = rng.uniform(size=(4, members, epochs))
    values[rng.uniform(size=values.shape) < missing] = np.nan
    figure = learning(values, rng.integers(0, epochs + 1, members).tolist())
    for axes in figure.axes:
        for line in axes.lines:
            xs = np.asarray(line.get_xdata())
            assert ((xs >= 1) & (xs <= epochs)).all()


def test_attention_curves_have_a_panel_per_statistic_with_fitting_limits():
    rng = np.random.default_rng(2)
    share, nothing = rng.uniform(0.4, 0.6, (3, 5)), np.full((3, 5), np.nan)
    statistics = {
        "entropy / log K": (share, share / 2),
        "effective number of instances": (1.5 + share, 2 + share),
        "mass on positives": (share, nothing),
        "hit@1": (share, nothing),
    }
    best = np.array([1, 3, 5])
    figure = plots.attention_curves(statistics, best)
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == list(statistics), "and no empty panel is left"
    low, high = panels["entropy / log K"].get_ylim()
    assert -0.1 < low < 0 and 1 < high < 1.1
    assert 0.9 < panels["effective number of instances"].get_ylim()[0] < 1
    colours = {to_hex(line.get_color()) for line in panels["mass on positives"].lines}
    assert colours == {plots.POSITIVE.lower()}
    negative, positive = drawn(panels["entropy / log K"], "mean")
    assert to_hex(negative.get_color()) == plots.NEGATIVE.lower()
    np.testing.assert_allclose(positive.get_ydata(), share.mean(axis=0))
    for dots in drawn(panels["entropy / log K"], "best epoch"):
        np.testing.assert_array_equal(dots.get_xdata(), best)


def test_curves_refuse_nothing():
    with pytest.raises(InputError, match="curves"):
        plots.attention_curves({}, np.array([1]))
    with pytest.raises(InputError, match="train_loss"):
        learning(np.zeros((4, 0, 3)), [])


# --- Scores -------------------------------------------------------------------------------------


def test_confusion_matrix_has_counts_and_row_percentages():
    figure = plots.confusion_matrix(np.array([[90, 10], [1, 3]]), ["no", "yes"])
    (axes,) = figure.axes
    assert texts(axes) == ["90\n90.0 %", "10\n10.0 %", "1\n25.0 %", "3\n75.0 %"]
    places = [text.get_position() for text in axes.texts]
    assert places == [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)]
    assert axes.get_ylim() == (2, 0), "the first class is on top"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]


def test_confusion_matrix_of_an_absent_class_has_no_percentage():
    axes = plots.confusion_matrix(np.array([[2, 2], [0, 0]]), ["a", "b"]).axes[0]
    assert texts(axes) == ["2\n50.0 %", "2\n50.0 %", "0", "0"]


def test_confusion_matrix_wraps_long_names_and_wants_all_of_them():
    names = ["negative (no tumour found in it)", "positive"]
    axes = plots.confusion_matrix(np.eye(2, dtype=int), names).axes[0]
    assert "\n" in axes.get_yticklabels()[0].get_text()
    with pytest.raises(InputError, match="labels"):
        plots.confusion_matrix(np.eye(2, dtype=int), ["only one"])


def test_heat_map_leaves_nan_cells_empty():
    values = np.array([[0.5, np.nan, 0.75], [1.0, 2.0, 3.0]])
    figure = plots.heat_map(values, ["r", "s"], ["a", "b", "c"], "rows", "columns", "AUC")
    axes, bar = figure.axes
    assert texts(axes) == ["0.5", "0.75", "1", "2", "3"]
    assert bar.get_ylabel() == "AUC"
    bare = plots.heat_map(values, ["r", "s"], ["a", "b", "c"], "rows", "columns", "AUC", False)
    assert not texts(bare.axes[0])
    plots.heat_map(np.full((1, 1), np.nan), ["r"], ["a"], "rows", "columns", "AUC")
    plots.heat_map(np.ones((1, 2)), ["r"], ["a", "b"], "rows", "columns", "AUC")


def test_roc_curves_draw_members_and_ensemble_and_enlarge_a_crowded_corner():
    good = (np.array([0, 0, 0.02, 1]), np.array([0, 0.99, 1, 1]))
    poor = (np.array([0, 0.4, 1]), np.array([0, 0.6, 1]))
    figure = plots.roc_curves([good, good], good, [0.99, 0.97], 0.995)
    whole, corner = figure.axes
    assert len(drawn(whole, "member")) == 2
    (ensemble,) = drawn(whole, "ensemble")
    np.testing.assert_array_equal(ensemble.get_xydata(), np.stack(good, axis=1))
    assert corner.get_xlim()[1] == pytest.approx(0.05)
    assert corner.get_ylim()[0] == pytest.approx(0.95)
    assert legend_texts(figure) == [
        "ensemble, AUC 0.9950",
        "2 members, AUC 0.9800 on average (0.9700 to 0.9900)",
        "chance",
    ]
    (only,) = plots.roc_curves([poor, good, poor], poor, [0.6, 0.9, 0.6], 0.6).axes
    assert len(drawn(only, "member")) == 3


def test_roc_curves_of_one_member_show_one_curve():
    curve = (np.array([0, 0.5, 1]), np.array([0, 0.7, 1]))
    figure = plots.roc_curves([curve], curve, [0.6], 0.6)
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
    np.testing.assert_array_equal(points.get_xydata(), [[0.6, 0.5], [0.9, 0.95]])
    bars = lower.collections[0].get_paths()
    tops = [np.asarray(bar.vertices)[1] for bar in bars]
    np.testing.assert_allclose(tops, [[0.6, 4], [0.9, 96]])
    assert "gap (ECE 0.050)" in legend_texts(figure)
    nothing = np.full(2, np.nan)
    assert png(plots.reliability_diagram(nothing, nothing, np.zeros(2, int), 0.0))


def test_attention_histogram_shows_shares_of_each_group():
    figure = plots.attention_histogram(np.array([0.9, 0.92, 0.1, 1.0]), np.array([0.01, 0.01]))
    (axes,) = figure.axes
    outlines = [patch for patch in axes.patches if isinstance(patch, StepPatch)]
    heights = [np.sum(outline.get_data()[0]) for outline in outlines]
    assert len(heights) == 4, "a filled and a drawn outline for each group"
    np.testing.assert_allclose(heights, 100)
    assert legend_texts(figure) == ["positive instances (n = 4)", "negative instances (n = 2)"]
    assert png(plots.attention_histogram(np.zeros(0), np.array([0.5])))


# --- Series -------------------------------------------------------------------------------------


def test_lines_with_band_hold_the_numbers():
    x, middle = np.array([50, 100, 200]), np.array([0.7, 0.8, 0.9])
    series = {
        "gated": (middle, middle - 0.1, middle + 0.1),
        "mean": (middle / 2, middle / 3, middle),
    }
    figure = plots.lines_with_band(x, series, "training bags", "test AUC", log_x=True)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), middle)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["50", "100", "200"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training bags", "test AUC")
    assert legend_texts(figure) == ["gated", "mean"]
    outline = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert {*outline[:, 1].round(6)} == {0.6, 0.7, 0.8, 0.9, 1.0}


def test_many_series_all_look_different():
    x = np.array([1.0, 2.0])
    series = {f"series {number}": x + number for number in range(10)}
    (axes,) = plots.loglog_lines(x, series, "x", "y").axes
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 10


def test_loglog_lines_leave_out_what_has_no_logarithm():
    y = np.array([100.0, 0.0, -1.0, np.nan, 10.0])
    (axes,) = plots.loglog_lines(np.arange(1, 6), {"a": y}, "members", "time (µs)").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [100, np.nan, np.nan, np.nan, 10])


def test_panels_share_one_legend_and_one_look_per_name():
    x, y = np.array([1, 10]), np.array([0.5, 0.6])
    two, one = {"a": (y, y - 0.1, y + 0.1), "b": (y, y, y)}, {"b": (y / 2, y / 4, y)}
    figure = plots.panels_with_band(x, {"AUC": two, "hit@1": one}, "members", log_x=True)
    first, second = figure.axes
    assert legend_texts(figure) == ["a", "b"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["AUC", "hit@1"]
    assert to_hex(first.lines[1].get_color()) == to_hex(second.lines[0].get_color())
    np.testing.assert_array_equal(second.lines[0].get_ydata(), y / 2)
    assert not plots.panels_with_band(x, {"AUC": one}, "members").legends
    with pytest.raises(InputError):
        plots.panels_with_band(x, {}, "members")


def test_seeds_by_group_show_each_seed_and_the_mean_of_the_defined_ones():
    groups = {"gated": (np.array([0.2, 0.4, np.nan]), 0.2, 0.4), "plain": (np.array([0.5, 0.7, 0.6]), 0.55, 0.65)}
    (axes,) = plots.seeds_by_group({"AUC": groups}).axes
    means = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(np.concatenate(means), [0.3, 0.6])
    joined = plots.seeds_by_group({"AUC": groups}, join=True)
    assert len(joined.axes[0].lines) == len(axes.lines) + 3  # one for each seed
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gated", "plain"]
    assert png(plots.seeds_by_group({"AUC": {"none": (np.full(2, np.nan), np.nan, np.nan)}}))


# --- All figures --------------------------------------------------------------------------------

CURVE = (np.array([0, 0.1, 1.0]), np.array([0, 0.9, 1.0]))
BINS = np.array([0.6, 0.9])
BAGS = bags(2, 3)
HIT = curves(2, 3)[0]
EVERY_FIGURE = {
    "bags": lambda: plots.bags_figure(*BAGS[:2], ["a", "b"], BAGS[2], positive=BAGS[1]),
    "learning": lambda: learning(curves(3, 4), [1, 2, 4]),
    "attention": lambda: plots.attention_curves({"hit@1": (HIT, HIT / 2)}, np.ones(2, int)),
    "confusion": lambda: plots.confusion_matrix(np.array([[5, 1], [2, 9]]), ["a", "b"]),
    "heat": lambda: plots.heat_map(np.eye(2), ["a", "b"], ["c", "d"], "r", "c", "v"),
    "roc": lambda: plots.roc_curves([CURVE, CURVE], CURVE, [0.9, 0.9], 0.9),
    "precision": lambda: plots.precision_recall_curves([CURVE, CURVE], CURVE, [0.9, 0.9], 0.9, 0.3),
    "reliability": lambda: plots.reliability_diagram(BINS, BINS, np.array([3, 400]), 0.0),
    "histogram": lambda: plots.attention_histogram(BINS, BINS / 2),
    "band": lambda: plots.lines_with_band(BINS, {"a": (BINS, BINS / 2, BINS * 2)}, "x", "y"),
    "loglog": lambda: plots.loglog_lines(BINS, {"a": BINS}, "x", "y"),
    "panels": lambda: plots.panels_with_band(BINS, {"y": {"a": (BINS, BINS, BINS), "b": (BINS, BINS, BINS)}}, "x"),
    "seeds": lambda: plots.seeds_by_group({"y": {"a": (BINS, 0.6, 0.9), "b": (BINS, 0.7, 0.8)}}, join=True),
}


@functools.cache
def figure_of(name: str) -> Figure:
    return EVERY_FIGURE[name]()


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_same_input_gives_same_bytes_whatever_the_settings(name):
    first = png(figure_of(name))
    with rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        second = EVERY_FIGURE[name]()
    assert first == png(second)


@pytest.mark.parametrize("name", EVERY_FIGURE)
def test_legends_and_labels_stay_on_the_page_and_off_the_axes(name):
    figure = figure_of(name)
    drawn_box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn_box.x0, drawn_box.y0) > -0.02
    assert drawn_box.x1 < width + 0.02 and drawn_box.y1 < height + 0.02
    for legend in figure.legends:
        for axes in figure.axes:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_pyplot_is_not_imported():
    program = (
        "import sys, numpy as np; from mil_jax import plots;"
        "plots.loglog_lines(np.ones(2), {'a': np.ones(2)}, 'x', 'y');"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
