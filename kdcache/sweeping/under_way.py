"""A sweep under way: what is trained, shipped and scored next, and what became of it."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path

from kdcache.manifest import Json
from kdcache.progress import Progress
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
from kdcache.sweeping.grid import Grid
from kdcache.sweeping.measuring import Measuring
from kdcache.sweeping.pool import Pool
from kdcache.sweeping.record import FAILED, TRAINED, Student, write_record
from kdcache.sweeping.result import TABLE, SweepResult
from kdcache.sweeping.search import Search
from kdcache.sweeping.shipped import TEACHER
from kdcache.sweeping.slicing import Slicing, read_slicing
from kdcache.sweeping.verdict import record_of


def opened(cache: Place | Cache) -> Cache:
    """A cache that has all its parts."""
    known = cache if isinstance(cache, Cache) else open_cache(cache)
    known.require_complete()
    return known


def conducted(
    asked: Asked, folder: Path, pool: Pool, progress: Progress, began: float
) -> SweepResult:
    """Do in `folder` what is asked, once it is known that it can be done.

    Args:
        began: when it was asked for, as `time.perf_counter` says.
    """
    config = asked.check()
    file = asked.train["dev"]
    slicing = read_slicing(asked.cache, file, asked.by, config, progress) if asked.by else None
    for note in asked.said:
        progress.say(note)
    return _Sweep(asked, folder, pool, progress, began, slicing).run()


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
        pool: Pool,
        progress: Progress,
        began: float,
        slicing: Slicing | None,
    ) -> None:
        self.slicing = slicing
        self.teacher_slices: Json = {}
        self.teacher_scores: Json = {}
        self.asked, self.folder, self.pool = asked, folder, pool
        self.progress, self.began = progress, began
        self.metric = metric_without_dev(asked.cache.plan)
        self.students: dict[str, Student] = {}
        self.shipping = 0.0
        self.notes = list(asked.said)

    def run(self) -> SweepResult:
        """Train, ship, choose and tell."""
        with held(self.folder, self.asked):
            with self.pool.given(self.asked.common, self.folder / LOGS):
                self._train()
                self._measure()
            result = self._told()
            result.table().to_csv(self.folder / TABLE, index=False)
            result.plot()
        return result

    def _train(self) -> None:
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

            self.pool.run(following, done)

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

    def _measure(self) -> None:
        """Ship the students that are trained, and hold them against the teacher slice by slice."""
        measuring = Measuring(self.asked, self.folder, self.progress)
        trained = [one for one in self.students.values() if one.state == TRAINED]
        if self.asked.ship or self.slicing is not None:
            measuring.forget_another_teacher()
        if self.asked.ship:
            started = time.perf_counter()
            measuring.ship(self.pool, trained)
            self.shipping = time.perf_counter() - started
            trained = [found(self.folder, one, self.metric) for one in trained]
        if self.slicing is not None:
            measuring.score(self.pool, trained)
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
