"""Corpora of `distillation_gain.py`: what is learnt from, what is chosen by, what is scored on.

The cut into training, dev and test documents is the same for every seed; a seed draws which
training documents keep their label. None of the documents is shipped: reviews are fetched as the
demo does, docstrings are on every machine, the others are read from folders that are named.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcache.demo import reviews
from kdcache.demo.docstrings import split
from kdcache.demo.sentences import Corpus, Sentence, shuffled, unlabelled

HOME, DEV, AWAY = 1200, 400, 500  # documents at most
SENTIMENT = {"0": "negative", "1": "positive"}


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a corpus is cut; all that one seed of it does takes at most 5 minutes of two cores.

    Attributes:
        read: from the folder named on the command line to training, dev and test documents, all
            labelled; test documents by domain.
        folder: whether a folder has to be named.
        train: training documents.
        labels: how many of them keep their label.
        epochs: passes over all of them; labels get as many steps.
        seeds: how many a full run takes.
    """

    read: Callable[[Path | None], Corpus]
    folder: bool = False
    train: int
    labels: int
    epochs: int = 2
    teacher_epochs: int = 3
    seeds: int = 3

    @property
    def label_epochs(self) -> int:
        """Passes over the labelled documents that are as many steps as `epochs` over all."""
        return max(1, round(self.epochs * self.train / self.labels))


def corpus(cut: Cut, folder: Path | None, seed: int) -> Corpus:
    """The corpus of a seed: `labels` of its training documents labelled."""
    whole = cut.read(folder)
    return Corpus(
        name=whole.name,
        train=unlabelled(whole.train[: cut.train], cut.labels, seed),
        dev=whole.dev,
        tests=whole.tests,
        source=whole.source,
    )


def _reviews(folder: Path | None) -> Corpus:
    train = 4000
    archive = reviews.fetch(folder)
    return reviews.corpus(archive, seed=0, train=train, labels=train, dev=DEV, home=HOME, away=AWAY)


def _docstrings(folder: Path | None) -> Corpus:
    train, test = split(0)
    return _cut("docstrings", train, {"docstrings": test}, "Python's standard library")


def _sst2(folder: Path | None) -> Corpus:
    """SST-2, whose dev set is scored on, and product reviews of two domains beside its folder."""
    assert folder is not None
    train = shuffled(_table(folder / "train.tsv"), 0)
    tests = {"movies": _table(folder / "dev.tsv")}
    tests |= {name: found[:AWAY] for name, found in product_reviews(folder.parent).items()}
    return _cut("sst2", train, tests, "Socher et al. 2013; Blitzer et al. 2007")


def product_reviews(folder: Path) -> dict[str, list[Sentence]]:
    """Reviews of each kind of product: the first are scored on."""
    paths = sorted((folder / "reviews").glob("*.tsv"))
    return {path.stem: shuffled(_table(path), 0) for path in paths}


def further_reviews(folder: Path) -> dict[str, list[Sentence]]:
    """Those of each kind of product that are not scored on, in any copy, each once."""
    every = product_reviews(folder)
    scored = {one.text for found in every.values() for one in found[:AWAY]}
    return {
        name: list({one.text: one for one in found if one.text not in scored}.values())
        for name, found in every.items()
    }


def _banking77(folder: Path | None) -> Corpus:
    assert folder is not None
    train, test = (shuffled(_table(folder / f"{name}.csv"), 0) for name in ("train", "test"))
    return _cut("banking77", train, {"banking": test[:HOME]}, "Casanueva et al. 2020")


def _cut(
    name: str, train: Sequence[Sentence], tests: dict[str, list[Sentence]], source: str
) -> Corpus:
    scored = {sentence.text for sentences in tests.values() for sentence in sentences}
    others = [sentence for sentence in train if sentence.text not in scored]
    return Corpus(name=name, train=others[DEV:], dev=others[:DEV], tests=tests, source=source)


def _table(path: Path) -> list[Sentence]:
    """Text and class of every row, from columns sentence and label, or text and category."""
    comma = path.suffix == ".csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file) if comma else (line.rstrip("\n").split("\t") for line in file)
        header = next(rows)
        text, label = (
            next(header.index(n) for n in names if n in header)
            for names in (("sentence", "text"), ("label", "category"))
        )
        found = ((row[text].strip(), row[label]) for row in rows)
        return [Sentence(words, SENTIMENT.get(name, name)) for words, name in found]


CUTS = {
    "reviews": Cut(read=_reviews, train=3200, labels=800, seeds=10),
    "sst2": Cut(read=_sst2, folder=True, train=4000, labels=1600, seeds=10),
    "sst2, all labelled": Cut(read=_sst2, folder=True, train=4000, labels=4000, teacher_epochs=2),
    "docstrings": Cut(read=_docstrings, train=3000, labels=800, epochs=3),
    "banking77": Cut(read=_banking77, folder=True, train=4500, labels=770, teacher_epochs=6),
}
"""Headlines first; where every document has its label, distillation is not expected to help."""
