"""What a cache was made from, loaded again when first needed: teachers, tokenizer, plan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.building.asked import is_plan
from kdcache.building.creating import cache_files
from kdcache.building.planner import PlanOptions, make_plan, scratch_folder
from kdcache.errors import ConfigError, DamageError, MismatchError
from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, classes_of, load_tokenizer
from kdcache.models.teacher_again import load_same_teacher
from kdcache.plans import Plan, PlanConfig
from kdcache.plans.identity import say_unvouched
from kdcache.progress import Progress, quiet
from kdcache.signals.features import prefix as layer_prefix
from kdcache.store import Cache, Root, open_plan
from kdcache.store.format.manifest_schema import read_schema
from kdcache.store.format.zarr_metadata import require_record
from kdcache.tasks import TASKS

WEIGHTS = re.compile(r"teacher/.*\.safetensors")
"""Files that hold all weights of a teacher."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one build has put into a cache: all of it, or its share of a merged one.

    Attributes:
        teacher: name of its teacher in a merged cache; None: the first.
        prefix: where its arrays lie.
        signals: names of its signals that this version knows, without the prefix.
        parts: what the names of a signal's arrays begin with that are of this build, where another
            has made other layers.
    """

    teacher: str | None
    prefix: str
    signals: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """What the names of its arrays begin with, as its own teacher's cache has them."""
        return tuple(
            f"{signal}/{part}" for signal in self.signals for part in self.parts.get(signal, ("",))
        )

    def holds(self, array: str) -> bool:
        """Whether an array, as its own teacher's cache names it, is of this build."""
        return array.startswith(self.groups)

    def owns(self, key: str) -> bool:
        """Whether an object is of this build."""
        return key.startswith(tuple(self.prefix + group for group in self.groups))

    def sums(self, signal: str, stats: Json) -> Json:
        """Of the sums of a signal those that are of this build."""
        if signal not in self.parts:
            return stats
        own = tuple(part.replace("/", "_") for part in self.parts[signal])
        return {name: n for name, n in stats.items() if name == "rows" or name.startswith(own)}


class Sources:
    """The sources of the cache at `root`, where they are named, else where they were.

    Attributes:
        teacher_place: folder or hub name; None: where the manifest says.
        tokenizer_place: None: with the teacher.
        device: to run the teacher on; None: the kind it was run on.
    """

    def __init__(
        self,
        root: Root,
        teacher_place: str | Path | None,
        tokenizer_place: str | Path | None,
        device: str | None,
        progress: Progress = quiet,
    ) -> None:
        self.root, self.device, self.progress = root, device, progress
        self.teacher_place, self.tokenizer_place = teacher_place, tokenizer_place
        self._teachers: dict[tuple[str | None, str], Teacher] = {}
        self._views: dict[str | None, Cache] = {}

    def view(self, teacher: str | None = None) -> Cache:
        """The cache, which must be whole enough to be opened by now, as one of its teachers'."""
        if teacher not in self._views:
            self._views[teacher] = Cache(self.root, teacher=teacher)
        return self._views[teacher]

    @cached_property
    def shares(self) -> list[Share]:
        """Who has put what into the cache, in the order of its records."""
        cache = self.view()
        merged = cache.manifest.get("merged")
        if merged is None:
            return [Share(teacher=None, prefix="", signals=tuple(cache.signals))]
        try:
            return [self._share(entry) for entry in merged]
        except (LookupError, TypeError, AttributeError, ConfigError) as error:
            where = self.root / "zarr.json"
            raise DamageError(f"{where} is damaged: `merged` makes no sense ({error})") from error

    def _share(self, entry: Json) -> Share:
        """The share of an entry of `merged`, whose signals are named "teachers/NAME/logits"."""
        names = entry["signals"]
        prefix = names[0].rpartition("/")[0]
        teacher = prefix.removeprefix("teachers/") if prefix else None
        if teacher is not None and teacher not in self.view().teachers:
            raise LookupError(teacher)
        known: dict[str, Any] = dict(self.view(teacher).signals)
        own = {name.rpartition("/")[2]: found for name, found in entry.get("layers", {}).items()}
        return Share(
            teacher=teacher,
            prefix=f"{prefix}/" if prefix else "",
            signals=tuple(n for name in names if (n := name.rpartition("/")[2]) in known),
            parts={
                name: tuple(map(layer_prefix, replace(known[name], layers=tuple(found)).taps()))
                for name, found in own.items()
                if name in known
            },
        )

    def teacher(self, teacher: str | None, device: str) -> Teacher:
        """A teacher of the cache, on `device` unless another was chosen.

        Raises ModelError if it is not there, MismatchError if it is another one.
        """
        where = teacher, self.device or device
        if not self._teachers:
            views = map(self.view, (None, *self.view().teachers))
            say_unvouched(self.progress, ((self.root, v.manifest["teacher"]) for v in views))
        if where not in self._teachers:
            self._teachers[where] = self._load(*where)
        return self._teachers[where]

    def _load(self, teacher: str | None, device: str) -> Teacher:
        cache = self.view(teacher)
        identity, task = cache.manifest["teacher"], cache.plan.task
        try:
            return load_same_teacher(identity, task=task, source=self.teacher_place, device=device)
        except MismatchError:
            if self.teacher_place is None or not self.view().teachers:
                raise
            return load_same_teacher(identity, task=task, device=device)  # it named another of them

    @property
    def _folder(self) -> str | Path:
        manifest = require_record(self.root, "cache")
        return self.teacher_place or str(manifest["teacher"]["source"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ModelError if it is not there."""
        return load_tokenizer(self.tokenizer_place or self._folder)

    def files(self) -> dict[str, bytes | Path]:
        """The files the cache keeps, made again, by name in the store."""
        found: dict[str, bytes | Path] = {}
        for teacher in (None, *self.view().teachers):
            cache = self.view(teacher)
            made = cache_files(
                cache.plan,
                self.teacher(teacher, "cpu"),
                cache.signals,
                self.tokenizer(),
                weights=any(WEIGHTS.fullmatch(name) for name in cache.stored_files.locations),
            )
            found |= {
                cache.stored_files.locations[name]: made[name]
                for name in cache.stored_files.locations.keys() & made.keys()
            }
        return found

    @contextmanager
    def plan(self, corpus: Any, progress: Progress) -> Iterator[Plan]:
        """The plan of the cache, made again from its corpus or opened where `corpus` is a plan."""
        if is_plan(corpus):
            yield open_plan(corpus)
            return
        config = read_schema(require_record(self.root, "cache"), self.root).config
        task = TASKS[config.task]
        with scratch_folder(None) as scratch:
            yield make_plan(
                corpus,
                self.tokenizer(),
                scratch=scratch,
                task=task,
                classes=classes_of(self._folder, task),
                progress=progress,
                **plan_options(config),
            )


def plan_options(config: PlanConfig) -> PlanOptions:
    """The options that lead to a plan of this configuration."""
    options = PlanOptions(
        text_columns=config.corpus["text_columns"],
        label_column=config.corpus["label_column"] or "",
        label_type=LABEL_KINDS[config.label_kind].label_type or "auto",
        limit=config.corpus["documents"],
        max_length=config.max_length,
        part_tokens=config.part_tokens,
        seed=config.seed,
    )
    options.update(TASKS[config.task].own(config))  # type: ignore[typeddict-item]  # of its fields
    return options
