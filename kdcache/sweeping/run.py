"""A sweep: students trained side by side, shipped one by one, and the one to take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kdcache.errors import require_path
from kdcache.manifest import Json
from kdcache.progress import Progress, Shown, shown
from kdcache.store import Cache, Place, open_cache
from kdcache.sweeping.asked import Asked
from kdcache.sweeping.folder import (
    CONFIGS,
    LOGS,
    dev_of,
    found,
    held,
    metric_without_dev,
    teacher_report,
)
from kdcache.sweeping.grid import Grid, read_grid
from kdcache.sweeping.measuring import Measuring
from kdcache.sweeping.pool import Pool, threads_of
from kdcache.sweeping.record import FAILED, TRAINED, Limits, Student, write_record
from kdcache.sweeping.result import TABLE, SweepResult
from kdcache.sweeping.search import Search
from kdcache.sweeping.shipped import TEACHER
from kdcache.sweeping.slicing import Slicing, read_slicing
from kdcache.sweeping.verdict import record_of


def sweep(
    cache: Place | Cache,
    *,
    out: str | Path,
    grid: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    search: int | None = None,
    dev: str | Path | None = None,
    dev_split: float | str | None = None,
    dev_every: int | str | None = None,
    patience: int | None = None,
    eval_file: str | Path | None = None,
    teacher: str | Path | None = None,
    ship: bool = True,
    max_mb: float | None = None,
    max_ms: float | None = None,
    max_drop: float | None = None,
    by: str | Sequence[str] = (),
    workers: int = 1,
    threads: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Shown = None,
) -> SweepResult:
    """Train many students from `cache` into the folder `out`, ship them, and pick one.

    Started again in the same folder it trains the students that are not trained yet: one that was
    stopped goes on, one that failed is tried anew. With more seeds or axes, the students that both
    sweeps have are kept.

    Args:
        cache: one cache.
        out: a new folder, or that of a sweep of the same cache, dev set and evaluation.
        grid: axes and their values, or a TOML file of them: "recipe", where students come from
            ("layers" and "width" of the teacher's; or "student", "init_from_teacher" or "config"
            as `train` has them), "epochs", "lr", "batch_size", "seed", and any field of a recipe,
            such as "losses.kl.temperature". Students are all combinations.
        overrides: more axes, as texts: "layers=2,3". One takes the place of an axis of the grid.
        seeds: students of each setting, with the seeds 0 and on.
        search: settings that Optuna draws from the axes, of which some may be ranges
            ("training.learning_rate=1e-5..1e-3"), by their scores on the dev set.
        dev: labelled documents that students are chosen on, and, with `dev_split`, `dev_every` and
            `patience`, all that `train` says of it. Without, no student is picked.
        eval_file: labelled documents that students are scored on; no choice is made on them.
        teacher: folder of the teacher, to be shipped and measured too; else where the cache says.
        ship: ship every student and the teacher in float32 and int8 and measure them, one after
            the other, on `dev`, else on `eval_file`.
        max_mb: megabytes (1,000,000 bytes) that the student to pick may take.
        max_ms: milliseconds that it may take for one text on one thread.
        max_drop: points of the dev score that it may be below the teacher.
        by: columns of the file `dev` by whose values students are held against the teacher slice by
            slice, as in `evaluate`; `max_drop` then holds on each slice, too.
        workers: processes that train side by side.
        threads: of each; those of torch here, shared out, if not given.
        device: "auto", "cpu" or "cuda", as `train` has it.
        trust_remote_code: as `train` has it.

    Raises:
        ConfigError: axes or options that cannot work: before anything is trained.
        MissingExtraError: students are to be shipped, or searched, and a package is missing.
        MismatchError: the folder holds a sweep of another cache or dev set.
        IncompleteError: the cache lacks parts.
        CorpusError: a file cannot be read, or has no labels.
        ModelError: a student cannot be made, or the teacher is not there.
        CacheError: the folder cannot be written.
    """
    began = time.perf_counter()
    progress = shown(progress)
    require_path("the folder of a sweep", out, "path")
    axes = read_grid(grid, overrides, seeds)
    known = cache if isinstance(cache, Cache) else open_cache(cache)
    known.require_complete()
    ships = ship and known.plan.task.shipped
    if ship and not ships:
        progress.say(f"models for {known.plan.task} are not shipped: sizes and times are left out")
    asked = Asked(
        cache=known,
        grid=axes,
        train={
            "dev": None if dev is None else str(dev),
            "dev_split": dev_split,
            "dev_every": dev_every,
            "patience": patience,
            "eval_file": None if eval_file is None else str(eval_file),
            "device": device,
            "trust_remote_code": trust_remote_code,
        },
        count=search,
        limits=Limits(max_mb=max_mb, max_ms=max_ms, max_drop=max_drop),
        by=(by,) if isinstance(by, str) else tuple(dict.fromkeys(by)),
        ship=ships,
        teacher=None if teacher is None else str(teacher),
        workers=workers,
        threads=threads_of(max(1, workers)) if threads is None else threads,
    )
    slicing = _sliced(asked, asked.check(), progress)
    for note in asked.said:
        progress.say(note)
    return _Sweep(asked, Path(out), progress, began, slicing).run()


def _sliced(asked: Asked, config: Any, progress: Progress) -> Slicing | None:
    """How the dev set is cut; None: it is not. `config` is a student's."""
    file = asked.train["dev"]
    return read_slicing(asked.cache, file, asked.by, config, progress) if asked.by else None


