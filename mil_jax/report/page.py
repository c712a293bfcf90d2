"""The page: parts in, HTML out. The templates escape all text; style and script are put in; nothing is fetched."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mil_jax.report.gallery import show
from mil_jax.report.parts import Gallery, Part, Picture
from mil_jax.text import DASH, cell_text

HALF_PAGE = 560  # CSS pixels; pictures up to so wide stand side by side


def render(title: str, parts: Sequence[Part], subtitle: str = "") -> str:
    """The whole page, with the parts in their order, to be written as UTF-8."""
    kinds = [type(part).__name__.lower() for part in parts]
    views = {number: show(part) for number, part in enumerate(parts) if isinstance(part, Gallery)}
    page = {"title": title, "subtitle": subtitle, "parts": parts, "kinds": kinds, "views": views}
    return templates().get_template("report.html.j2").render(page, halves=half_wide(parts))


def templates() -> Environment:
    """The templates of the page, and the filters that they use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    encode = {"base64": lambda content: base64.b64encode(content).decode()}
    environment.filters |= {"cell": cell_text, "setting": setting_text, "number": number_text, **encode}
    return environment


def half_wide(parts: Sequence[Part]) -> set[int]:
    """The numbers of small pictures that stand side by side, two and two; one that is left over stands alone."""
    small = [isinstance(part, Picture) and part.width <= HALF_PAGE for part in parts]
    paired: set[int] = set()
    for number in range(1, len(parts)):
        if small[number - 1] and small[number] and number - 1 not in paired:
            paired |= {number - 1, number}
    return paired


def setting_text(value: object) -> str:
    """A setting as its option would be written."""
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value))
    return {None: "none", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def number_text(value: float | np.floating, digits: int = 2) -> str:
    """A number with two digits, a dash where it is none."""
    # The zero makes a zero of a small negative number, without its sign.
    return f"{round(float(value), digits) + 0.0:.{digits}f}" if math.isfinite(value) else DASH
