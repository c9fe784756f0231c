"""Loss curves of a training run, as an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdcache.manifest import Json

COLUMNS = 2


def draw_curves(
    log: Sequence[Json], path: Path, *, title: str = "", dev: Json | None = None
) -> None:
    """Draw every loss term of a training log, and the learning rate, over steps, as a PNG.

    `log` is the log history of a run: entries with "step", "loss", "loss_NAME" and
    "learning_rate"; others are passed over. With the "dev" of a run's metrics, the student's score
    at every point comes first, the best one marked and the teacher's as a line.
    """
    entries = [entry for entry in log if "loss" in entry]
    names = [name for name in entries[-1] if name.startswith("loss")] if entries else []
    panels = [*names, "learning_rate"]
    first = 0 if dev is None else 1
    rows = math.ceil((first + len(panels)) / COLUMNS)
    figure = Figure(figsize=(5.2 * COLUMNS, 2.9 * rows), layout="constrained", dpi=120)
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    if dev is not None:
        _dev_panel(axes[0], dev)
    for axis, name in zip(axes[first:], panels, strict=False):
        _panel(axis, name, [e for e in entries if name in e])
    for axis in axes[first + len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    figure.savefig(path)


def _dev_panel(axis: Axes, dev: Json) -> None:
    steps = [point["step"] for point in dev["points"]]
    axis.plot(steps, [point["value"] for point in dev["points"]], "o-", linewidth=1.2, markersize=4)
    best, teacher = dev["best"], dev["teacher"]
    kept = f"kept: step {best['step']:,}, {best['value']:.4g}"
    axis.plot([best["step"]], [best["value"]], "*", color="C3", markersize=13, label=kept)
    if teacher is not None:
        about = "about " if teacher.get("estimate") else ""
        told = f"teacher: {about}{teacher['value']:.4g}"
        axis.axhline(teacher["value"], color="0.4", linestyle="--", linewidth=1.2, label=told)
    axis.set_title(f"dev: {dev['metric'].replace('_', '-')}", fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.grid(alpha=0.3)
    axis.margins(y=0.15)
    axis.legend(fontsize=8, loc="best")


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
