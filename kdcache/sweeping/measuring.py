"""What is measured of students that are trained: they are shipped, and scored slice by slice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kdcache.manifest import Json
from kdcache.progress import Progress
from kdcache.shipping.run import KINDS, kept_file
from kdcache.store.io.durable_writes import remove_tree, replace_synced
from kdcache.sweeping.asked import Asked
from kdcache.sweeping.folder import shipped_folder, teacher_report
from kdcache.sweeping.pool import Pool
from kdcache.sweeping.record import Student
from kdcache.sweeping.shipped import TEACHER, teachers_files
from kdcache.sweeping.slicing import scored_folder
from kdcache.training.run_folder import read_json

FULL, SMALL = KINDS
OF_TEACHER = "teacher_of.json"


class Measuring:
    """The work that trained students, and the teacher, are to workers.

    Attributes:
        notes: what a person should know of it.
    """

    def __init__(self, asked: Asked, folder: Path, progress: Progress) -> None:
        self.asked, self.folder, self.progress = asked, folder, progress
        self.notes: list[str] = []

    def forget_another_teacher(self) -> None:
        """Remove what was measured of the teacher where it is not the one that is named now."""
        note, own = self.folder / OF_TEACHER, teachers_files(self.asked.teacher)
        if not note.is_file() or read_json(note) != own:
            remove_tree(shipped_folder(self.folder, TEACHER))
            remove_tree(scored_folder(self.folder, TEACHER))
            replace_synced(note, (json.dumps(own, indent=1) + "\n").encode())

    def ship(self, pool: Pool, trained: Sequence[Student]) -> None:
        """Ship what is not shipped yet, one after the other: what is timed is timed alone.

        So is what was shipped before slices were asked of it, where their scores were not kept.
        """
        work = [
            self._shipping(one.name, "ship", one.folder)
            for one in trained
            if not one.shipped or self._unscored(one.name, SMALL)
        ]
        known = teacher_report(self.folder) is not None
        if trained and (not known or self._unscored(TEACHER, SMALL)):
            work.append(self._shipping(TEACHER, "ship_teacher", None))
        self._work_off(pool, work, "shipping", "shipped", most=1)

    def score(self, pool: Pool, trained: Sequence[Student]) -> None:
        """Score, document by document, what was not when it was shipped."""
        work = [
            self._work(one.name, "score", one.folder)
            for one in trained
            if self._unscored(one.name, FULL)
        ]
        if trained and self._unscored(TEACHER, FULL):
            work.insert(0, self._work(TEACHER, "score_teacher", None))
        if work:
            self._work_off(pool, work, "scoring slices", "scored slice by slice")

    def _unscored(self, name: str, kind: str) -> bool:
        """Whether slices are asked for, and what they are told of is not kept."""
        kept = kept_file(scored_folder(self.folder, name), kind)
        return bool(self.asked.by) and not kept.is_file()

    def _shipping(self, name: str, work: str, folder: str | None) -> Json:
        told = self._work(name, work, folder)
        kept = told["kept"] if self.asked.sliceable else None
        return {**told, "folder": str(shipped_folder(self.folder, name)), "kept": kept}

    def _work(self, name: str, work: str, folder: str | None) -> Json:
        model = self.asked.teacher if folder is None else str(self.folder / folder)
        kept = str(scored_folder(self.folder, name))
        return {"work": work, "name": name, "model": model, "kept": kept}

    def _work_off(
        self, pool: Pool, work: Sequence[Json], label: str, done: str, *, most: int | None = None
    ) -> None:
        """Let workers do all of it; what fails is noted."""
        with self.progress.bar(label, unit="models", total=len(work)) as advance:

            def learn(work: Json, answer: Json) -> None:
                if why := answer.get("failed"):
                    self.notes.append(f"{work['name']} could not be {done}: {why}")
                    self.progress.say(self.notes[-1])
                advance(1)

            waiting = iter(work)
            pool.run(lambda: next(waiting, None), learn, most=most)
