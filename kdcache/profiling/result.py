"""What a profile comes to: tables, a picture, files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcache.bench.report import Panel, draw_panels, save_report
from kdcache.manifest import Json
from kdcache.profiling.tables import bars, ms, parts_table
from kdcache.rendering import Section, Table, Text, show, size
from kdcache.store.io.durable_writes import writing

REPORT, PICTURE, TRACE_FILE = "profile.json", "profile.png", "trace.json"


@dataclass(frozen=True)
class ProfileResult:
    """Where the time of a step goes.

    Attributes:
        report: what `profile.json` holds: `rows`, one for each way to take the steps, with seconds,
            bytes and the seconds of each part, and `ops`, one for each op of kdcache's.
    """

    report: Json

    def table(self) -> Table:
        """The parts of a step as `train` takes it, the longest first: milliseconds and shares."""
        ours = self.report["rows"][0]
        return parts_table(ours["parts"], ours["mean_seconds"], "step")

    def ways(self) -> Table:
        """Each way to take the same steps: median milliseconds, times ours, bytes and the loss."""
        rows = [
            (
                row["way"],
                ms(row["seconds"]),
                f"{row['times']:.2f}x",
                "-" if row["peak_bytes"] is None else size(row["peak_bytes"]),
                f"{row['loss']:.6g}",
            )
            for row in self.report["rows"]
        ]
        return Table(("way", "ms", "takes", "memory", "loss"), tuple(rows), figures=True)

    def ops(self) -> Table:
        """Each op of kdcache's in a step: calls, milliseconds, bytes and share of the limit."""
        rows = [
            (
                row["op"],
                show(row["calls"]),
                ms(row["seconds"]),
                size(row["bytes"]),
                f"{size(int(row['bytes_per_s']))}/s",
                f"{row['share_of_limit']:.0%} ({row['bound']})",
            )
            for row in self.report["ops"]
        ]
        return Table(
            ("op", "calls", "ms", "moves", "reached", "of limit"), tuple(rows), figures=True
        )

    def told(self) -> Iterator[tuple[str, Table, str]]:
        """All of it: titles, tables, and what is to be said below."""
        ours = self.report["rows"][0]
        beside = [f"{name} {ms(seconds)} ms" for name, seconds in ours["beside"].items()]
        note = f"In a thread beside a step: {', '.join(beside)}." if beside else ""
        yield "Where a step's time goes", self.table(), note
        yield "The same steps", self.ways(), ""
        none = "" if self.report["ops"] else "The recipe runs none."
        yield "Ops of kdcache in a step", self.ops(), none

    def plot(self, path: str | Path) -> Path:
        """Draw parts and ways as a PNG."""
        rows = self.report["rows"]
        ways = {row["way"]: 1000 * row["seconds"] for row in rows}
        panels = [
            Panel(title="Parts of a step", unit="ms", bars=bars(rows[0]["parts"])),
            Panel(title="The same steps", unit="ms", bars=ways),
        ]
        settings = self.report["settings"]
        title = f"A step of {settings['recipe']}, {settings['batch_size']} documents a forward"
        return draw_panels(Path(path), title, panels)

    def save(self, folder: str | Path, trace: Path | None = None) -> Path:
        """Write report, picture and, where there is one, the trace into a folder; returns it.

        Raises CacheError if it cannot be written.
        """
        place = Path(folder)
        with writing(place):
            save_report(place / REPORT, self.report)
            self.plot(place / PICTURE)
            if trace is not None:
                shutil.copy(trace, place / TRACE_FILE)
        return place

    def __repr__(self) -> str:
        ours = self.report["rows"][0]
        others = ", ".join(f"{r['way']} {r['times']:.2f}x" for r in self.report["rows"][1:])
        return f"<ProfileResult: {ms(ours['seconds'])} ms a step; {others}>"

    def _repr_html_(self) -> str:
        return "\n".join(
            Section(title, (table, *((Text(note),) if note else ()))).html()
            for title, table, note in self.told()
        )
