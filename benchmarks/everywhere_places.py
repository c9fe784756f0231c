"""The corpora that `everywhere.py` takes recipes to, and the task on each."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gain_corpora import SENTIMENT
from trial import TASK

Row = dict[str, Any]


def pairs(data: Path) -> list[Row]:
    """Pairs of sentences of MRPC, and whether they say the same."""
    lines = (data / "mrpc" / "train.tsv").read_text("utf-8-sig").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    names = ("different", "same")
    return [{"sentence1": c[3], "sentence2": c[4], "label": names[int(c[0])]} for c in cells]


def _intents(data: Path) -> list[Row]:
    with (data / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


def _feelings(data: Path) -> list[Row]:
    lines = (data / "sst2" / "train.tsv").read_text("utf-8").splitlines()[1:]
    cells = [line.split("\t") for line in lines]
    return [{"text": text.strip(), "label": SENTIMENT[label]} for text, label in cells]


def _values(data: Path) -> list[Row]:
    """Sentences and the logarithm of how many words they have: values of our own making."""
    texts = [row["text"] for row in _feelings(data)]
    return [{"text": text, "label": f"{np.log2(len(text.split())):.3f}"} for text in texts]


def paragraphs(data: Path, part: str = "valid") -> list[Row]:
    """Paragraphs of a part of WikiText-2, headings left out."""
    lines = (data / "wikitext2" / f"{part}.txt").read_text("utf-8").splitlines()
    return [{"text": line.strip()} for line in lines if len(line.split()) > 20]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A corpus and the task on it.

    Attributes:
        rows: of the folder of all corpora, which are shuffled and cut.
        task: of teacher and students.
        teach: options of `kdcache.teach`; None: the masked language model is the teacher.
        train: documents.
        labels: how many of them keep their label, if not all.
        steps: that a student is trained for.
        batch: documents of a step.
        values: whether it gives numbers, which have no divergence.
        second: whether several tasks are this one and the first.
        longer: steps of recipes, by name, whose own takes more of them to show.
        settings: of recipes, by name, that as they ship do not train here, or too long, or whose
            own is dead here.
    """

    rows: Callable[[Path], list[Row]]
    task: str = TASK
    teach: Mapping[str, Any] | None = field(default_factory=dict)
    train: int = 600
    labels: int | None = None
    steps: int = 48
    batch: int = 8
    values: bool = False
    second: bool = False
    longer: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)


def _by_values(*stages: str) -> list[str]:
    """Stages that learn from soft labels learn from the values, as TinyBERT does of STS-B."""
    return [
        f"stages.{stage}.losses.{loss}.weight={weight}"
        for stage in stages
        for loss, weight in (("kl", 0), ("hard", 1))
    ]


PLACES = {
    "mrpc": Place(rows=pairs, teach={"epochs": 3}),
    "banking77": Place(
        rows=_intents,
        teach={"epochs": 8},
        train=1500,
        second=True,
        longer=dict.fromkeys(("ad-kd", "mt-bert"), 144),
        settings={
            "ad-kd": ["losses.attribution.views=one"],
            # Soft labels of a teacher that is sure are hard ones at temperature 1.
            "causal-kd": ["losses.kl.temperature=4"],
            # Beside the divergence of 77 classes below 1% of the gradient; so it is a tenth.
            "distilbert": ["losses.cosine.weight=50"],
        },
    ),
    "sst2": Place(
        rows=_feelings,
        teach={"epochs": 3},
        train=1500,
        labels=300,
        second=True,
        longer={
            **dict.fromkeys(("distilbert", "pkd-last", "pkd-skip"), 144),
            "mixed-vocab": 288,
        },
    ),
    "values": Place(
        rows=_values,
        teach={"epochs": 3, "label_type": "float"},
        values=True,
        batch=32,
        settings={
            "l2a": ["losses.kl.weight=0", "losses.hard.weight=1"],
            "meta-kd": _by_values("prediction"),
            "tinybert": _by_values("prediction"),
        },
    ),
    "masked tokens": Place(rows=paragraphs, task="masked-lm", teach=None),
}
