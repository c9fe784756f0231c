"""The picture of `methods.py`: what each recipe gave beyond soft labels, at home and away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from kdcache.manifest import Json

WIDTH = 8.3  # inches: at 100 dots an inch what a page is wide
BLUE, GREY = "#2f6fb2", "#8a8f98"
PANELS = {"home": "films, as trained on", "away": "books and kitchen"}


def draw(path: Path, recipes: Mapping[str, Json], student: str) -> None:
    """A row a recipe, the best at home first; blue where the 95% interval leaves out no gain."""
    rows = {name: row for name, row in recipes.items() if "kd" in row["home_gains"]}
    names = sorted(rows, key=lambda name: -_gain(rows[name], "home")[0])
    figure = Figure(figsize=(WIDTH, 1.2 + 0.19 * len(names)), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (where, title) in zip(axes, PANELS.items(), strict=True):
        for place, name in enumerate(names):
            middle, low, high = _gain(rows[name], where)
            colour = BLUE if low > 0 or high < 0 else GREY
            axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axis.plot(middle, place, "o", color=colour, markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("points of accuracy over kd, 95% interval", fontsize=9)
        axis.tick_params(labelsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(axis="x", color="#e4e6ea", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{student}: each recipe beside kd, from one cache", fontsize=11)
    figure.savefig(path)


def _gain(row: Json, where: str) -> tuple[float, float, float]:
    """Points over kd, and the ends of their interval."""
    found = row[f"{where}_gains"]["kd"]
    low, high = found["both"] or found["documents"]
    return 100 * found["difference"], 100 * low, 100 * high
