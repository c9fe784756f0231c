"""A comparison as an image: accuracy with intervals beside the time of every phase."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from kdcache.manifest import Json

NAMES = {
    "teacher": "teacher",
    "labels": "student\nfrom labels",
    "distilled": "student\nfrom the cache",
}
COLOURS = ("#8a8f98", "#c9803b", "#2f6fb2")


def draw_comparison(path: Path, report: Json) -> None:
    """Draw the report of `comparison.compare` as a PNG."""
    figure = Figure(figsize=(10.4, 3.9), layout="constrained", dpi=120)
    accuracy, phases = figure.subplots(1, 2, width_ratios=(1, 1.15))
    models = [(name, report["models"][name]) for name in NAMES]
    values = [100 * scores["accuracy"] for _, scores in models]
    low = [v - 100 * s["accuracy_interval"][0] for v, (_, s) in zip(values, models, strict=True)]
    high = [100 * s["accuracy_interval"][1] - v for v, (_, s) in zip(values, models, strict=True)]
    accuracy.bar(
        [NAMES[name] for name, _ in models], values, color=COLOURS, yerr=[low, high], capsize=5
    )
    for index, value in enumerate(values):
        accuracy.annotate(f"{value:.1f}%", (index, value / 2), ha="center", color="white", size=12)
    accuracy.set_ylabel("accuracy on held-out sentences, %")
    low_gain, high_gain = (100 * v for v in report["gain"]["interval"])
    accuracy.set_title(
        f"gain {100 * report['gain']['accuracy']:+.1f} points "
        f"(95% interval {low_gain:+.1f} to {high_gain:+.1f})",
        fontsize=10,
    )
    steps = list(report["phases"].values())[::-1]
    bars = phases.barh([s["what"] for s in steps], [s["seconds"] for s in steps], color="#5a9a6f")
    phases.bar_label(bars, fmt="%.0f s", padding=3)
    phases.margins(x=0.15)
    phases.set_title("time of every phase", fontsize=10)
    for axis in (accuracy, phases):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
