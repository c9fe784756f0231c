"""Profile a build: where the time of running the teacher goes, in a folder that is not kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch

from kdcache.bench.report import Panel, draw_panels, new_report, save_report
from kdcache.bench.timing import PeakBytes
from kdcache.building.asked import is_plan
from kdcache.building.builder import build
from kdcache.building.planner import PlanOptions
from kdcache.manifest import Json
from kdcache.models import pick_device
from kdcache.profiling.recorder import Clock, Recorded, Recorder, clock_of
from kdcache.profiling.tables import bars, ms, parts_table
from kdcache.progress import Shown
from kdcache.rendering import Section, Table, Text, size
from kdcache.spans import TEACHING, WRITE, WRITER, watched
from kdcache.store import Cache
from kdcache.store.io.durable_writes import require_writable, writing
from kdcache.tasks import Task

LIMIT = 2000
"""Documents, unless the call says how many."""


def profile_build(
    corpus: Any,
    *,
    teacher: str | Path,
    task: str | Task,
    out: str | Path | None = None,
    progress: Shown = None,
    signals: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "fp32",
    batch_tokens: int = 8192,
    trust_remote_code: bool = False,
    **options: Unpack[PlanOptions],
) -> BuildProfile:
    """Measure where the time of `build` goes while it runs the teacher, for this corpus.

    The cache is written to a temporary folder, which is removed.

    Args:
        corpus, teacher, task, signals, device, dtype, batch_tokens, trust_remote_code, options: as
            `build` takes them; of a corpus that is no plan the first 2,000 documents are read if
            there is no `limit`.
        out: folder for `build.json` and `build.png`.

    Raises:
        ConfigError: a signal or option cannot be served; a device that is neither a CPU nor a
            CUDA GPU.
        CorpusError: the corpus cannot be read, or its labels are not what the teacher knows.
        ModelError: the teacher cannot be loaded, or does not give what a signal is made of.
        CacheError: `out` cannot be written.
    """
    where = pick_device(device)
    watch = _Watch(clock_of(where), where)
    if out is not None:
        require_writable(Path(out))
    if not is_plan(corpus):
        options.setdefault("limit", LIMIT)
    with tempfile.TemporaryDirectory() as scratch, watched(watch.part):
        cache = build(
            corpus,
            teacher=teacher,
            task=task,
            out=Path(scratch) / "cache",
            signals=signals,
            device=device,
            dtype=dtype,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
            progress=progress,
            **options,
        )
        result = BuildProfile(_report(cache, watch, where, batch_tokens, dtype))
    if out is not None:
        result.save(out)
    return result


class _Watch:
    """Records the parts of the time in which the teacher runs."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self.recorder, self.device = Recorder(clock), device
        self.found = Recorded(0.0, {}, {})
        self.peak: int | None = None

    def part(self, name: str) -> AbstractContextManager[Any]:
        """What `spans` takes: before and after the teacher runs, parts are not of it."""
        return self._all() if name == TEACHING else self.recorder.part(name)

    @contextmanager
    def _all(self) -> Iterator[None]:
        peak = PeakBytes(self.device)
        self.recorder.begin()
        yield
        self.found = self.recorder.end()
        self.peak = peak.end()


def _report(
    cache: Cache, watch: _Watch, device: torch.device, batch_tokens: int, dtype: str
) -> Json:
    found, plan = watch.found, cache.plan
    return new_report(
        "build",
        device=str(device),
        settings={
            "teacher": cache.manifest["teacher"]["name"],
            "signals": [str(signal) for signal in cache.signals],
            "batch_tokens": batch_tokens,
            "dtype": dtype,
            "documents": plan.documents,
            "tokens": plan.tokens,
            "parts": plan.parts,
            "bytes": sum(cache.bytes.values()),
        },
        key=["way", "device"],
        better={"seconds": "lower", "peak_bytes": "lower"},
        rows=[
            {
                "way": "build",
                "device": device.type,
                "seconds": found.seconds,
                "peak_bytes": watch.peak,
                "parts": found.parts,
                "beside": found.beside,
                "tokens_per_s": plan.tokens / found.seconds,
                "overlap": overlap(found),
            }
        ],
    )


def overlap(found: Recorded) -> float:
    """The share of the writing in which the teacher ran on, and nobody waited for it."""
    written = found.beside.get(WRITE, 0.0)
    return max(0.0, 1 - found.parts.get(WRITER, 0.0) / written) if written else 0.0


@dataclass(frozen=True)
class BuildProfile:
    """Where the time of a build goes.

    Attributes:
        report: what `build.json` holds: under `rows` the seconds and bytes of all, the seconds of
            each part, and the share of the writing that overlapped with the teacher.
    """

    report: Json

    def table(self) -> Table:
        """The parts of running the teacher, the longest first: milliseconds and shares."""
        (row,) = self.report["rows"]
        return parts_table(row["parts"], row["seconds"], "all")

    def notes(self) -> str:
        """What ran beside, and how fast all was."""
        (row,), settings = self.report["rows"], self.report["settings"]
        peak = "" if row["peak_bytes"] is None else f"; {size(row['peak_bytes'])} of memory"
        return (
            f"{settings['tokens']:,} tokens at {row['tokens_per_s']:,.0f} a second{peak}. Writing "
            f"{size(settings['bytes'])} in {settings['parts']} parts took "
            f"{ms(row['beside'].get(WRITE, 0.0))} ms in a thread, {row['overlap']:.0%} of it while "
            "the teacher ran; the last part is waited for."
        )

    def save(self, folder: str | Path) -> Path:
        """Write report and picture into a folder; returns it.

        Raises CacheError if it cannot be written.
        """
        (row,) = self.report["rows"]
        place = Path(folder)
        with writing(place):
            save_report(place / "build.json", self.report)
            panel = Panel(title="Running the teacher", unit="ms", bars=bars(row["parts"]))
            draw_panels(place / "build.png", "Where a build's time goes", [panel], columns=1)
        return place

    def __repr__(self) -> str:
        (row,) = self.report["rows"]
        return f"<BuildProfile: {row['tokens_per_s']:,.0f} tokens a second>"

    def _repr_html_(self) -> str:
        return Section("Where a build's time goes", (self.table(), Text(self.notes()))).html()
