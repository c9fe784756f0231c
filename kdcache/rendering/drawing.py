"""Drawings as SVG: read on a phone, on a light page and on a dark one."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from kdcache.rendering.parts import Picture

WIDTH = 3.75  # inches: 360 pixels of a page
BLUE, ORANGE, GREY = "#3b82c4", "#d07a2d", "#808790"
COLOURS = (BLUE, "#3f9b5f", "#9a6bc9", "#d0504c", "#2a9ba8", "#b58a1c", "#c75f9b", "#6f7f2e")
"""Lines and marks that are told apart on white and on black."""
INK = "#123456"  # stands for the colour of the page's text
STYLE = (
    "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6e8eb}}"
    "@media print{svg{color:#1f2328}}</style>"
)
LOOKS: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
    "grid.alpha": 0.18,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "path",  # as it was laid out, whatever fonts a phone has
    "svg.hashsalt": "kdcache",  # the same drawing has the same bytes
}
NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def picture(
    name: str, alt: str, draw: Callable[[Figure], None], *, height: float, width: float = WIDTH
) -> Picture:
    """A drawing of `width` by `height` inches; `draw` fills the figure, in INK where it is text."""
    with mpl.rc_context(LOOKS):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=NOTHING)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    head, end, rest = svg.partition(">")
    return Picture(name, head + end + STYLE + rest, alt)
