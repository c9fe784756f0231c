"""Gains in accuracy as marks with intervals, one below the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gain_intervals import points

from kdcache.bench.report import COLOURS


def draw_gains(axis: Any, gains: Mapping[str, Any], *, title: str, over: str) -> None:
    """A row a gain, by its name; blue where the 95% interval leaves out no gain.

    Rows are those of `paired`, in the order they have; `over` says what is gained on.
    """
    for place, gain in enumerate(gains.values()):
        middle, low, high = points(gain)
        colour = COLOURS[0 if low > 0 or high < 0 else 1]
        ends = [[middle - low], [high - middle]]
        axis.errorbar(middle, place, xerr=ends, fmt="o", color=colour, ms=4, capsize=2)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", color="#e3e5e8")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)
    axis.set_xlabel(f"points of accuracy over {over}, 95% interval", fontsize=9)
    axis.set_title(title, fontsize=10)
    axis.set_yticks(range(len(gains)), gains, fontsize=9)
    axis.set_ylim(len(gains) - 0.4, -0.6)
