"""Run the teacher again on some documents and hold what it says against what the cache holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.errors import ConfigError, IncompleteError
from kdcache.maintenance.rebuild_sources import Sources
from kdcache.maintenance.verifying import Finding
from kdcache.manifest import Json
from kdcache.models import Teacher, run
from kdcache.plans import Docs
from kdcache.progress import Advance, Shown, shown
from kdcache.signals import SAMPLED_ROWS, merge, of_signal, taps_of
from kdcache.signals.base import Stats
from kdcache.store import Cache, Place, Root, locate
from kdcache.store.commits.committed_parts import part_documents, parts_in_place

ROWS = 256  # measured at once: float64 over a vocabulary is large

SLACK = {"mean": 2.0, "max": 4.0, "error": 2.0}
"""How far beyond the stored figure some documents may lie, by the last word of a figure's name.

A mean over few rows strays from that over many, a maximum over other rows more so. Rows of another
document or teacher are off by factors of hundreds.
"""

ROUNDING = {
    "fp32": {"mean": 1e-6, "max": 1e-5, "error": 1e-4, "value_error_max": 1e-3},
    "fp16": {"mean": 1e-4, "max": 1e-2, "error": 5e-3, "value_error_max": 5e-2},
    "bf16": {"mean": 5e-3, "max": 1e-1, "error": 3e-2, "value_error_max": 5e-1},
}
"""What a forward in each dtype differs by, from one batch to another: nats, relative error, units
of a logit.
"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One distance between the teacher and the rows of one part.

    Attributes:
        part: whose documents were run.
        signal: name of the signal.
        name: of the figure, as in the cache's fidelity.
        found: over the documents that were run; nats, or a relative error.
        stored: the cache's own fidelity.
        limit: the most that `found` may be.
    """

    part: int
    signal: str
    name: str
    found: float
    stored: float
    limit: float

    @property
    def sound(self) -> bool:
        """Whether the distance lies within its limit; one that is no number does not."""
        return self.found <= self.limit

    def to_json(self) -> Json:
        """Every field, and whether it is sound."""
        return {**asdict(self), "sound": self.sound}


@dataclass(frozen=True, kw_only=True)
class Spot:
    """What running the teacher again on `documents` has shown."""

    path: Root
    documents: int
    figures: tuple[Figure, ...]

    def to_json(self) -> Json:
        """Documents and figures."""
        figures = [figure.to_json() for figure in self.figures]
        return {"documents": self.documents, "figures": figures}

    @property
    def findings(self) -> list[Finding]:
        """Parts whose rows are not what the teacher says; empty if all are."""
        return [
            Finding(
                root=self.path,
                object=figure.signal,
                part=figure.part,
                problem=f"{figure.name} to the teacher is {figure.found:.4g}; stored with "
                f"{figure.stored:.4g}, so at most {figure.limit:.4g}",
            )
            for figure in self.figures
            if not figure.sound
        ]


def spot_check(
    path: Place,
    documents: int,
    *,
    teacher: str | Path | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: Shown = None,
) -> Spot:
    """Run the teacher on `documents` documents, drawn by `seed`, and measure how far its outputs
    lie from those stored, by part and signal, against the fidelity the cache was stored with.

    Args:
        teacher: its folder or hub name, if it is not where it was.

    Raises ModelError if the teacher is not there, MismatchError if it is another one, CacheError.
    """
    progress = shown(progress)
    if documents < 1:
        raise ConfigError(f"a spot check takes 1 document or more; got {documents}")
    sources = Sources(locate(path), teacher, None, device, progress)
    cache = sources.view()
    docs = part_documents(cache, parts_in_place(cache))
    if not len(docs):
        raise IncompleteError(f"{cache.path} holds no part yet")
    drawn = np.random.default_rng(seed).permutation(docs)[:documents]
    figures: list[Figure] = []
    names = (None, *cache.teachers)
    total = len(drawn) * len(names)
    with progress.bar(f"spot check of {cache.path.name}", unit="documents", total=total) as advance:
        for name in names:
            figures += _hold(sources.view(name), sources.teacher(name, "auto"), drawn, advance)
    return Spot(path=cache.path, documents=len(drawn), figures=tuple(figures))


def _hold(cache: Cache, teacher: Teacher, drawn: Docs, advance: Advance) -> Iterator[Figure]:
    """The figures of one teacher, part by part."""
    stored, dtype = stored_fidelity(cache), teacher.identity["dtype"]
    parts = drawn // cache.plan.rows["document"]
    for part in np.unique(parts):
        chosen = np.sort(drawn[parts == part])
        for name, stats in _distance(cache, teacher, chosen).items():
            found = cache.signals[name].summarise(stats)
            where = cache.prefix + name
            yield from _figures(int(part), where, found, stored[name], dtype)
        advance(len(chosen))


def stored_fidelity(cache: Cache) -> Json:
    """The fidelity of the parts that are there, by signal."""
    if cache.complete:
        return cache.fidelity
    commits = [cache.commit(part)["fidelity"] for part in parts_in_place(cache)]
    found: Json = {}
    for name, signal in cache.signals.items():
        where = cache.prefix + name
        if stats := [sums[where] for sums in commits if where in sums]:
            found[name] = signal.summarise(merge(stats))
    return found


def _distance(cache: Cache, teacher: Teacher, docs: Docs) -> dict[str, Stats]:
    """Stats of every row of the documents, by signal.

    Each is run alone: a batch like the build's would only repeat what padding did to it.
    """
    taps = taps_of(cache.signals.values())
    stats: dict[str, list[Stats]] = {name: [] for name in cache.signals}
    task = cache.plan.task
    for doc in docs:
        batch = cache.batch(np.asarray([doc])).to(teacher.device)
        with torch.inference_mode():
            whole = run(teacher.model, batch, taps, task=task)
            for name, signal in cache.signals.items():
                rows = of_signal(batch, name)
                space, sampled = cache.space_of(name), batch.get(f"{name}/{SAMPLED_ROWS}")
                activations = whole.at_rows(task, space, sampled)
                for index in _pieces(len(next(iter(rows.values()))), teacher.device):
                    stats[name].append(signal.measure(activations, rows, index))
    return {name: merge(found) for name, found in stats.items() if found}


def _pieces(rows: int, device: torch.device) -> Iterator[torch.Tensor]:
    if rows:  # splitting none would give one piece of none, which has no distance
        yield from torch.arange(rows, device=device).split(ROWS)


def _figures(part: int, signal: str, found: Json, stored: Json, dtype: str) -> Iterator[Figure]:
    """The distances among some figures, each with what it may be."""
    before = dict(_flat(stored))
    for name, value in _flat(found):
        word = name.partition(", ")[0].rpartition("_")[2]
        if word in SLACK and not name.startswith("full_"):
            rounding = ROUNDING[dtype].get(name, ROUNDING[dtype][word])
            yield Figure(
                part=part,
                signal=signal,
                name=name,
                found=value,
                stored=before[name],
                limit=SLACK[word] * before[name] + rounding,
            )


def _flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}, {key}", inner) for key, inner in value.items())
        else:
            yield name, value
