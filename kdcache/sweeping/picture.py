"""A sweep as an image: what each model scores, against what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from kdcache.shipping.run import KINDS
from kdcache.sweeping.record import Record, Row
from kdcache.sweeping.rows import Scoring

COLOURS = {"student": "#2f6fb2", "teacher": "#c9803b"}
MARKS = {"student": "o", "teacher": "D"}
FILLS = dict(zip(KINDS, ("none", "full"), strict=True))
SIDES: tuple[tuple[str, str, float, str], ...] = (
    ("bytes", "bytes", 1e6, "MB of the files that run"),
    ("ms", "p50_ms", 1.0, "ms for one text on one thread"),
)
UNSHIPPED = (("parameters", "parameters", 1e6, "million parameters"),)
"""What is known of students that were not shipped."""
GREY = "#6b7078"
NAMED = 12  # rows of a front that still have room for their names


def draw(path: Path, record: Record, scoring: Scoring) -> None:
    """Draw a PNG: scores against size and latency, with the rows that no other beats in a line.

    Bars are one standard deviation over the seeds. Of what was not shipped it is parameters.
    """
    sides = SIDES if any(row.bytes is not None for row in record.rows) else UNSHIPPED
    figure = Figure(figsize=(10.5, 4.8), layout="constrained", dpi=120)
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for axis, side in zip(axes, sides, strict=True):
        _draw_side(axis, record, scoring, *side)
    on = "dev set" if scoring.dev else "evaluation file"
    figure.axes[0].set_ylabel(f"{record.metric.replace('_', ' ')} on the {on}", fontsize=12)
    figure.legend(*_legend(figure.axes[0]), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path)


def _draw_side(
    axis: Any, record: Record, scoring: Scoring, name: str, field: str, unit: float, label: str
) -> None:
    line = []
    for row in record.rows:
        cost, mean = getattr(row, field), row.dev if scoring.dev else row.eval
        if cost is None or mean is None:
            continue
        at = (cost / unit, mean.mean)
        axis.errorbar(
            *at, yerr=mean.sd, fmt=MARKS[row.who], fillstyle=FILLS[row.kind],
            color=COLOURS[row.who], ms=7, capsize=3, elinewidth=1, label=f"{row.who}, {row.kind}",
        )  # fmt: skip
        if row.picked:
            axis.plot(*at, "o", ms=15, fillstyle="none", color="#b03a48", label="picked")
        if name in row.front:
            line.append((*at, row))
    line.sort(key=lambda point: point[:2])
    if line:
        axis.plot([p[0] for p in line], [p[1] for p in line], "-", color=GREY, lw=1.2, zorder=0,
                  label="no other is better and smaller or faster")  # fmt: skip
    axis.margins(x=0.12, y=0.12)
    low, high = axis.get_xlim()
    first = {point[:2]: point[2] for point in reversed(line)}  # of models that are alike
    for (x, y), row in list(first.items())[-NAMED:]:
        left = x > (low + high) / 2  # where a name on the right would leave the picture
        axis.annotate(
            _called(row),
            (x, y),
            xytext=(-6 if left else 6, -11),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=8,
            color=GREY,
        )
    if not axis.lines:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
    axis.set_xlabel(label, fontsize=12)
    axis.grid(color="#e3e5e8")
    axis.spines[["top", "right"]].set_visible(False)


def _called(row: Row) -> str:
    return f"{row.name}, {row.kind}"


def _legend(axis: Any) -> tuple[list[Any], list[str]]:
    """Each mark once."""
    found, names = axis.get_legend_handles_labels()
    handles = dict(zip(names, found, strict=True))
    return list(handles.values()), list(handles)
