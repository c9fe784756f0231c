"""The labelled documents of a teacher: read as a plan is, and split into two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.building.planner import PlanOptions, make_plan
from kdcache.corpora.columns import label_columns
from kdcache.corpora.documents import columns_of
from kdcache.errors import CorpusError
from kdcache.labels import UNKNOWN, LabelKind, Outputs
from kdcache.labels.base import Teaching
from kdcache.models import Tokenizer
from kdcache.plans import Array, Docs, Plan
from kdcache.plans.same_texts import text_keys
from kdcache.progress import Progress, quiet, short
from kdcache.store import open_plan, write_plan
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.teaching.settings import Settings
from kdcache.teaching.split import dev_rows
from kdcache.training.evaluation import require_as_many_texts

SHOWN = 4


@dataclass(frozen=True)
class Documents:
    """Documents of a plan, by their rows in its document space."""

    plan: Plan = field(repr=False)
    docs: Docs

    def __len__(self) -> int:
        return len(self.docs)

    @property
    def kind(self) -> LabelKind:
        """The kind of the labels."""
        return self.plan.label_kind

    @property
    def teaching(self) -> Teaching:
        """How a teacher of the kind is made."""
        assert self.kind.teaching is not None
        return self.kind.teaching

    @cached_property
    def labels(self) -> Array:
        """The labels of the documents, [N, ...], as their kind has them."""
        return np.asarray(self.kind.of(self.plan.per_document, self.docs))

    @property
    def classes(self) -> Docs:
        """Class ids, [N], or whatever else a split has some of on both sides."""
        return self.teaching.strata(self.labels)

    def of(self, rows: Array) -> Documents:
        """Some of them."""
        return Documents(self.plan, self.docs[rows])

    def counts(self) -> Docs:
        """Documents of each class: [C]."""
        names = self.plan.config.classes or []
        return np.bincount(self.classes, minlength=len(names))

    def texts(self) -> list[bytes]:
        """A digest of the text of each document."""
        keys = dict(text_keys(self.plan))
        return [keys[doc] for doc in self.docs.tolist()]


@dataclass(frozen=True)
class Data:
    """What a teacher is fitted to, what it is chosen on, and texts that have no label."""

    train: Documents
    dev: Documents
    unlabelled: Documents
    dev_file: str | None = None

    @property
    def names(self) -> list[str]:
        """Class names in the order of their ids; none where labels are values."""
        return self.train.plan.config.classes or []


def read_data(
    corpus: Any,
    dev: Any,
    tokenizer: Tokenizer,
    settings: Settings,
    scratch: Path,
    options: PlanOptions,
    progress: Progress,
) -> Data:
    """Read and check the labelled documents; without a `dev` file some are set aside to choose on.

    Raises CorpusError where there are no labels to learn from or to choose on.
    """
    options = {**options, "max_length": settings.max_length, "seed": settings.seed}
    plan = _plan(corpus, tokenizer, scratch / "train", options, progress, new=True)
    all_of = Documents(plan, plan.labelled_docs)
    _require_labels(all_of, corpus)
    rest = Documents(plan, np.setdiff1d(plan.docs, plan.labelled_docs))
    if dev is None:
        return _split(all_of, rest, settings, progress)
    known = _known(plan, dev, options)
    chosen_on = _plan(dev, tokenizer, scratch / "dev", known, progress, classes=plan)
    here, known_texts = (p.config.corpus["text_columns"] for p in (chosen_on, plan))
    require_as_many_texts(here, known_texts, short(dev), "--dev")
    if not chosen_on.labelled:
        raise CorpusError(f"{short(dev)} has no labels to choose on; name them with --label-column")
    aside = Documents(chosen_on, chosen_on.labelled_docs)
    data = Data(_without(all_of, aside, dev, progress), aside, rest, short(dev))
    _say_classes(data, progress)
    return data


def seen_before(
    data: Data, file: Any, tokenizer: Tokenizer, settings: Settings, scratch: Path
) -> tuple[int, int]:
    """Documents of a file with the text of one that is learnt from or chosen on, and all of it."""
    options = _known(data.train.plan, file, {"max_length": settings.max_length})
    plan = _plan(file, tokenizer, scratch / "eval", options, quiet, classes=data.train.plan)
    seen = {*data.train.texts(), *data.dev.texts()}
    return sum(key in seen for _, key in text_keys(plan)), plan.documents


def _plan(
    corpus: Any,
    tokenizer: Tokenizer,
    scratch: Path,
    options: PlanOptions,
    progress: Progress,
    *,
    new: bool = False,
    classes: Plan | None = None,
) -> Plan:
    scratch.mkdir()
    known = UNKNOWN
    if classes:
        names = classes.config.classes
        known = Outputs(names, len(names or [0]), classes.label_kind)
    made = make_plan(
        corpus,
        tokenizer,
        scratch=scratch,
        task=TEXT_CLASSIFICATION,
        classes=known,
        new_classes=new,
        progress=progress,
        **options,
    )
    write_plan(scratch / "plan.zarr", made)
    return open_plan(scratch / "plan.zarr")


def _known(plan: Plan, dev: Any, options: PlanOptions) -> PlanOptions:
    """The columns of the training documents, where the dev file has them, and all of it read."""
    corpus, columns = plan.config.corpus, columns_of(dev)
    known: PlanOptions = {**options, "limit": None}
    if set(corpus["text_columns"]) <= set(columns):
        known["text_columns"] = corpus["text_columns"]
    labels = label_columns(corpus["label_column"])
    if labels and set(labels) <= set(columns):
        known["label_column"] = labels
    known["label_type"] = plan.label_kind.label_type or "auto"
    return known


def _require_labels(documents: Documents, corpus: Any) -> None:
    """Raise CorpusError for labels that cannot be learnt from."""
    name, count = short(corpus), f"{len(documents):,} labelled documents"
    if documents.kind.teaching is None:
        raise CorpusError(f"{name}: teach makes no {documents.kind.called}; give it other labels")
    column = "is this the label column (--label-column)?"
    if not len(documents):
        raise CorpusError(
            f"{name} has no labels to learn from; name their column with --label-column"
        )
    if not documents.kind.numbered:
        if (documents.labels == documents.labels[0]).all():
            raise CorpusError(f"{count} of {name} have one and the same label: {column}")
        return
    names, counts = documents.plan.config.classes or [], documents.counts()
    if (counts > 0).sum() < 2:
        raise CorpusError(
            f"all {count} of {name} are of one class, {names[int(counts.argmax())]!r}, and a "
            f"teacher needs two classes or more: {column}"
        )
    if len(documents) < len(names):
        raise CorpusError(f"{name} has {count} for {len(names):,} classes: label more; {column}")


def _split(documents: Documents, rest: Documents, settings: Settings, progress: Progress) -> Data:
    texts = np.unique(np.asarray(documents.texts(), object), return_inverse=True)[1]
    aside = dev_rows(texts.reshape(-1), documents.classes, settings.dev_split, settings.seed)
    if not aside.any():
        raise CorpusError(
            f"{len(documents):,} labelled documents leave none to choose on, for no class has two "
            "different texts: label more, or name a file to choose on with --dev"
        )
    data = Data(documents.of(~aside), documents.of(aside), rest)
    progress.say(
        f"{len(data.dev):,} of {len(documents):,} labelled documents are set aside to choose on "
        "(--dev-split; --dev names a file instead)"
    )
    _say_classes(data, progress)
    return data


def _without(documents: Documents, aside: Documents, dev: Any, progress: Progress) -> Documents:
    """The documents whose text is none of those to choose on."""
    known = set(aside.texts())
    left = np.array([text not in known for text in documents.texts()], bool)
    if left.all():
        return documents
    if not left.any():
        raise CorpusError(
            f"all labelled documents are in {short(dev)} too: choose on others (--dev)"
        )
    progress.say(
        f"{(~left).sum():,} of {len(left):,} labelled documents are left out, for their text is "
        f"in {short(dev)} too, which is chosen on"
    )
    return documents.of(left)


def _say_classes(data: Data, progress: Progress) -> None:
    """What a person should know of classes with few documents."""
    if not data.train.kind.numbered:
        return
    train, dev = data.train.counts(), data.dev.counts()
    for note, which in (
        ("no document to learn from, and will hardly ever be predicted", train == 0),
        ("a single document to learn from", train == 1),
        ("no document to choose on, so the scores do not tell of them", (dev == 0) & (train > 0)),
    ):
        if which.any():
            progress.say(f"classes with {note}: {_some(data.names, np.flatnonzero(which))}")


def _some(names: Sequence[str], which: Array) -> str:
    shown = ", ".join(names[i] for i in which[:SHOWN])
    return f"{shown} and {len(which) - SHOWN:,} more" if len(which) > SHOWN else shown
