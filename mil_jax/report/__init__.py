"""Reports: one HTML page that holds everything it shows, for people to look at, keep and pass on.

A page is a title and a sequence of parts: text, settings, tables, pictures, and galleries of bags.
`render` makes the page of any parts, `report_of` that of a run folder, and `python -m mil_jax.report FOLDER` writes
it. The page asks for nothing outside itself, and opens without JavaScript, then without sorting.
"""

from mil_jax.report.page import render
from mil_jax.report.parts import Gallery, Part, Picture, Settings, Table, Text
from mil_jax.report.run import report_of, run_parts

__all__ = ["Gallery", "Part", "Picture", "Settings", "Table", "Text", "render", "report_of", "run_parts"]
