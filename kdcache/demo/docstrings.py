"""Docstrings of the standard library as a corpus of the demo: offline, and of 40 classes."""

from __future__ import annotations

from kdcache.corpora.standard_library import docstrings
from kdcache.demo.sentences import Corpus, Sentence, cut, shuffled, unlabelled

SOURCE = "docstrings of Python's standard library, labelled by the package they come from"


def split(seed: int, *, test: int = 1200) -> tuple[list[Sentence], list[Sentence]]:
    """All of them in two parts, the second of `test` to score on; labels are packages."""
    found = shuffled([Sentence(d.text, d.package) for d in docstrings()], seed)
    return found[test:], found[:test]


def corpus(*, seed: int, train: int, labels: int, dev: int, home: int) -> Corpus:
    """Docstrings to learn their package from, `labels` of `train` with it, and to score on."""
    learnt, tests = split(seed, test=home)
    chosen_by, rest = cut(learnt, (dev, train))
    return Corpus(
        name="docstrings",
        train=unlabelled(rest, labels, seed),
        dev=chosen_by,
        tests={"docstrings": tests},
        source=SOURCE,
    )
