"""The table and the picture of `loss_map_weight.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gain_intervals import told
from gain_plot import draw_gains
from matplotlib.figure import Figure
from page_parts import markdown

from kdcache.bench.report import PAGE_WIDTH
from kdcache.manifest import Json

COLUMNS = (
    "hidden states by",
    "attention by",
    "layer map",
    "weights",
    "learning rate",
    "dev, %",
    "home, %",
    "home: over kd, points (95% interval)",
    "away, %",
    "away: over kd",
)


def table(figures: Json) -> str:
    """Markdown: a row for each pair of kinds on each map, with the weights that dev chose."""
    return markdown(COLUMNS, rows(figures))


def rows(figures: Json) -> Iterator[tuple[str, ...]]:
    """Soft labels alone, then the pairs on their maps."""
    plain = figures["kd"]
    scores = (_percent(plain[name]["mean"]) for name in ("dev", "home"))
    away = _percent(plain["away"]["mean"])
    yield ("soft labels alone", "", "", "", f"{plain['rate']:g}", *scores, "", away, "")
    for row in figures["rows"]:
        yield (
            row["hidden"],
            row["attention"],
            row["layer_map"],
            f"{row['w_hidden']:g}, {row['w_attention']:g}",
            f"{row['rate']:g}",
            _percent(row["dev"]["mean"]),
            _percent(row["home"]["mean"]),
            told(row["home_gain"]),
            _percent(row["away"]["mean"]),
            told(row["away_gain"]),
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def draw(path: Path, figures: Json) -> None:
    """Six panels: dev scores by weights for each pair of kinds, and gains on test documents."""
    kinds = list(dict.fromkeys((row["hidden"], row["attention"]) for row in figures["rows"]))
    heights = 3.1, 0.9 + 0.2 * len(figures["rows"])
    figure = Figure(figsize=(PAGE_WIDTH, sum(heights)), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    _draw_weights(above, figures, kinds)
    names = [f"{r['hidden']}, {r['attention']}, {r['layer_map']}" for r in figures["rows"]]
    axes = below.subplots(1, 2, sharey=True)
    for axis, where in zip(axes, ("home", "away"), strict=True):
        gains = (row[f"{where}_gain"] for row in figures["rows"])
        draw_gains(
            axis,
            dict(zip(names, gains, strict=True)),
            title=f"accuracy {where}",
            over="kd",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_weights(figure: Any, figures: Json, kinds: list[tuple[str, str]]) -> None:
    """Mean over maps of what students score on dev, at every pair of weights."""
    weights = figures["weights"]
    grids = [_grid(figures["rows"], kind, weights) for kind in kinds]
    limits = {"vmin": min(g.min() for g in grids), "vmax": max(g.max() for g in grids)}
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, grid, (hidden, attention) in zip(axes, grids, kinds, strict=True):
        axis.imshow(grid, cmap="Blues", origin="lower", **limits)
        middle = (limits["vmin"] + limits["vmax"]) / 2
        for (y, x), value in np.ndenumerate(grid):
            colour = "white" if value > middle else "black"
            axis.text(x, y, _percent(value), ha="center", va="center", color=colour, fontsize=9)
        axis.set_xticks(range(len(weights)), [f"{w:g}" for w in weights], fontsize=9)
        axis.set_yticks(range(len(weights)), [f"{w:g}" for w in weights], fontsize=9)
        axis.set_xlabel("weight of attention", fontsize=9)
        axis.set_title(f"hidden {hidden},\nattention {attention}", fontsize=9)
    axes[0].set_ylabel("weight of hidden states", fontsize=9)
    figure.suptitle("accuracy on dev, %, mean over layer maps", fontsize=10)


def _grid(rows: list[Json], kinds: tuple[str, str], weights: list[float]) -> Any:
    """[weights of hidden states, weights of attention], the mean over maps."""
    found = [
        {(at["w_hidden"], at["w_attention"]): at["dev"] for at in row["dev_by_weights"]}
        for row in rows
        if (row["hidden"], row["attention"]) == kinds
    ]
    return np.array([[np.mean([f[h, a] for f in found]) for a in weights] for h in weights])
