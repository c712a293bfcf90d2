"""What a bag's instances weigh, at their places: the mean over members, and what the members disagree on.

A map is made of any scores of instances: attention, or a classifier's scores of instances. Members are compared by the
ranks that they give the instances of the bag, since one member's weights may be ten times as sharp as another's.
Positions are those of the patches' **top left corners**, x to the right and y downwards: pixels of level 0 (CLAM,
TRIDENT) or micrometres (STAMP). Everything here is arrays in, arrays out; `mil_jax.plots` draws.

Axes: S members, K patches of the bag.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped, UInt8

from mil_jax.errors import InputError, check_choice, check_number
from mil_jax.record import Values

Unit = Literal["px", "um"]
Kind = Literal["attention", "score"]

# Ranks drawn at random in 0 … 1 have the variance 1/12, however many members there are. One less twelve times the
# variance of a patch's ranks is its share in Kendall's coefficient of concordance, whose mean over the patches is W
# (Kendall and Babington Smith 1939, The problem of m rankings): below a half, members do not agree where it belongs.
MOST_RANK_SPREAD = (0.5 / 12) ** 0.5

LEAST_TILE = 16  # pixels; a smaller patch of a thumbnail shows nothing


@dataclass(frozen=True, eq=False, kw_only=True)
class Map:
    """A bag's patches: where they lie, what they weigh and how sure that is.

    Attributes:
        name: of the bag.
        position: top left corners in `unit`, x before y.
        patch_size: side of a patch in `unit`; of pixels of level 0, not of the level that was read.
        unit: pixels of level 0, or micrometres.
        kind: whether the weights are attention, which sums to 1, or scores on a scale of their own.
        members: how many there are behind a mean.
        weight: mean over members.
        spread: standard deviation over members; 0 of one.
        rank: place of the mean among the bag's, from 0 to 1, equal ones at the middle of theirs.
        rank_spread: standard deviation of the ranks that the members give; 0 of one.
        masked: patches on which members disagree: their ranks scatter more than `MOST_RANK_SPREAD`; none of one member.
        truth: 1 for positive patches, 0 for others, -1 where nobody knows; None where that is all of them.
    """

    name: str
    position: Float[np.ndarray, "K 2"]
    patch_size: float
    unit: Unit
    kind: Kind
    members: int
    weight: Float[np.ndarray, " K"]
    spread: Float[np.ndarray, " K"]
    rank: Float[np.ndarray, " K"]
    rank_spread: Float[np.ndarray, " K"]
    masked: Bool[np.ndarray, " K"]
    truth: Int[np.ndarray, " K"] | None

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def uniform(self) -> float:
        """What to divide weights by before they are shown: 1/K for attention, so that 1 is the mean of the bag."""
        return 1 / len(self) if self.kind == "attention" else 1.0


class Tiles(NamedTuple):
    """Some patches as images: which they are, and their pixels."""

    rows: Int[np.ndarray, " k"]
    images: UInt8[np.ndarray, "k h w 3"]


# ---- weights to a map ----


def make_map(
    weights: Num[Values, "..."],
    position: Num[Values, "..."] | None,
    *,
    name: str,
    unit: Unit = "px",
    patch_size: float | int | None = None,
    truth: Shaped[Values, "..."] | None = None,
    kind: Kind = "attention",
) -> Map:
    """Makes the map of one bag.

    Args:
        weights: of each patch [S, K], or [K] of one member. Members with a weight that is not finite are left out.
        position: top left corners [K, 2] in `unit`, x before y.
        name: of the bag.
        unit: "px" or "um".
        patch_size: side of a patch in `unit`; the step of the grid where not given.
        truth: 1 (or True) for positive patches, 0 for others, -1 where nobody knows [K].
        kind: "attention" or "score".

    Raises:
        InputError: no patches, no finite weights, coordinates or a truth of another length, a size that is not
            positive.
    """
    check_choice("unit", unit, get_args(Unit))
    check_choice("kind", kind, get_args(Kind))
    of_members = _finite_members(np.asarray(weights, np.float64))
    members, count = of_members.shape
    place = _corners(position, count)
    side = grid_step(place) if patch_size is None else patch_size
    check_number("patch_size", side, 0, ends="()")
    ranks = np.stack([percentiles(weight) for weight in of_members])
    spread, rank_spread = (values.std(axis=0, ddof=min(members - 1, 1)) for values in (of_members, ranks))
    weight = of_members.mean(axis=0)
    return Map(
        name=name,
        position=place,
        patch_size=float(side),
        unit=unit,
        kind=kind,
        members=members,
        weight=weight,
        spread=spread,
        rank=percentiles(weight),
        rank_spread=rank_spread,
        masked=rank_spread > MOST_RANK_SPREAD,
        truth=_known_truth(truth, count),
    )


def percentiles(values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """The place of each value among all, from 0 to 1: the share of smaller ones and half of those as large."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - count / 2)[place] / len(values)


