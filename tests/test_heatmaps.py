"""Maps of slides: geometry, ranks, what is masked, and that figures depend on the patches and not on their order."""

import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.metrics import roc_auc_score

from mil_jax import plots
from mil_jax.datasets.thumbnails import thumbnail_for
from mil_jax.errors import InputError
from mil_jax.heatmaps import (
    Map,
    cut_tiles,
    extreme_patches,
    geojson,
    grid_step,
    make_map,
    patch_auc,
    percentiles,
    thumbnail_scale,
)  # fmt: skip
from mil_jax.plots.slides import paint


def grid(columns: int, rows: int, step: float = 20.0) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * step


def draw_map(members: int = 4, count: int = 30, order: np.ndarray | None = None, size: float = 32) -> Map:
    rng = np.random.default_rng(0)
    order = np.arange(count) if order is None else order
    weights = rng.dirichlet(np.ones(count), size=members)
    truth = (rng.random(count) < 0.4).astype(int)
    place = grid(6, -(-count // 6))[:count]
    return make_map(weights[:, order], place[order], name="a", patch_size=size, truth=truth[order])


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=60)
    return np.array(Image.open(file))


def test_ranks_and_auc_are_those_of_the_definition():
    assert_allclose(percentiles(np.array([3.0, 1.0, 1.0, 9.0])), [0.625, 0.25, 0.25, 0.875])
    rng = np.random.default_rng(1)
    weight, truth = rng.integers(0, 9, 200) / 9, rng.integers(-1, 2, 200)
    heat = make_map(weight, grid(20, 10), name="a", truth=truth)
    assert patch_auc(heat) == pytest.approx(roc_auc_score(truth[truth >= 0], weight[truth >= 0]), abs=1e-12)
    for one_kind in (None, np.ones(200, int), np.full(200, -1)):
        assert np.isnan(patch_auc(make_map(weight, grid(20, 10), name="a", truth=one_kind)))


def test_what_members_rank_apart_is_masked_however_sharp_they_are():
    weight = np.arange(1.0, 11)
    other = weight.copy()
    other[[0, 9]] = other[[9, 0]]
    alike = make_map(np.array([weight, weight**5, weight**9]), grid(5, 2), name="a")
    assert not alike.masked.any() and (alike.rank_spread < 1e-12).all()
    assert_array_equal(np.flatnonzero(make_map(np.array([weight, other]), grid(5, 2), name="a").masked), [0, 9])
    alone = make_map(weight, grid(5, 2), name="a")
    assert alone.members == 1 and not alone.masked.any() and (alone.spread == 0).all()
    assert make_map(np.array([weight, weight * np.nan]), grid(5, 2), name="a").members == 1


def test_the_step_is_the_grids_own_where_two_grids_are_a_pixel_apart():
    assert grid_step(np.concatenate([grid(6, 6), grid(6, 6) + np.array([201, 1])])) == 20
    assert grid_step(np.zeros((1, 2))) == 1


def test_pixels_are_means_of_the_patches_over_them_and_y_grows_downwards():
    heat = make_map(np.array([0.1, 0.3, 0.6]), np.array([[0, 0], [20, 0], [0, 100]]), name="a", patch_size=40)
    canvas = paint(heat, np.array([[1.0, 3.0, 5.0]]))
    assert_allclose(canvas.extent, (0, 60, 140, 0))
    layer = canvas.layers[0]
    height, width = layer.shape
    at = {(10, 10): 1, (30, 10): 2, (50, 10): 3, (10, 120): 5, (50, 120): np.nan, (10, 70): np.nan}
    for (x, y), value in at.items():
        assert_allclose(layer[int(y / 140 * height), int(x / 60 * width)], value)
    axes = plots.slide_map(heat).axes[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


@pytest.mark.parametrize("shown", ["rank", "weight"])
def test_the_order_of_patches_changes_no_pixel(shown):
    order = np.random.default_rng(2).permutation(30)
    slide = np.random.default_rng(3).integers(0, 256, (140, 140, 3)).astype(np.uint8)
    first, second = (pixels(plots.slide_map(draw_map(order=o), slide, shown=shown)) for o in (None, order))
    assert_array_equal(first, second)


@pytest.mark.parametrize("heat", [
    draw_map(members=1), draw_map(count=1, size=5.0),
    make_map(np.full((3, 6), 1 / 6), grid(3, 2), name="flat"),
    make_map(np.full((3, 6), -2.0), grid(3, 2), name="flat", kind="score", unit="um"),
])  # fmt: skip
@pytest.mark.parametrize("shown", ["rank", "weight"])
def test_no_map_is_blank(heat, shown):
    figure = plots.slide_map(heat, shown=shown)
    panel = figure.axes[0].images[0].get_array()
    assert panel is not None and (panel[..., 3] == 255).any()
    assert np.ptp(pixels(figure)) > 0


def test_many_patches_are_few_pixels():
    heat = make_map(np.random.default_rng(0).random(90_000), grid(300, 300), name="a")
    assert max(paint(heat, heat.rank[None]).layers.shape) <= 2400


def test_the_outermost_patches_lie_apart_and_are_cut_where_they_lie():
    heat = draw_map(size=20)
    slide = np.zeros((100, 120, 3), np.uint8)
    slide[..., 0], slide[..., 1] = np.arange(120), np.arange(100)[:, None]
    highest, lowest = extreme_patches(heat, 4)
    assert not set(highest) & set(lowest) and not heat.masked[[*highest, *lowest]].any()
    assert (np.diff(heat.weight[highest]) <= 0).all() and (np.diff(heat.weight[lowest]) >= 0).all()
    wide = extreme_patches(draw_map(members=1, size=32), 8)[0]
    place = draw_map().position[wide]
    apart = np.abs(place[:, None] - place).max(axis=2)[~np.eye(len(wide), dtype=bool)]
    assert (apart >= 32).all()
    assert thumbnail_scale(heat, slide) == 1 and thumbnail_scale(heat, slide[::4, ::4]) == 0.25
    tiles = cut_tiles(slide, heat, highest)
    assert tiles is not None and cut_tiles(slide[::4, ::4], heat, highest) is None
    assert_array_equal(tiles.images[:, 0, 0, :2], heat.position[highest])
    beyond = cut_tiles(slide, heat, np.array([5]), scale=1.1)
    assert beyond is not None and (beyond.images[0, :, -1] == 255).all()
    first, second = (pixels(plots.extreme_tiles(heat, tiles, tiles)) for _ in range(2))
    assert_array_equal(first, second)


def test_geojson_has_a_closed_ring_of_five_points_for_each_patch():
    heat = draw_map()
    collection = json.loads(json.dumps(geojson(heat, colours=plots.patch_colours(heat)), allow_nan=False))
    assert len(collection["features"]) == 30 and collection["properties"]["unit"] == "px"
    for feature, (x, y), masked, rank in zip(
        collection["features"], heat.position, heat.masked, heat.rank, strict=True
    ):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring == [[x, y], [x + 32, y], [x + 32, y + 32], [x, y + 32], [x, y]]
        properties = feature["properties"]
        assert properties["objectType"] == "detection" and ("classification" in properties) == masked
        assert properties["measurements"]["rank"] == pytest.approx(rank, rel=1e-5)


def test_micrometres_become_pixels_where_their_size_is_known():
    heat = make_map(np.array([0.5, 0.5]), np.array([[0, 0], [256, 0]]), name="a", unit="um", patch_size=256)
    for mpp, unit, side in ((None, "um", 256), (0.5, "px", 512)):
        collection = geojson(heat, mpp)
        ring = collection["features"][1]["geometry"]["coordinates"][0]
        assert collection["properties"]["unit"] == unit and ring[0] == [side, 0] and ring[2] == [2 * side, side]


def test_thumbnails_are_found_by_name_and_stand_on_white(tmp_path):
    assert thumbnail_for(tmp_path, "a") is None
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "a.v1.png")
    slide = thumbnail_for(tmp_path, "a.v1")
    assert slide is not None and slide.shape == (3, 4, 3) and (slide == 255).all()
    (tmp_path / "b.TIF").write_bytes(b"no picture")
    with pytest.raises(InputError, match="expected a picture"):
        thumbnail_for(tmp_path, "b")


@pytest.mark.parametrize(("change", "message"), [
    ({"position": None}, "position = None: expected coordinates"),
    ({"position": grid(3, 1)}, "position.shape = .* expected .4, 2."),
    ({"position": grid(2, 2) * np.nan}, "position = .* finite"),
    ({"patch_size": 0}, "patch_size = 0: expected a number, more than 0"),
    ({"weights": np.full(4, np.nan)}, "weights = .* at least one member"),
    ({"weights": np.ones((2, 0))}, "weights.shape"),
    ({"truth": np.array([1, 0])}, "truth = .* each of 4 patches"),
])  # fmt: skip
def test_bad_input_is_named(change, message):
    given = {"weights": np.ones(4), "position": grid(2, 2), "name": "a", "patch_size": 20.0} | change
    with pytest.raises(InputError, match=message):
        make_map(given.pop("weights"), given.pop("position"), **given)


def test_a_heading_is_as_wide_as_its_figure():
    """A narrow map of one member: nothing of the name and the AUC is cut off."""
    place = np.array([[x, y] for y in range(4) for x in range(3)], float)
    heat = make_map(np.arange(12.0), place, name="patient01_slide0_of_a_long_name", truth=np.arange(12) > 8)
    figure = plots.slide_map(heat)
    figure.draw_without_rendering()
    heading = figure._suptitle  # type: ignore[attr-defined]
    assert heading.get_text().replace("\n", " ").endswith("AUC of patches 1.00")
    assert heading.get_window_extent().x1 <= figure.bbox.x1
