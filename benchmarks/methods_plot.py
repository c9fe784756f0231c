"""The picture of `methods.py`: what each recipe gave beyond soft labels, at home and away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gain_intervals import points
from gain_plot import draw_gains
from matplotlib.figure import Figure

from kdcache.bench.report import PAGE_WIDTH
from kdcache.manifest import Json

PANELS = {"home": "films, as trained on", "away": "books and kitchen"}


def draw(path: Path, recipes: Mapping[str, Json], student: str) -> None:
    """A row for each recipe that was compared with kd, the best at home first."""
    gains = {
        where: {
            name: row[f"{where}_gains"]["kd"]
            for name, row in recipes.items()
            if "kd" in row[f"{where}_gains"]
        }
        for where in PANELS
    }
    names = sorted(gains["home"], key=lambda name: -points(gains["home"][name])[0])
    figure = Figure(figsize=(PAGE_WIDTH, 1.2 + 0.19 * len(names)), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (where, title) in zip(axes, PANELS.items(), strict=True):
        draw_gains(axis, {name: gains[where][name] for name in names}, title=title, over="kd")
    figure.suptitle(f"{student}: each recipe beside kd, from one cache", fontsize=11)
    figure.savefig(path)