def grid_step(position: Float[np.ndarray, "K 2"]) -> float:
    """The commonest step between neighbours in a row or a column; 1 where no two patches share one.

    Not the smallest one: the grids of two pieces of tissue may be a pixel apart.
    """
    steps = []
    for across, along in (position[:, ::-1].T, position.T):
        order = np.lexsort((along, across))
        step = np.diff(along[order])[np.diff(across[order]) == 0]
        steps.append(np.round(step[step > 0], 3))
    step, count = np.unique(np.concatenate(steps), return_counts=True)
    return float(step[np.argmax(count)]) if len(step) else 1.0


def _finite_members(weights: np.ndarray) -> np.ndarray:
    of_members = weights[None] if weights.ndim == 1 else weights
    if of_members.ndim != 2 or not of_members.size:
        raise InputError("weights.shape", weights.shape, "expected [members, patches], with at least one of each")
    finite = of_members[np.isfinite(of_members).all(axis=1)]
    if not len(finite):
        raise InputError("weights", "NaN or infinite", "expected finite weights of at least one member")
    return finite


def _corners(position: object, count: int) -> np.ndarray:
    if position is None:
        raise InputError("position", None, "expected coordinates of the patches, which a heat map needs")
    place = np.asarray(position, np.float64)
    if place.shape != (count, 2):
        raise InputError("position.shape", place.shape, f"expected {(count, 2)}, x and y of each patch with a weight")
    if not np.isfinite(place).all():
        raise InputError("position", "NaN or infinite", "expected finite coordinates")
    return place


def _known_truth(truth: object, count: int) -> np.ndarray | None:
    if truth is None:
        return None
    known = np.asarray(truth)
    if known.shape != (count,) or known.dtype.kind not in "biu" or not np.isin(known, (-1, 0, 1)).all():
        raise InputError("truth", f"{known.dtype} {known.shape}", f"expected 1, 0 or -1 for each of {count} patches")
    return known.astype(np.int8) if (known >= 0).any() else None


# ---- a map to numbers, patches and shapes ----


def patch_auc(heat: Map) -> float:
    """How often a positive patch outweighs another one of the bag; NaN where one kind is missing or nobody knows."""
    if heat.truth is None:
        return float("nan")
    positive = heat.truth[heat.truth >= 0] == 1
    count, positives = len(positive), int(positive.sum())
    if positives in (0, count):
        return float("nan")
    # In NumPy: `metrics.roc_auc` would be compiled for each size of a bag, in more than a second.
    below = percentiles(heat.weight[heat.truth >= 0])[positive].sum() * count - positives**2 / 2
    return float(below / (positives * (count - positives)))


def extreme_patches(heat: Map, count: int) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " j"]]:
    """The patches of the highest and of the lowest weights, up to `count` each, from the outermost inwards.

    Patches that members disagree on are left out, and so is a patch that overlaps one before it: neighbours show the
    same tissue. None is among both.
    """
    agreed = np.flatnonzero(~heat.masked)
    ascending = agreed[np.lexsort((*heat.position[agreed].T, heat.weight[agreed]))]
    highest = _apart(heat, ascending[::-1], count)
    return highest, _apart(heat, ascending[~np.isin(ascending, highest)], count)


def _apart(heat: Map, candidates: np.ndarray, count: int) -> np.ndarray:
    chosen: list[int] = []
    while len(candidates) and len(chosen) < count:
        chosen.append(candidates[0])
        distance = np.abs(heat.position[candidates] - heat.position[candidates[0]]).max(axis=1)
        candidates = candidates[1:][distance[1:] >= heat.patch_size]
    return np.array(chosen, np.int64)


