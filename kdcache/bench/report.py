"""What every benchmark shares: the record of the machine, files, regressions and bar charts.

A report is JSON. Beside what `new_report` adds it holds `rows`, one measured case each; `key`, the
fields that name a row; and `better`, the figures to compare and whether `lower` or `higher` is
better.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from kdcache.errors import ConfigError, MismatchError

Json = dict[str, Any]

FORMAT = 2
"""Of a report. Those of format 1 lack `best`, `goals` and `keeping` of kernels; what `better` names
they have too, so they can be compared with."""

PACKAGES = (
    "kdcache",
    "torch",
    "triton",
    "transformers",
    "numpy",
    "zarr",
    "numba",
    "tokenizers",
    "liger-kernel",
)
COLOURS = ("#2f6fb2", "#8a8f98")
TOLERANCE = 0.10


def machine() -> Json:
    """The processor, memory, GPU and versions a figure belongs to; packages not there are left out.

    Bytes are bytes; `threads` are those torch uses for one operation.
    """
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **_gpu(),
        "python": platform.python_version(),
        **{name: number for name in PACKAGES if (number := installed(name))},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu() -> Json:
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties()
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def installed(package: str) -> str | None:
    """The version of an installed distribution, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def new_report(benchmark: str, **figures: Any) -> Json:
    """Figures with the name of the benchmark, the date and the machine in front."""
    return {
        "benchmark": benchmark,
        "format": FORMAT,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        **figures,
    }


def save_report(path: Path, report: Mapping[str, Any]) -> Path:
    """Write a report as JSON and return its path; the folder is made if it is not there.

    Raises ConfigError if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): name another folder") from error
    return path


def load_report(path: Path, benchmark: str) -> Json:
    """Read a report of this benchmark.

    Raises ConfigError if the file is not there or no report; MismatchError if it is one of another
    benchmark or format.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable report: {error}") from error
    if not isinstance(report, dict) or "benchmark" not in report:
        raise ConfigError(f"{path} is not a report of `kdcache bench`: it names no benchmark")
    known: dict[str, list[Any]] = {"benchmark": [benchmark], "format": list(range(1, FORMAT + 1))}
    for name, expected in known.items():
        if report.get(name) not in expected:
            raise MismatchError(
                f"{path} has {name} {report.get(name)!r}, expected "
                f"{' or '.join(map(repr, expected))}: "
                f"compare with a report that this version of `kdcache bench {benchmark}` wrote"
            )
    return report


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, least and largest of repeats."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A figure that got worse: `ratio` is how many times, always above 1."""

    row: str
    figure: str
    old: float
    new: float
    ratio: float

    def to_json(self) -> Json:
        """The fields by name."""
        return asdict(self)


def regressions(old: Json, new: Json, tolerance: float = TOLERANCE) -> list[Change]:
    """Figures of `new` that are worse than those of `old` by more than a share of `tolerance`.

    Rows are matched by the fields that `new["key"]` names; those in one report only are passed
    over. Raises MismatchError if no row is in both: nothing would have been compared.
    """
    before = {_name(row, new["key"]): row for row in old["rows"]}
    pairs = [(_name(row, new["key"]), row) for row in new["rows"]]
    common = [(name, before[name], row) for name, row in pairs if name in before]
    if not common:
        raise MismatchError(
            "the reports have no row in common: run with the operations and sizes of the old one "
            f"({', '.join(list(before)[:3]) or 'it has no rows'}, ...)"
        )
    found = (
        _worse(name, figure, better, was.get(figure), now.get(figure))
        for name, was, now in common
        for figure, better in new["better"].items()
    )
    return [change for change in found if change and change.ratio > 1 + tolerance]


def _name(row: Json, key: Iterable[str]) -> str:
    return " ".join(str(row[name]) for name in key if row.get(name) not in (None, ""))


def _worse(
    row: str, figure: str, better: Literal["lower", "higher"], old: Any, new: Any
) -> Change | None:
    if not old or not new:  # not measured, or nothing that a ratio could be taken of
        return None
    ratio = new / old if better == "lower" else old / new
    return Change(row=row, figure=figure, old=old, new=new, ratio=ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Bars of one measured case, the first of them ours; `lines` are values marked across them."""

    title: str
    unit: str
    bars: Mapping[str, float]
    lines: Mapping[str, float] = field(default_factory=dict)


PAGE_WIDTH = 8.3  # inches: at 100 dots an inch what a README is wide


def draw_panels(path: Path, title: str, panels: Sequence[Panel], *, columns: int = 2) -> Path:
    """Draw every panel as horizontal bars in one PNG and return its path."""
    from matplotlib.figure import Figure

    rows = max(1, -(-len(panels) // columns))
    tallest = max((len(panel.bars) for panel in panels), default=1)
    size = (PAGE_WIDTH, (0.9 + 0.23 * tallest) * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw(axis: Any, panel: Panel) -> None:
    """Bars; what a dashed line is stands below them, where it covers none."""
    names, values = list(panel.bars)[::-1], list(panel.bars.values())[::-1]
    colours = [COLOURS[1]] * (len(names) - 1) + [COLOURS[0]]
    bars = axis.barh(names, values, color=colours)
    clear = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    axis.bar_label(bars, fmt=_digits, padding=3, fontsize=9, bbox=clear)
    for value in panel.lines.values():
        axis.axvline(value, color="#b8452f", linewidth=1.2, linestyle="--", zorder=0)
    axis.margins(x=0.2)
    axis.locator_params(axis="x", nbins=5)
    axis.tick_params(labelsize=9)
    below = "; dashed: ".join([panel.unit, *panel.lines])
    axis.set_xlabel(textwrap.fill(below, 34), fontsize=9)
    axis.set_title(textwrap.fill(panel.title, 34), fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
