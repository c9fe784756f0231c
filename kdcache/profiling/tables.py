"""Parts of a time as a table."""

from __future__ import annotations

from collections.abc import Mapping

from kdcache.profiling.recorder import OTHER
from kdcache.rendering import Table, show


def bars(parts: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds of parts, the longest first, and of the rest at the end."""
    slowest = sorted(parts, key=lambda part: (part == OTHER, -parts[part]))
    return {part: 1000 * parts[part] for part in slowest}


def parts_table(parts: Mapping[str, float], whole: float, name: str) -> Table:
    """Milliseconds and shares of parts, and of the whole, which has a name."""
    rows = [(part, ms(parts[part]), f"{parts[part] / whole:.1%}") for part in bars(parts)]
    return Table(("part", "ms", "share"), (*rows, (name, ms(whole), "100.0%")), figures=True)


def ms(seconds: float) -> str:
    """Milliseconds as a person reads them."""
    return show(1000 * seconds)
