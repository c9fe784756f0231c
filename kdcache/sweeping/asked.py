"""What a sweep is asked for, checked in full before anything is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, require_path
from kdcache.evaluation.slices import require_sliced
from kdcache.manifest import Json
from kdcache.models.student import WAYS, student_config
from kdcache.records import make
from kdcache.shipping.extra import require_extra
from kdcache.store import Cache
from kdcache.sweeping import search
from kdcache.sweeping.grid import SIZES, SOURCES, Grid, Range, in_toml
from kdcache.sweeping.record import Limits
from kdcache.sweeping.shipped import require_teacher, ship_options
from kdcache.sweeping.sizes import sized
from kdcache.training.arguments import meant_fields, training_arguments
from kdcache.training.dev_options import DevOptions, dev_table
from kdcache.training.evaluation import check_evaluation
from kdcache.training.options import (
    SHORTHANDS,
    dev_fields,
    require_one_student,
    student_spec,
    with_shorthands,
    with_student,
)
from kdcache.training.recipe import load_recipe
from kdcache.training.vocabulary import require_vocabulary

OWN = ("recipe", *SOURCES, *SHORTHANDS)
"""Axes that `train` takes as they are; of the others but sizes, a recipe is overridden."""


FIELDS = {"vocabulary": "student.vocabulary"}
"""Axes that are called otherwise in a recipe."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A sweep as it is asked for.

    Attributes:
        cache: what students learn from.
        train: arguments of `train` that all students have.
        count: settings that a search draws; None: those of the grid.
        by: columns of the dev file by which students are held against the teacher slice by slice.
        ship: whether students are shipped and measured.
        teacher: its folder; None: where the cache says.
    """

    cache: Cache
    grid: Grid
    train: Json
    count: int | None
    limits: Limits
    by: tuple[str, ...]
    ship: bool
    teacher: str | None
    workers: int
    threads: int

    @property
    def chosen(self) -> bool:
        """Whether there is a dev set."""
        return self.train["dev"] is not None or self.train["dev_split"] is not None

    @property
    def measure(self) -> str | None:
        """The file that shipped models are measured on; None: there is none."""
        file: str | None = self.train["dev"] or self.train["eval_file"]
        return file

    @property
    def sliceable(self) -> bool:
        """Whether slices of the dev set can be told apart: it is a file, and has such a score."""
        plan = self.cache.plan
        summed = not plan.task.labelled or plan.label_kind.summed is not None
        return self.train["dev"] is not None and summed

    @property
    def said(self) -> list[str]:
        """What a person should know of it."""
        return list(self._notes())

    def _notes(self) -> Iterator[str]:
        if not self.chosen:
            yield (
                "no dev set was given (--dev FILE, or --dev-split 10%): no student is picked, for "
                "a choice on documents that they are scored on would say too much of them"
            )
        if self.ship and self.measure is None:
            yield "nothing was timed: --dev FILE or --eval FILE names texts to run models on"
        elif self.ship and self.chosen and self.train["dev"] is None:
            yield (
                "students in int8 have no score on the dev set, whose texts are in no file, and "
                "none of them is picked: name one with --dev FILE"
            )

    def check(self) -> Any:
        """The configuration of a student; its classes are those of all.

        Raises ConfigError, or what `train` raises, for what cannot work of all that is asked.
        """
        self._check_options()
        given = {name: self.train[name] for name in ("dev", "dev_split", "dev_every", "patience")}
        fields = dev_fields(given, ())
        if fields and not self.chosen:
            raise ConfigError("--dev-every and --patience are of a dev set: add --dev FILE")
        options = make(DevOptions, dev_table(fields), "dev") if fields else None
        check_evaluation(self.train["eval_file"], None, self.cache.plan.config, options)
        if self.ship:
            require_extra()
        if self.ship or self.by:
            trust = self.train["trust_remote_code"]
            require_teacher(self.cache, self.teacher, trust_remote_code=trust)
        with tempfile.TemporaryDirectory() as scratch:
            probes = self._probes()
            first, *_ = [self._check_student(one, fields, Path(scratch)) for one in probes]
        return first

    def _check_options(self) -> None:
        file = self.train["eval_file"]
        if file is not None:
            require_path("the evaluation file", file, "path")
        if self.count is not None:
            if self.count < 1:
                raise ConfigError(f"--search is how many settings are drawn; got {self.count}")
            if not self.chosen:
                raise ConfigError("--search goes by the scores on a dev set: add --dev FILE")
            search.require_extra()
        if self.limits and not self.chosen:
            raise ConfigError(
                "a student is picked by its score on a dev set: add --dev FILE, or leave --max-mb, "
                "--max-ms and --max-drop out"
            )
        if self.by:
            self._check_by()
        sizes = self.limits.max_mb is not None or self.limits.max_ms is not None
        if sizes and not self.ship:
            raise ConfigError(
                "--max-mb and --max-ms are about what ship writes, and nothing is shipped here "
                "(--no-ship, or a task that ship does not know): leave them out"
            )
        if self.limits.max_ms is not None and self.measure is None:
            raise ConfigError("--max-ms is measured on texts: name them with --dev or --eval FILE")

    def _check_by(self) -> None:
        if self.train["dev"] is None:
            raise ConfigError(
                "--by cuts the dev set by a column of its file, and a share of the cache "
                "(--dev-split) has none: name a file with --dev FILE, or leave --by out"
            )
        plan = self.cache.plan
        require_sliced(plan.task, plan.label_kind if plan.task.labelled else None)

    def _probes(self) -> list[Json]:
        """Settings that show whether each value of each axis can be had: all, but of a search."""
        if self.count is None:
            return self.grid.settings()
        ends = {n: _ends(values) for n, values in self.grid.axes.items()}
        first = {name: values[0] for name, values in ends.items()}
        return [first, *({**first, n: one} for n, values in ends.items() for one in values[1:])]

    def _check_student(self, settings: Json, dev: Json, scratch: Path) -> Any:
        given = self.arguments(settings, scratch)
        overrides = given["overrides"]
        recipe = load_recipe(given["recipe"], overrides, meant_fields(), dev)
        source: Any = [given.get(name) for name in SOURCES]
        require_one_student(overrides, *source)
        recipe = with_student(recipe, *source)
        if not any(recipe.student.get(way) for way in WAYS):
            raise ConfigError(
                "say where students come from: layers=2,3 takes layers of the teacher, and "
                "student=bilstm,static or config=FILE make others"
            )
        recipe = with_shorthands(recipe, {name: given.get(name) for name in SHORTHANDS}, overrides)
        training_arguments(recipe, scratch)
        trust = self.train["trust_remote_code"]
        spec = student_spec(recipe, trust_remote_code=trust)
        if fewer := recipe.student.get("vocabulary"):
            require_vocabulary([self.cache], fewer, recipe, spec)
        return student_config(spec, self.cache)

    def arguments(self, settings: Json, folder: Path) -> Json:
        """What `train` is told of a student; configurations that it needs go into `folder`."""
        found = {name: value for name, value in settings.items() if name in OWN}
        if any(name in settings for name in SIZES):
            found |= sized(self.cache, folder, settings.get("layers"), settings.get("width"))
        if type(found.get("init_from_teacher")) is int:
            found["init_from_teacher"] = [found["init_from_teacher"]]
        rest = [name for name in settings if name not in (*OWN, *SIZES)]
        fields = [(FIELDS.get(name, name), settings[name]) for name in rest]
        return {**found, "overrides": [f"{name}={in_toml(value)}" for name, value in fields]}

    @property
    def common(self) -> Json:
        """What a worker is told before its work."""
        trust = self.train["trust_remote_code"]
        return {
            "cache": str(self.cache.path),
            "of_teacher": self.cache.teacher or None,
            "threads": self.threads,
            "train": self.train,
            "ship": ship_options(self.cache, self.measure, trust_remote_code=trust),
        }


def _ends(values: Any) -> Sequence[Any]:
    return (values.low, values.high) if isinstance(values, Range) else values
