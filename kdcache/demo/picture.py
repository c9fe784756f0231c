"""The point as an image: time against students trained, and what the students are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from kdcache.demo.law import Costs
from kdcache.manifest import Json

STUDENTS = 30  # as far as the law is drawn
LOOP, CACHE, GREY = "#c9803b", "#2f6fb2", "#6b7078"
MARKS = (("o", "full"), ("s", "none"))  # at home and away
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Row:
    """A model of the right panel: its accuracies, each with its interval, and their colours."""

    name: str
    scores: Sequence[Json]
    colours: Sequence[str]


def draw(
    path: Path,
    costs: Costs,
    cached: Points,
    looped: Points,
    rows: Sequence[Row],
    kinds: Sequence[str],
) -> None:
    """Draw a PNG: `cached` and `looped` are measured points of students and seconds.

    Where none is measured with the teacher in the loop, that line adds its step, timed apart, to
    the student's. `kinds` name the accuracies of a row: at home and, if there are any, away.
    """
    apart = ConstrainedLayoutEngine(wspace=0.08)  # the end of a line and the next panel
    figure = Figure(figsize=(10.5, 4.4), layout=apart, dpi=120)
    time, worth = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _draw_time(time, costs, cached, looped)
    _draw_worth(worth, rows, kinds)
    for axis in (time, worth):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=11)
    figure.savefig(path)


def _draw_time(axis: Any, costs: Costs, cached: Points, looped: Points) -> None:
    unit, name = (3600.0, "hours") if costs.in_the_loop(STUDENTS) > 7200 else (60.0, "minutes")
    students = np.linspace(0, STUDENTS, 121)
    lines = {
        ("teacher in the loop", LOOP): (costs.in_the_loop, looped),
        ("teacher once, then the cache", CACHE): (costs.cached, cached),
    }
    for (label, colour), (law, points) in lines.items():
        axis.plot(students, [law(n) / unit for n in students], color=colour, lw=2.2, label=label)
        end = law(STUDENTS) / unit
        axis.annotate(
            f"{end:.3g}", (STUDENTS, end), xytext=(5, -4), textcoords="offset points",
            color=colour, fontsize=11, annotation_clip=False,
        )  # fmt: skip
        if points:
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, [y / unit for y in ys], "o", color=colour, ms=7)
    axis.plot([], [], "o", color=GREY, ms=7, label="measured")
    crossing = costs.crossing
    where = (crossing, costs.cached(crossing) / unit)
    top = costs.in_the_loop(STUDENTS) / unit
    axis.plot(*where, "D", color=GREY, ms=10, fillstyle="none", mew=2, zorder=5)
    axis.annotate(
        f"even after {crossing:.2g} students\n({crossing * costs.epochs:.2g} epochs)",
        where,
        xytext=(0.3 * STUDENTS, 0.05 * top),
        fontsize=11,
        color=GREY,
        arrowprops={"arrowstyle": "-", "color": GREY},
    )
    axis.set(xlim=(0, STUDENTS), ylim=(0, 1.04 * top))
    axis.set_xlabel("students trained", fontsize=12)
    axis.set_ylabel(f"teacher and students, {name}", fontsize=12)
    axis.set_title(f"from the cache a student trains {costs.saving:.2f} times as fast", fontsize=12)
    axis.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0), fontsize=11, frameon=False)


def _draw_worth(axis: Any, rows: Sequence[Row], kinds: Sequence[str]) -> None:
    step = 0.3 if len(kinds) > 1 else 0.0
    for place, row in enumerate(rows):
        for index, (score, (mark, fill)) in enumerate(zip(row.scores, MARKS, strict=False)):
            value, (low, high) = 100 * score["accuracy"], (100 * v for v in score["interval"])
            axis.errorbar(
                value,
                place + (index - 0.5 * (len(kinds) - 1)) * step,
                xerr=[[value - low], [high - value]],
                fmt=mark,
                fillstyle=fill,
                color=row.colours[index % len(row.colours)],
                ms=7,
                capsize=3,
            )
    colours = rows[-1].colours if len(rows[-1].colours) > 1 else (GREY, GREY)
    for kind, (mark, fill), colour in zip(kinds, MARKS, colours, strict=False):
        axis.plot([], [], mark, fillstyle=fill, color=colour, ms=7, label=kind)
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.grid(axis="x", color="#e3e5e8")
    axis.set_axisbelow(True)
    axis.set_xlabel("accuracy, % (95% interval)", fontsize=12)
    axis.legend(
        loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(kinds), fontsize=11, frameon=False
    )