def thumbnail_scale(heat: Map, thumbnail: UInt8[np.ndarray, "H W 3"]) -> float:
    """Pixels of a thumbnail per unit of the positions, where the size of the slide is not known.

    A picture that ends less than a patch behind the last patch is the slide itself, at one pixel a unit. Any other is
    taken to end with the last patch, in the direction that leaves no patch outside.
    """
    extent = heat.position.max(axis=0) + heat.patch_size
    size = np.array(thumbnail.shape[1::-1])
    behind = size - extent
    if np.all((behind >= 0) & (behind < heat.patch_size)):
        return 1.0
    return float((size / extent).min())


def cut_tiles(
    thumbnail: UInt8[np.ndarray, "H W 3"],
    heat: Map,
    index: Int[Values, " k"] | Sequence[int],
    scale: float | None = None,
) -> Tiles | None:
    """Cuts patches out of a thumbnail; None where a patch has fewer than 16 pixels a side. Beyond the edge is white.

    Args:
        thumbnail: the slide.
        heat: where its patches lie.
        index: which patches.
        scale: pixels of the thumbnail per unit of the positions; `thumbnail_scale` where not given.
    """
    scale = thumbnail_scale(heat, thumbnail) if scale is None else scale
    side = round(heat.patch_size * scale)
    if side < LEAST_TILE:
        return None
    index = np.asarray(index, np.int64)
    corner = np.rint(heat.position[index] * scale).astype(int)
    columns, rows = (corner[:, axis, None] + np.arange(side) for axis in (0, 1))
    height, width = thumbnail.shape[:2]
    images = thumbnail[rows.clip(0, height - 1)[:, :, None], columns.clip(0, width - 1)[:, None]]
    outside = ((rows < 0) | (rows >= height))[:, :, None] | ((columns < 0) | (columns >= width))[:, None]
    images[outside] = 255
    return Tiles(index, images)


DISAGREED = {"name": "members disagree", "color": [160, 160, 160]}


def geojson(
    heat: Map, mpp: float | int | None = None, colours: UInt8[np.ndarray, "K 3"] | None = None
) -> dict[str, Any]:
    """The map as QuPath (0.4 and later) imports it: a detection for each patch, with measurements to colour it by.

    Patches that members disagree on are of the class "members disagree". Polygons are in pixels of level 0; those of
    a map in micrometres stay in micrometres where `mpp` is not given, and `unit` says so.

    Args:
        heat: the map.
        mpp: micrometres per pixel of level 0, for maps in micrometres.
        colours: red, green and blue of each patch, such as `plots.patch_colours(heat)`.

    Raises:
        InputError: `mpp` is not positive.
    """
    if mpp is not None:
        check_number("mpp", mpp, 0, ends="()")
    per_unit = 1 / mpp if mpp and heat.unit == "um" else 1.0
    low, high = heat.position * per_unit, (heat.position + heat.patch_size) * per_unit
    names = [heat.kind, f"{heat.kind} spread", "rank", "rank spread"]
    columns = [heat.weight, heat.spread, heat.rank, heat.rank_spread]
    if heat.truth is not None:
        names, columns = [*names, "truth"], [*columns, heat.truth]
    rows = [[float(f"{value:.6g}") for value in row] for row in np.stack(columns, axis=1).tolist()]
    corners = np.round(np.concatenate([low, high], axis=1), 3).tolist()
    paint = [None] * len(heat) if colours is None else colours.tolist()
    features = [
        _feature(corner, dict(zip(names, row, strict=True)), colour, disagreed)
        for corner, row, colour, disagreed in zip(corners, rows, paint, heat.masked.tolist(), strict=True)
    ]
    unit = "um" if heat.unit == "um" and mpp is None else "px"
    return {"type": "FeatureCollection", "properties": {"name": heat.name, "unit": unit}, "features": features}


def _feature(corner: list[float], measurements: dict[str, float], colour: Any, disagreed: bool) -> dict[str, Any]:
    left, top, right, bottom = corner
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    properties: dict[str, Any] = {"objectType": "detection", "measurements": measurements}
    if disagreed:
        properties["classification"] = DISAGREED
    elif colour is not None:
        properties["color"] = colour
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}
