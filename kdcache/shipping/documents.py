"""The texts a shipped model is tried on: as a torch model reads them, and as a person has them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.building.planner import PlanOptions, make_plan
from kdcache.corpora.documents import open_corpus
from kdcache.corpora.standard_library import prose
from kdcache.models import Tokenizer, classes_of
from kdcache.plans import Plan
from kdcache.progress import Progress
from kdcache.store import open_plan, write_plan
from kdcache.tasks import Task

WORDS = (1, 2, 4, 8, 16, 32, 64, 128, 512)  # of the texts there are where no file is given
TEXTS = 54


@dataclass(frozen=True)
class Documents:
    """Texts in the order of `plan.docs`, as many as it has; `pairs` are the second ones."""

    plan: Plan
    texts: list[str]
    pairs: list[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def columns(self) -> int:
        """Texts of a document: 2 where it is a pair."""
        return 1 if self.pairs is None else 2

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each document, [documents]."""
        lengths: npt.NDArray[np.int32] = self.plan.per_document["doc_len"][self.plan.docs]
        return lengths


def read_documents(
    file: Any,
    model: str | Path,
    tokenizer: Tokenizer,
    *,
    task: Task,
    scratch: Path,
    like: Sequence[str],
    progress: Progress,
    options: PlanOptions,
    trust: bool = False,
) -> Documents:
    """The documents of `file`, tokenised for the classifier in the folder `model`.

    Raises CorpusError and ConfigError as `plan` does.
    """
    scratch.mkdir()
    made = make_plan(
        file,
        tokenizer,
        scratch=scratch,
        task=task,
        classes=classes_of(model, task, trust_remote_code=trust),
        like=like,
        progress=progress,
        **options,
    )
    write_plan(scratch / "plan.zarr", made)
    plan = open_plan(scratch / "plan.zarr")
    columns = plan.config.corpus["text_columns"]
    corpus = open_corpus(
        file,
        text_columns=columns,
        label_column=plan.config.corpus["label_column"] or "",
        limit=options.get("limit"),
    )
    found = [(document.text, document.pair) for document in corpus]
    rows = [found[row] for row in plan.per_document["doc_id"][plan.docs]]
    pairs = [pair or "" for _, pair in rows] if len(columns) > 1 else None
    return Documents(plan, [text for text, _ in rows], pairs)


def write_prose(path: Path, columns: int) -> Path:
    """Write texts of one word to some hundreds that every machine has, in one or two columns."""
    texts = _cut_prose()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "text_pair")[:columns])
        writer.writerows([next(texts) for _ in range(columns)] for _ in range(TEXTS))
    return path


def _cut_prose() -> Iterator[str]:
    """The language reference, cut to texts of the lengths `WORDS`, one after the other."""
    words = iter(cycle([word for text in prose()[:400] for word in text.split()]))
    for length in cycle(WORDS):
        yield " ".join(next(words) for _ in range(length))
