"""Pictures of bags, curves and scores: arrays in, ``matplotlib.figure.Figure`` out.

Nothing here shows or saves a figure, and pyplot with its global state is never imported, so these functions work the
same in a script, a test and a notebook. One look and one meaning per colour hold for all figures (``style``); the same
input gives the same pixels. ``figure.savefig(path)`` is the caller's, and writes at 150 dots per inch unless told
otherwise. A figure comes laid out: after adding to one, ``figure.set_layout_engine("constrained")`` makes room anew.

Axis letters: B bags, K slots per bag, S members, E epochs, C classes.
"""

from mil_jax.plots.bags import bag_title, bags_figure
from mil_jax.plots.curves import attention_curves, learning_curves
from mil_jax.plots.maps import confusion_matrix, heat_map, patch_map
from mil_jax.plots.scores import one_against_rest, precision_recall_curves, reliability_diagram, roc_curves
from mil_jax.plots.series import (
    lines_with_band,
    loglog_lines,
    panels_below_ceilings,
    panels_with_band,
    seeds_by_group,
)
from mil_jax.plots.slides import extreme_tiles, patch_colours, slide_map
from mil_jax.plots.style import weight_frame, weight_scale

__all__ = [
    "attention_curves", "bag_title", "bags_figure", "confusion_matrix", "extreme_tiles", "heat_map", "learning_curves",
    "lines_with_band", "loglog_lines", "one_against_rest",
    "panels_below_ceilings", "panels_with_band", "patch_colours", "patch_map", "precision_recall_curves",
    "reliability_diagram", "roc_curves", "seeds_by_group", "slide_map", "weight_frame", "weight_scale",
]  # fmt: skip