class _Sweep:
    """A sweep under way.

    Attributes:
        students: those there are so far, by name; of a grid all of them.
        teacher_slices: what it loses, in int8 to float32, where the dev set is sliced.
        teacher_scores: of it in float32, on all documents of that.
    """

    def __init__(
        self,
        asked: Asked,
        folder: Path,
        progress: Progress,
        began: float,
        slicing: Slicing | None,
    ) -> None:
        self.slicing = slicing
        self.teacher_slices: Json = {}
        self.teacher_scores: Json = {}
        self.asked, self.folder, self.progress, self.began = asked, folder, progress, began
        self.metric = metric_without_dev(asked.cache.plan)
        self.students: dict[str, Student] = {}
        self.shipping = 0.0
        self.notes = list(asked.said)

    def run(self) -> SweepResult:
        """Train, ship, choose and tell."""
        workers = self.asked.workers
        with held(self.folder, self.asked):
            with Pool(self.asked.common, workers, self.folder / LOGS) as pool:
                self._train(pool)
                self._measure(pool)
            result = self._told()
            result.table().to_csv(self.folder / TABLE, index=False)
            result.plot()
        return result

    def _train(self, pool: Pool) -> None:
        source = _Listed(self.asked.grid) if self.asked.count is None else self._search()
        self.students = dict(source.students)
        total = (self.asked.count or 0) * max(1, len(self.asked.grid.seeds)) or len(self.students)
        with self.progress.bar("sweep", unit="students", total=total) as advance:

            def following() -> Json | None:
                while (student := source.following()) is not None:
                    known = found(self.folder, student, self.metric)
                    self.students[student.name] = known
                    if known.state != TRAINED:
                        return self._work(student)
                    source.done(student.name, self._worth(known))
                    advance(1)
                return None

            def done(work: Json, answer: Json) -> None:
                student = self._learn(work["name"], answer)
                source.done(student.name, self._worth(student))
                self._told()
                advance(1)

            pool.run(following, done)

    def _search(self) -> Search:
        assert self.asked.count is not None
        return Search(self.asked.grid, self.asked.count, self.folder)

    def _work(self, student: Student) -> Json:
        return {
            "work": "train",
            "name": student.name,
            "folder": str(self.folder / student.folder),
            "arguments": self.asked.arguments(student.settings, self.folder / CONFIGS),
        }

    def _learn(self, name: str, answer: Json) -> Student:
        """Take down what became of a student."""
        student = found(self.folder, self.students[name], self.metric)
        why = answer.get("failed")
        if student.state != TRAINED:
            student = dataclasses.replace(student, state=FAILED, error=why)
            self.progress.say(f"{name} failed: {why}")
        else:
            score = student.eval if student.dev is None else student.dev
            told = "trained" if score is None else f"{score:.4g}"
            self.progress.say(f"{name}: {told}, {student.seconds:.0f} s")
        self.students[name] = student
        return student

    def _worth(self, student: Student) -> float | None:
        """The dev score of a student, the more the better."""
        if student.dev is None:
            return None
        dev = dev_of(self.folder, [student])
        return student.dev if dev is None or dev["higher_is_better"] else -student.dev

    def _measure(self, pool: Pool) -> None:
        """Ship the students that are trained, and hold them against the teacher slice by slice."""
        measuring = Measuring(self.asked, self.folder, self.progress)
        trained = [one for one in self.students.values() if one.state == TRAINED]
        if self.asked.ship or self.slicing is not None:
            measuring.forget_another_teacher()
        if self.asked.ship:
            started = time.perf_counter()
            measuring.ship(pool, trained)
            self.shipping = time.perf_counter() - started
            trained = [found(self.folder, one, self.metric) for one in trained]
        if self.slicing is not None:
            measuring.score(pool, trained)
            lost = partial(self.slicing.lost, self.folder)
            trained = [dataclasses.replace(one, slices=lost(one.name)) for one in trained]
            self.teacher_slices = lost(TEACHER)
            self.teacher_scores = self.slicing.teachers_scores(self.folder)
        self.students |= {one.name: one for one in trained}
        self.notes += measuring.notes

    def _told(self) -> SweepResult:
        """What is known by now, written down."""
        students = tuple(self.students.values())
        measured = teacher_report(self.folder)
        record = record_of(
            self.asked,
            students,
            dev=dev_of(self.folder, students),
            teacher=measured and {**measured, "slices": self.teacher_slices},
            teacher_scores=self.teacher_scores,
            metric=self.metric,
            notes=self.notes,
            seconds={
                "trainings": sum(one.seconds or 0.0 for one in students),
                "shipping": self.shipping,
                "total": time.perf_counter() - self.began,
            },
        )
        write_record(self.folder, record)
        return SweepResult(self.folder, record)


class _Listed:
    """The students of a grid, one after the other."""

    def __init__(self, grid: Grid) -> None:
        found = (one for settings in grid.settings() for one in grid.students(settings))
        self.students = {one.name: one for one in found}
        self._waiting = iter(list(self.students.values()))

    def following(self) -> Student | None:
        """The next student; None: that was the last."""
        return next(self._waiting, None)

    def done(self, name: str, worth: float | None) -> None:
        """Nothing hangs on what a student is worth."""
