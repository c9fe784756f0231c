"""Loss curves of a training run, as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdcache.evaluation.score_tables import teachers_score
from kdcache.manifest import Json

COLUMNS = 2
WIDTH = 8.3  # inches: what a page shows without making it smaller
HEIGHT = 2.6  # of a row of panels
MOST = 6  # panels
TICKS = (4, 5)  # at most, nearly, across and up: to draw them is most of a picture's time
ABOVE: Any = {
    "fontsize": 9,
    "frameon": False,
    "ncols": 2,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
}
"""Where a legend covers nothing."""


def draw_curves(
    log: Sequence[Json], path: Path, *, title: str = "", dev: Json | None = None
) -> None:
    """Draw every loss term of a training log, and the learning rate, over steps, as a PNG.

    `log` is the log history of a run: entries with "step", "loss", "loss_NAME" and
    "learning_rate", of a run of several stages "stage"; others are passed over. With the "dev" of a
    run's metrics, the student's score at every point comes first, the best one marked and the
    teacher's as a line.
    """
    entries = [entry for entry in log if "loss" in entry]
    names = list(dict.fromkeys(n for entry in entries for n in entry if n.startswith("loss")))
    panels = [[name] for name in names if name == "loss"]
    shares = list(dict.fromkeys(n for entry in entries for n in entry if n.startswith("share_")))
    panels += _terms([n for n in names if n != "loss"], MOST - 3 - bool(shares and dev))
    panels += [shares] if shares else []
    panels.append(["learning_rate"])
    first = 0 if dev is None else 1
    rows = math.ceil((first + len(panels)) / COLUMNS)
    figure = Figure(figsize=(WIDTH, HEIGHT * rows), dpi=150)
    if any(len(drawn) > 1 for drawn in panels):
        figure.set_layout_engine("constrained")  # their legend takes room
    else:
        figure.subplots_adjust(**_margins(HEIGHT * rows, title.count("\n")))
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.locator_params("x", nbins=TICKS[0])
        axis.locator_params("y", nbins=TICKS[1])
    if dev is not None:
        _dev_panel(axes[0], dev)
    for axis, drawn in zip(axes[first:], panels, strict=False):
        _panel(axis, drawn, entries)
    for axis in axes[first + len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9 if "\n" in title else None)
    canvas: Any = FigureCanvasAgg(figure)  # untyped
    canvas.print_png(path)


def _margins(height: float, breaks: int) -> dict[str, float]:
    """Room for the titles and figures of panels: to find it out takes as long as to draw them."""
    across = {"left": 0.75 / WIDTH, "right": 1 - 0.15 / WIDTH, "wspace": 0.26}
    above = 0.7 + 0.16 * max(0, breaks - 1)
    return across | {"bottom": 0.5 / height, "top": 1 - above / height, "hspace": 0.55}


def _terms(names: Sequence[str], most: int) -> list[list[str]]:
    """A panel for every term of the loss, or one for all if they are too many."""
    return [[name] for name in names] if len(names) <= most else [[*names]]


def _dev_panel(axis: Axes, dev: Json) -> None:
    steps = [point["step"] for point in dev["points"]]
    axis.plot(steps, [point["value"] for point in dev["points"]], "o-", linewidth=1.2, markersize=4)
    best, teacher = dev["best"], dev["teacher"]
    chosen = f"kept: step {best['step']:,}, {best['value']:.4g}"
    axis.plot([best["step"]], [best["value"]], "*", color="C3", markersize=13, label=chosen)
    if teacher is not None:
        line = f"teacher: {teachers_score(teacher)}"
        axis.axhline(teacher["value"], color="0.4", linestyle="--", linewidth=1.2, label=line)
    axis.set_ylabel(f"dev: {dev['metric'].replace('_', '-')}", fontsize=9)
    axis.set_xlabel("step", fontsize=9)
    axis.grid(alpha=0.3)
    axis.margins(y=0.15)
    axis.legend(**ABOVE)


def _panel(axis: Axes, names: Sequence[str], entries: Sequence[Json]) -> None:
    for name in names:
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        (line,) = axis.plot(
            [s for s, _ in points], [v for _, v in points], linewidth=1.2, label=_heading(name)
        )
        if name.startswith("share_"):
            _dots(axis, name.replace("share_", "gradient_", 1), entries, line.get_color())
    if len(names) == 1:
        axis.set_title(_heading(names[0]), fontsize=10)
    else:
        axis.legend(**ABOVE)
    _mark_stages(axis, entries)
    axis.set_xlabel("step", fontsize=9)
    axis.grid(alpha=0.3)
    values = [entry[name] for entry in entries for name in names if name in entry]
    if names != ["learning_rate"] and values:
        axis.set_ylim(bottom=min(0.0, *values))


def _dots(axis: Axes, name: str, entries: Sequence[Json], colour: Any) -> None:
    """The share of the gradient, where it was measured, beside that of the objective."""
    points = [(entry["step"], entry[name]) for entry in entries if name in entry]
    axis.plot([s for s, _ in points], [v for _, v in points], "o", color=colour, markersize=4)
    axis.set_ylabel("share: objective —, gradient •", fontsize=8)


def _mark_stages(axis: Axes, entries: Sequence[Json]) -> None:
    """A line where a stage ends and the next begins."""
    for before, after in pairwise(entries):
        if before.get("stage") != after.get("stage"):
            axis.axvline(before["step"], color="0.4", linestyle=":", linewidth=1.2)


def _heading(name: str) -> str:
    if name == "loss":
        return "loss: weighted sum of all terms"
    return name.removeprefix("loss_").removeprefix("share_").replace("_", " ")
