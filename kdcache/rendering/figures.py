"""Figures as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def show_all(figures: Mapping[str, Any]) -> str:
    """Figures with their names, those of mappings within them too."""
    return ", ".join(
        f"{name.replace('_', ' ')} {show_all(one) if isinstance(one, Mapping) else show(one)}"
        for name, one in figures.items()
    )


def size(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a figure of 1 or more."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}"


def both(count: int) -> str:
    """Bytes for people and exactly."""
    return f"{size(count)} ({count:,} bytes)"
