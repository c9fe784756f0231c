"""What it costs to train many students, with the teacher in the loop and from a cache."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one pair of a teacher and a student.

    With T and S the seconds of a step of teacher and student, `teacher` and `student` are T and S
    times the steps of a training.

    Attributes:
        build: running the teacher once over the corpus, into the cache.
        teacher: running it in the loop while one student trains.
        student: training one student from the cache.
        epochs: passes over the corpus in that training.
    """

    build: float
    teacher: float
    student: float
    epochs: float

    def cached(self, students: float) -> float:
        """Seconds until so many students are trained from one cache."""
        return self.build + students * self.student

    def in_the_loop(self, students: float) -> float:
        """Seconds until so many are trained with the teacher in the loop."""
        return students * (self.teacher + self.student)

    @property
    def crossing(self) -> float:
        """Students at which both take as long; times `epochs`, the passes: about one."""
        return self.build / self.teacher

    @property
    def saving(self) -> float:
        """How many times as long a step with the teacher takes: (T + S) / S.

        Many students come to the same: the cache is built once.
        """
        return (self.teacher + self.student) / self.student
