"""What the demo runs with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdcache.demo import docstrings, reviews
from kdcache.demo.sentences import Corpus
from kdcache.errors import one_of

CORPORA = ("reviews", "docstrings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a demo; `docs/decisions/0026` says how they were chosen.

    Attributes:
        encoder: folder of the encoder that is taught; None: the one of the `demo` extra.
        train: training sentences, of which `labels` keep their label.
        dev: sentences that the weights of teacher and students are chosen by.
        home: sentences to score on, of the domain that is trained on.
        away: sentences to score on, of each domain that is not.
        students: the teacher's layers that each student copies.
        baseline: the student that is trained from labels alone too, in as many steps.
    """

    corpus: str = "reviews"
    seed: int = 0
    encoder: str | None = None
    train: int = 1600
    labels: int = 1000
    dev: int = 400
    home: int = 800
    away: int = 400
    max_length: int = 64
    teacher_epochs: int = 2
    teacher_rate: float = 2e-4
    students: tuple[tuple[int, ...], ...] = ((3, 6), (6,))
    baseline: tuple[int, ...] = (3, 6)
    epochs: int = 2
    rate: float = 6e-4
    batch: int = 64

    def __post_init__(self) -> None:
        one_of("corpus", self.corpus, CORPORA)

    @property
    def steps(self) -> int:
        """Steps of a student's training, from the cache or from labels."""
        return self.epochs * -(-self.train // self.batch)

    @property
    def layers(self) -> list[int]:
        """The teacher's layers whose hidden states students learn from; 0 is the embedding."""
        return sorted({0, *(layer for student in self.students for layer in student)})


def read_corpus(settings: Settings, archive: Path | None) -> Corpus:
    """The corpus of the settings; the reviews are fetched unless their `archive` is given.

    Raises CorpusError if they cannot be.
    """
    sizes = {name: getattr(settings, name) for name in ("seed", "train", "labels", "dev", "home")}
    if settings.corpus == "docstrings":
        return docstrings.corpus(**sizes)
    return reviews.corpus(archive or reviews.fetch(), **sizes, away=settings.away)
