"""What a cache was made from, loaded again when first needed: teacher, tokenizer, plan."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.builder import is_plan, kept_files
from kdcache.models import Teacher, Tokenizer, classes_of, load_tokenizer
from kdcache.models.same import load_same_teacher
from kdcache.planner import PlanOptions, make_plan, scratch_folder
from kdcache.plans import Plan, PlanConfig
from kdcache.progress import Progress
from kdcache.store import Root, Writer, open_plan
from kdcache.store.blueprint import read_blueprint
from kdcache.store.zarrs import require_record


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
    ) -> None:
        self.root, self.device = root, device
        self.teacher_place, self.tokenizer_place = teacher_place, tokenizer_place
        self._teachers: dict[str, Teacher] = {}

    @cached_property
    def writer(self) -> Writer:
        """A writer of the cache, which must be whole enough to be opened by now."""
        return Writer(self.root)

    def teacher(self, device: str) -> Teacher:
        """The teacher, on `device` unless another was chosen.

        Raises ModelError if it is not there, MismatchError if it is another one.
        """
        place = self.device or device
        if place not in self._teachers:
            cache = self.writer.cache
            self._teachers[place] = load_same_teacher(
                cache.manifest["teacher"],
                task=cache.plan.config.task,
                source=self.teacher_place,
                device=place,
            )
        return self._teachers[place]

    @property
    def _folder(self) -> str | Path:
        manifest = require_record(self.root, "cache")
        return self.teacher_place or str(manifest["teacher"]["source"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ModelError if it is not there."""
        return load_tokenizer(self.tokenizer_place or self._folder)

    def files(self) -> dict[str, bytes | Path]:
        """The files the cache keeps, made again."""
        cache = self.writer.cache
        weights = any(".safetensors/" in key for key in cache.objects)
        return kept_files(
            cache.plan, self.teacher("cpu"), cache.signals, self.tokenizer(), weights=weights
        )

    @contextmanager
    def plan(self, corpus: Any, progress: Progress) -> Iterator[Plan]:
        """The plan of the cache, made again from its corpus or opened where `corpus` is a plan."""
        if is_plan(corpus):
            yield open_plan(corpus)
            return
        config = read_blueprint(require_record(self.root, "cache"), self.root).config
        with scratch_folder(None) as scratch:
            yield make_plan(
                corpus,
                self.tokenizer(),
                scratch=scratch,
                task=config.task,
                classes=classes_of(self._folder),
                progress=progress,
                **plan_options(config),
            )


def plan_options(config: PlanConfig) -> PlanOptions:
    """The options that lead to a plan of this configuration."""
    options = PlanOptions(
        text_columns=config.corpus["text_columns"],
        label_column=config.corpus["label_column"] or "",
        label_type="float" if config.problem == "regression" else "class",
        limit=config.corpus["documents"],
        max_length=config.max_length,
        part_tokens=config.part_tokens,
        seed=config.seed,
    )
    if config.task == "masked-lm":
        options["mask_probability"] = config.mask_probability
        options["views"] = config.views
    return options
