"""Divergence, and the gradient's error, against bytes a row: one point a codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcache.bench.report import PAGE_WIDTH, Json

FAMILIES = {
    "logits:topk,": ("topk", "#2f6fb2", "o"),
    "logits:topk-small,": ("topk-small", "#b8452f", "o"),
    "logits:sampled,": ("sampled", "#3c8a4e", "D"),
    "logits:hidden-head": ("hidden-head", "#7b4ea3", "s"),
    "int32 + fp16": ("int32 + fp16", "#b5b9bf", "x"),
    "Megatron-LM": ("Megatron-LM", "#8a8f98", "x"),
    "DistillKit": ("DistillKit", "#e0a030", "^"),
    "SE-KD3X": ("SE-KD3X", "#5a5f66", "D"),
}
PANELS = (
    ("code_kl", "KL of the codes, nats"),
    ("error", "relative error of the gradient, T=1"),
)
LEAST = 1e-7  # an exact codec is drawn here on a logarithmic scale
TICKS = (10, 20, 50, 100, 200, 500, 1000)
WIDEST = 1000  # bytes a row: a whole vocabulary lies far to the right of all else


def draw(path: Path, reports: Sequence[Json]) -> Path:
    """Draw the reports, a row of panels each, in one PNG and return its path."""
    from matplotlib.figure import Figure

    size = (PAGE_WIDTH, 3.1 * len(reports) + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    grid = figure.subplots(len(reports), len(PANELS), squeeze=False)
    for axes, report in zip(grid, reports, strict=True):
        for axis, (name, title) in zip(axes, PANELS, strict=True):
            _panel(axis, report["rows"], name)
            axis.set_ylabel(title, fontsize=9)
        sample = report["sample"]
        axes[0].set_title(f"{sample['teacher']}, V={sample['vocabulary']:,}", fontsize=10)
    marks = grid[0][-1].get_legend_handles_labels()  # a sample has a gradient and no divergence
    figure.legend(*marks, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _panel(axis: Any, rows: Sequence[Json], name: str) -> None:
    for prefix, (label, colour, marker) in FAMILIES.items():
        points = sorted(
            (row["bytes_per_row"], max(row[name], LEAST))
            for row in rows
            if row["signal"].startswith(prefix)
            and name in row
            and row.get("bytes_per_row", WIDEST) < WIDEST
        )
        if points:
            axis.plot(*zip(*points, strict=True), marker, color=colour, label=label, markersize=5)
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("bytes a row", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.grid(which="major", color="#e6e8eb", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
