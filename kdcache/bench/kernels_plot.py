"""What a report of `bench kernels` says, a panel a message: speed, lead, memory, predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdcache.bench.report import COLOURS, PAGE_WIDTH, Json

OURS, THEIRS = COLOURS
LINE = "#b8452f"
SIZES = {"rows": "rows", "vocab": "classes", "k": "ids a row", "hidden": "columns"}
LEGIBLE = 8.5
Message = tuple[str, Callable[[Any, Sequence[Json]], None]]


def draw(path: Path, report: Json) -> Path:
    """Draw every op and variant, of each the first size and dtype, in one PNG; return its path.

    A row is a case, as in the tables; a panel is one figure of all cases. Floors on other cards,
    where `limits.predict` has put them into the report, are panels of their own.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = cases(report)
    panels = messages(report)
    size = (PAGE_WIDTH, 0.2 * len(rows) + 1.35)
    inside = ConstrainedLayoutEngine(rect=(0, 0, 0.985, 1))  # numbers beside panels end before it
    figure = Figure(figsize=size, layout=inside, dpi=150)
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, fill) in zip(grid, panels, strict=True):
        fill(axis, rows)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=LEGIBLE)
        axis.spines[["top", "right"]].set_visible(False)
    names = [f"{row['op']} {row['variant']}".strip() for row in rows]
    grid[0].set(yticks=range(len(rows)), yticklabels=names, ylim=(len(rows) - 0.4, -0.6))
    figure.suptitle(_where(report, rows), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def cases(report: Json) -> list[Json]:
    """The first row of every op and variant."""
    firsts = {(row["op"], row["variant"]): row for row in reversed(report["rows"])}
    return [row for row in report["rows"] if firsts[row["op"], row["variant"]] is row]


def messages(report: Json) -> list[Message]:
    """The panels of a report: their titles, and what fills them."""
    names = [card["name"] for card in report.get("predicted", [])]
    return [
        ("share of what the\nmachine can do", _share),
        ("time of the best\nrival, ours being 1", _lead),
        ("memory, MB: ours in\nblue / the best rival's", _memory),
        *((f"predicted floor on\nan {name}, ms", _predicted(name)) for name in names),
    ]


def _where(report: Json, rows: Sequence[Json]) -> str:
    machine = report["machine"]
    on_cpu = report["device"] == "cpu"
    threads = f"{machine['threads']} threads of " if on_cpu else ""
    name = machine["processor"] if on_cpu else machine["gpu"]
    kinds = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
    firsts: dict[str, None] = {}
    for row in rows:
        shown = [f"{row[key]:,} {word}" for key, word in SIZES.items() if key in row]
        if "rows" in row:
            firsts[" of ".join(shown[:2])] = None
    return f"{threads}{name}, {kinds}: {'; '.join(firsts)}"


def _bars(axis: Any, values: Sequence[float | None], text: Callable[[float], str]) -> None:
    """A bar for each value; its number beside the panel, where it touches nothing."""
    widths = [0.0 if value is None else value for value in values]
    axis.barh(range(len(values)), widths, color=OURS, height=0.62)
    _beside(axis, ["-" if value is None else text(value) for value in values])


def _beside(axis: Any, labels: Sequence[str]) -> None:
    place = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": LEGIBLE}
    for y, label in enumerate(labels):
        axis.text(1.04, y, label, **place)


def _mark(axis: Any, value: float) -> None:
    axis.axvline(value, color=LINE, linewidth=1.0, linestyle="--")


def _share(axis: Any, rows: Sequence[Json]) -> None:
    _bars(axis, [100 * row["share_of_limit"] for row in rows], lambda share: f"{share:.0f}%")
    _mark(axis, 100)
    axis.set_xticks([0, 50, 100], ["0", "50%", "100%"])


def _lead(axis: Any, rows: Sequence[Json]) -> None:
    best = [row.get("best") for row in rows]
    _bars(axis, [one and one["ratio"] for one in best], lambda ratio: f"{ratio:.3g}")
    _mark(axis, 1)
    axis.locator_params(axis="x", nbins=4, integer=True)


def _memory(axis: Any, rows: Sequence[Json]) -> None:
    """Both on one line of a logarithmic scale, and in figures beside it."""
    both = [(_megabytes(row), _megabytes(_best(row))) for row in rows]
    for y, (ours, theirs) in enumerate(both):
        known = [x for x in (ours, theirs) if x]
        if known:
            axis.plot([min(known), max(known)], [y, y], color="#d5d8dc", linewidth=1.5, zorder=1)
        for x, colour in ((theirs, THEIRS), (ours, OURS)):
            if x:
                axis.plot(x, y, "o", color=colour, markersize=5, zorder=2)
    axis.set_xscale("log")
    axis.minorticks_off()
    _beside(axis, [" / ".join(map(_short, pair)) for pair in both])


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _best(row: Json) -> Json:
    best = row.get("best")
    return row["rivals"][best["rival"]] if best else {}


def _megabytes(figures: Json) -> float | None:
    held = figures.get("peak_bytes")
    return None if held is None else held / 1e6


def _predicted(card: str) -> Callable[[Any, Sequence[Json]], None]:
    def fill(axis: Any, rows: Sequence[Json]) -> None:
        floors = [1000 * row["predicted"][card]["seconds"] for row in rows]
        _bars(axis, floors, lambda ms: f"{ms:.2g}")
        for bar in axis.patches:  # not filled: nobody measured it
            bar.set(facecolor="white", edgecolor=OURS, hatch="////", linewidth=0.8)
        axis.set_xscale("log")
        axis.minorticks_off()

    return fill
