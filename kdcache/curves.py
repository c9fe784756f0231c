"""Loss curves of a training run, as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdcache.manifest import Json

COLUMNS = 2


def draw_curves(log: Sequence[Json], path: Path, *, title: str = "") -> None:
    """Draw every loss term of a training log, and the learning rate, over steps, as a PNG.

    `log` is the log history of a run: entries with "step", "loss", "loss_NAME" and
    "learning_rate"; others are passed over.
    """
    entries = [entry for entry in log if "loss" in entry]
    names = [name for name in entries[-1] if name.startswith("loss")] if entries else []
    panels = [*names, "learning_rate"]
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.9 * rows), layout="constrained", dpi=120)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axis, name in zip(axes, panels, strict=False):
        _panel(axis, name, [e for e in entries if name in e])
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    figure.savefig(path)


def _panel(axis: Axes, name: str, entries: Sequence[Json]) -> None:
    steps = [entry["step"] for entry in entries]
    axis.plot(steps, [entry[name] for entry in entries], linewidth=1.2)
    axis.set_title(_heading(name), fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.grid(alpha=0.3)
    if name != "learning_rate" and entries:
        axis.set_ylim(bottom=min(0.0, *(entry[name] for entry in entries)))


def _heading(name: str) -> str:
    if name == "loss":
        return "loss: weighted sum of all terms"
    return name.removeprefix("loss_").replace("_", " ")
