"""Values and tables as text, the same on the screen and in reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mil_jax.errors import InputError

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


def with_error(mean: float, error: float, digits: int = 3) -> str:
    """A mean and its error, as 0.863 ± 0.009; the mean alone where one value has no error."""
    text = f"{mean:.{digits}f}" if math.isfinite(mean) else DASH
    return f"{text} ± {error:.{digits}f}" if math.isfinite(error) else text


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns, as many in each; floats are shown with four digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError("rows", list(row), f"expected {len(self.columns)} cells, one for each column")

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers alone, or what stands for a missing one: such columns stand on the right."""

        def is_numeric(cell: object) -> bool:
            number = isinstance(cell, int | float | np.number) and not isinstance(cell, bool)
            return number or cell in (None, "", DASH)

        return [all(map(is_numeric, cells)) for cells in zip(*self.rows, strict=True)] or [True] * len(self.columns)
