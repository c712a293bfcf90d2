"""The page: parts in, HTML out. All text is escaped; style and script are put in; nothing is fetched."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mil_jax.errors import InputError
from mil_jax.report.gallery import gallery_html
from mil_jax.report.parts import Gallery, Part, Picture, Settings, Table, Text

HERE = Path(__file__).parent
DASH = "–"
SHARP = 0.8  # CSS pixels for a picture's pixel: small print stays as large as text, and sharp on fine screens
HALF_PAGE = 560  # CSS pixels; pictures up to so wide stand side by side


def render(title: str, parts: Sequence[Part], subtitle: str = "") -> str:
    """Makes the whole page, to be written as UTF-8.

    Args:
        title: heading of the page, and its name in the browser.
        parts: what it shows, in this order.
        subtitle: a line below the heading.
    """
    halves = half_wide(parts)
    sections = [section(number, part, number in halves) for number, part in enumerate(parts)]
    links = [f'<a href="#part{number}">{escape(part.title)}</a>' for number, part in enumerate(parts)]
    contents = f'<nav aria-label="Contents">{"".join(links)}</nav>' if len(parts) > 2 else ""
    below = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            # An empty icon, or browsers would ask the server for one.
            f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n',
            f"<style>\n{(HERE / 'style.css').read_text()}</style>\n</head>\n<body>\n",
            f"<header><h1>{escape(title)}</h1>{below}{contents}</header>\n<main>\n",
            *sections,
            f"</main>\n<script>\n{(HERE / 'script.js').read_text()}</script>\n</body>\n</html>\n",
        )
    )


def half_wide(parts: Sequence[Part]) -> set[int]:
    """The numbers of small pictures that stand side by side, two and two; one that is left over stands alone."""
    small = [isinstance(part, Picture) and shown_width(part.png) <= HALF_PAGE for part in parts]
    found: set[int] = set()
    for number in range(1, len(parts)):
        if small[number - 1] and small[number] and number - 1 not in found:
            found |= {number - 1, number}
    return found


def section(number: int, part: Part, half: bool = False) -> str:
    """One part under its heading, over the whole width of the page or half of it."""
    body = _body(number, part)
    caption = getattr(part, "caption", "")
    note = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    kind = type(part).__name__.lower()
    if half:
        kind += " half"
    return f'<section id="part{number}" class="{kind}">\n<h2>{escape(part.title)}</h2>{note}\n{body}\n</section>\n'


def _body(number: int, part: Part) -> str:
    match part:
        case Text():
            return "".join(f"<p>{escape(paragraph)}</p>" for paragraph in part.paragraphs)
        case Settings():
            return settings_html(part.values)
        case Table():
            return table_html(part)
        case Picture():
            data = base64.b64encode(part.png).decode()
            width = shown_width(part.png)
            return f'<img alt="{escape(part.title)}" width="{width}" src="data:image/png;base64,{data}">'
        case Gallery():
            return gallery_html(part, f"gallery{number}")


def shown_width(png: bytes) -> int:
    """The width in CSS pixels at which a picture is shown where there is room.

    Raises:
        InputError: the bytes are no PNG file.
    """
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        raise InputError("png", png[:8], "give the bytes of a PNG file")
    return round(int.from_bytes(png[16:20]) * SHARP)


def settings_html(values: Mapping[str, object]) -> str:
    """Names and values as lists of definitions, a mapping inside as a list of its own."""
    plain = {name: value for name, value in values.items() if not isinstance(value, Mapping)}
    groups = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(setting_text(value))}</dd></div>" for name, value in plain.items()
    )
    lists = [f"<dl>{items}</dl>"] if plain else []
    lists += [f"<h3>{escape(name)}</h3>{settings_html(value)}" for name, value in groups.items()]
    return "".join(lists)


def setting_text(value: object) -> str:
    """A setting as its option would be written."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value))
    return str(value)


def table_html(table: Table) -> str:
    """A table whose columns of numbers stand on the right; it scrolls by itself where the page is narrow."""
    kinds = [' class="n"' if _is_numeric(row[i] for row in table.rows) else "" for i in range(len(table.columns))]
    names = zip(table.columns, kinds, strict=True)
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in names)
    body = "".join(f"<tr>{''.join(_cells(row, kinds))}</tr>\n" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _cells(row: Sequence[object], kinds: Sequence[str]) -> list[str]:
    return [f"<td{kind}>{escape(cell_text(cell))}</td>" for cell, kind in zip(row, kinds, strict=True)]


def _is_numeric(cells: Iterable[Any]) -> bool:
    """Whether all cells are numbers, or stand for one that is missing."""
    number = (int, float, np.number)
    return all((isinstance(cell, number) and not isinstance(cell, bool)) or cell in (None, "", DASH) for cell in cells)


def cell_text(value: Any) -> str:
    """A cell's text: floats with four digits, what is not defined as a dash, whole numbers with commas."""
    if value is None:
        return DASH
    if isinstance(value, bool | np.bool_):
        return setting_text(bool(value))
    if isinstance(value, float | np.floating):
        return f"{value:.4f}" if math.isfinite(value) else DASH
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
