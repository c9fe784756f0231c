"""The folder of a shipped model, as `ship` leaves it."""

from __future__ import annotations

from pathlib import Path

from kdcache.reporting.facts import ShippedFacts
from kdcache.reporting.files import Reader
from kdcache.shipping.folder import REPORT, SETTINGS, bytes_of


def is_shipped(folder: Path) -> bool:
    """Whether `ship` wrote the folder."""
    return (folder / SETTINGS).is_file()


def read_shipped(folder: Path, name: str) -> ShippedFacts:
    """What the folder of a shipped model tells."""
    files = Reader(folder)
    settings = files.json(SETTINGS, "")
    report = files.json(
        REPORT,
        f"{REPORT} is not there, an earlier version shipped it: what was measured, if anything, "
        "stands in its README.md; ship it again",
    )
    if report and "models" not in report:
        files.notes.append(
            "its latency and scores were not measured: `kdcache ship ... --measure FILE` does"
        )
    return ShippedFacts(
        name=name,
        folder=folder,
        settings=settings,
        report=report or None,
        bytes=bytes_of(folder),
        notes=tuple(files.notes),
    )
