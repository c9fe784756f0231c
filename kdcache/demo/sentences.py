"""Labelled sentences, and the parts that a corpus is cut into."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Sentence(NamedTuple):
    """A sentence and its class; an empty label is none."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Sentences to teach with, to choose by, and to score on once.

    Attributes:
        train: training sentences; those without a label are for the teacher to label.
        dev: what weights and settings are chosen by.
        tests: sentences to score on, by domain. The first is where the others come from.
        source: what the sentences are and whom to cite.
    """

    name: str
    train: Sequence[Sentence]
    dev: Sequence[Sentence]
    tests: Mapping[str, Sequence[Sentence]]
    source: str


def unlabelled(sentences: Sequence[Sentence], labels: int, seed: int) -> list[Sentence]:
    """The same sentences, `labels` of them with a label: of each class its share, at least one."""
    rng = np.random.default_rng((seed, 1))
    names = np.array([s.label for s in sentences])
    classes, counts = np.unique(names, return_counts=True)
    exact = labels * counts / len(names)
    take = np.maximum(1, np.floor(exact).astype(int))
    for index in np.argsort(exact - take)[::-1]:
        if take.sum() >= labels:
            break
        take[index] += take[index] < counts[index]
    labelled = np.zeros(len(names), bool)
    for name, count in zip(classes, take, strict=True):
        labelled[rng.permutation(np.flatnonzero(names == name))[:count]] = True
    return [s if k else s._replace(label="") for s, k in zip(sentences, labelled, strict=True)]


def shuffled(sentences: Sequence[Sentence], seed: int) -> list[Sentence]:
    """The sentences in the order that a seed draws."""
    order = np.random.default_rng(seed).permutation(len(sentences))
    return [sentences[i] for i in order]


def cut(sentences: Sequence[Sentence], sizes: Sequence[int]) -> list[Sequence[Sentence]]:
    """Parts of these sizes, one behind the other; the last are shorter if there are too few."""
    ends = np.cumsum(sizes).tolist()
    return [sentences[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def write(path: Path, sentences: Iterable[Sentence]) -> None:
    """Write a CSV file with columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Sentence._fields)
        writer.writerows(sentences)
