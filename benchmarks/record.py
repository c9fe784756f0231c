"""What every script here writes beside its figures: machine, versions and date."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcache.bench.report import new_report, save_report, spread

__all__ = ["RESULTS", "save", "spread"]

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write figures to `results/NAME.json`."""
    path = save_report(RESULTS / f"{name}.json", new_report(name, **figures))
    print(f"wrote {path}")
    return path
