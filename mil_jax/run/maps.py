"""Heat maps of a run: figures, tiles, and GeoJSON for QuPath, of the first bags of each class."""

import json
from pathlib import Path

import numpy as np

from mil_jax import heatmaps, plots
from mil_jax.datasets.cohort import Cohort
from mil_jax.datasets.thumbnails import thumbnail_for
from mil_jax.heatmaps import Map, Tiles
from mil_jax.run.folder import RunFolder

TILES = 6  # of the highest and of the lowest weights


def write_maps(
    run: RunFolder, cohort: Cohort, bags: np.ndarray, attention: np.ndarray, thumbnails: Path | None
) -> None:
    """Writes the maps of some bags; nothing where the bags have no positions.

    Args:
        run: where to.
        cohort: the bags.
        bags: which of them [M].
        attention: their weights [S, M, K].
        thumbnails: a folder with pictures of the slides.
    """
    if not cohort.unit or not run.writes:
        return
    data = cohort.read(bags)
    assert data.position is not None
    ends = np.cumsum(data.sizes)
    for place, size in enumerate(data.sizes):
        here = slice(ends[place] - size, ends[place])
        heat = heatmaps.make_map(
            np.asarray(attention)[:, place, :size],
            data.position[here],
            name=data.bag_names[place],
            unit="um" if cohort.unit == "um" else "px",
            patch_size=cohort.patch_size or None,
            truth=data.instance_label[here],
        )
        picture = None if thumbnails is None else thumbnail_for(thumbnails, heat.name)
        run.write_figure(f"map_{heat.name}", plots.slide_map(heat, picture))
        tiles = [_tiles(heat, index, picture, data.x[here]) for index in heatmaps.extreme_patches(heat, TILES)]
        if all(part is not None and len(part.rows) for part in tiles):
            run.write_figure(f"map_{heat.name}_tiles", plots.extreme_tiles(heat, *tiles))  # type: ignore[arg-type]
        shapes = heatmaps.geojson(heat, colours=plots.patch_colours(heat))
        run.write_text(f"maps/{heat.name}.geojson", json.dumps(shapes) + "\n")


def _tiles(heat: Map, index: np.ndarray, picture: np.ndarray | None, instances: np.ndarray) -> Tiles | None:
    """Some patches as images: the instances themselves where they are images, or cut out of the picture."""
    if instances.dtype == np.uint8 and instances.ndim in (3, 4):
        images = instances[index]
        return Tiles(index, images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1))
    return None if picture is None else heatmaps.cut_tiles(picture, heat, index)
