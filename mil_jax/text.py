"""Values as text, the same on the screen and in reports."""

import math

import numpy as np

DASH = "–"


def cell_text(value: object) -> str:
    """A cell of a table: floats with four digits, what is not defined as a dash, whole numbers with commas."""
    if value is None:
        return DASH
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.4f}" if math.isfinite(value) else DASH
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def is_numeric(cell: object) -> bool:
    """Whether a cell is a number, or stands for one that is missing: such columns stand on the right."""
    number = isinstance(cell, int | float | np.number) and not isinstance(cell, bool)
    return number or cell is None or (isinstance(cell, str) and cell in ("", DASH))
