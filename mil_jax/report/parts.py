"""What a report is made of.

Axes: N instances in the pool, B bags, K slots per bag, S members, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from mil_jax.errors import InputError

Values = np.ndarray | Array


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text."""

    title: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Settings:
    """Names and their values, such as the options of a run; a mapping inside becomes a group of its own."""

    title: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns; floats are shown with four digits.

    Raises:
        InputError: a row with another number of cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError("rows", list(row), f"give {len(self.columns)} cells, one for each column")


@dataclass(frozen=True)
class Picture:
    """An image, as the bytes of a PNG file."""

    title: str
    png: bytes
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Bags to browse: each instance with its weight, the spread of the weight over members, and the truth.

    Attributes:
        title: heading of the part.
        pool: every instance once; images ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W, 3]`` are shown
            (integers in 0..255, floats in 0..1, other floats stretched), of anything else the weights alone.
        rows: slot to row of the pool ``[B, K]``.
        mask: True where a slot holds an instance ``[B, K]``.
        label: class of each bag ``[B]``.
        instance_label: 1 positive, 0 negative, -1 unknown or empty ``[B, K]``.
        attention: weights by each member, 1 in sum over the mask ``[S, B, K]``.
        probability: of each class, by each member ``[S, B, C]``.
        caption: a line below the heading.

    Raises:
        InputError: shapes that do not fit together, no bag or no member, or a row that the pool does not have.
    """

    title: str
    pool: Shaped[Values, "N ..."]
    rows: Int[Values, "B K"]
    mask: Bool[Values, "B K"]
    label: Int[Values, " B"]
    instance_label: Int[Values, "B K"]
    attention: Float[Values, "S B K"]
    probability: Float[Values, "S B C"]
    caption: str = ""

    def __post_init__(self) -> None:
        slots = np.shape(self.rows)
        members = (len(self.attention), *slots[:1])
        expected = {
            "mask": slots, "instance_label": slots, "label": slots[:1], "attention": (*members, *slots[1:])
        }  # fmt: skip
        for name, shape in expected.items():
            given = np.shape(getattr(self, name))
            if given != shape:
                raise InputError(f"{name}.shape", given, f"give {shape}, as rows and attention have it")
        if len(slots) != 2 or 0 in members:
            raise InputError("rows.shape", slots, "give at least one bag, [B, K], and one member")
        given = np.shape(self.probability)
        if given[:2] != members or len(given) != 3 or given[2] < 2:
            raise InputError("probability.shape", given, f"give {(*members, 'C')}, for two classes or more")
        held = np.asarray(self.rows)[np.asarray(self.mask)]
        if held.size and not 0 <= held.min() <= held.max() < len(self.pool):
            raise InputError("rows", int(held.max()), f"give rows of the pool, 0 to {len(self.pool) - 1}")


Part: TypeAlias = Text | Settings | Table | Picture | Gallery
