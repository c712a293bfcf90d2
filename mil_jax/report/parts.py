"""What a report is made of.

Axes: N instances in the pool, B bags, K slots per bag, S members, C classes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Shaped

from mil_jax.errors import InputError, check_index
from mil_jax.text import Table

Values = np.ndarray | Array
SHARP = 0.8  # CSS pixels for a picture's pixel: small print stays as large as text, and sharp on fine screens


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
class Picture:
    """An image, as the bytes of a PNG file; others are an InputError."""

    title: str
    png: bytes
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n") or len(self.png) < 24:
            raise InputError("png", self.png[:8], "expected the bytes of a PNG file")

    @property
    def width(self) -> int:
        """CSS pixels at which it is shown where there is room."""
        return round(int.from_bytes(self.png[16:20]) * SHARP)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Bags to browse: each instance with its weight, the spread of the weight over members, and the truth.

    Raises:
        InputError: shapes that do not fit together, no bag or no member, a label that is no class, or a row that the
            pool does not have.
    """

    title: str
    pool: Shaped[Values, "N ..."] | None
    """Every instance once; images ``[N, H, W]``, ``[N, H, W, 1]`` or ``[N, H, W, 3]`` are shown (integers in 0..255,
    floats in 0..1, other floats stretched), of anything else, and of None, the weights alone."""
    rows: Int[Values, "B K"]
    """Slot to row of the pool ``[B, K]``."""
    mask: Bool[Values, "B K"]
    """True where a slot holds an instance ``[B, K]``."""
    label: Int[Values, " B"]
    """Class of each bag ``[B]``."""
    instance_label: Int[Values, "B K"]
    """1 positive, 0 negative, -1 unknown or empty ``[B, K]``."""
    attention: Float[Values, "S B K"]
    """Weights by each member, 1 in sum over the mask ``[S, B, K]``."""
    probability: Float[Values, "S B C"]
    """Of each class, by each member ``[S, B, C]``."""
    caption: str = ""
    """A line below the heading."""
    classes: Sequence[str] = ()
    """Their C names; where not given, negative and positive for two, else numbers."""
    names: Sequence[str] = ()
    """What each bag is called; its number where not given."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # NumPy's arrays: reading single bags from JAX's would take long
            if isinstance(value := getattr(self, field.name), Array):
                object.__setattr__(self, field.name, np.asarray(value))
        slots, given = np.shape(self.rows), np.shape(self.probability)
        members = (len(self.attention), *slots[:1])
        if len(slots) != 2 or 0 in members:
            raise InputError("rows.shape", slots, "expected at least one bag, [B, K], and one member")
        if given[:2] != members or len(given) != 3 or given[2] < 2:
            raise InputError("probability.shape", given, f"expected {(*members, 'C')}, for two classes or more")
        numbers = [f"class {i}" for i in range(given[2])]
        names = self.classes or (["negative", "positive"] if given[2] == 2 else numbers)
        object.__setattr__(self, "classes", tuple(names))
        shapes = {"mask": slots, "instance_label": slots, "label": slots[:1], "attention": (*members, slots[1])}
        for name, shape in (shapes | {"classes": given[2:]}).items():
            if np.shape(getattr(self, name)) != shape:
                raise InputError(f"{name}.shape", np.shape(getattr(self, name)), f"expected {shape}, as the others are")
        check_index("label", np.asarray(self.label), given[2])
        if self.pool is not None:
            check_index("rows", np.asarray(self.rows[self.mask]), len(self.pool))


Part: TypeAlias = Text | Settings | Table | Picture | Gallery
