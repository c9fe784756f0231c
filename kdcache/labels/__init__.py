"""Label kinds: what the label of a document can be. LABEL_KINDS is the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from kdcache.errors import one_of
from kdcache.labels.base import (
    Known,
    LabelKind,
    Labels,
    LabelType,
    known,
    known_rows,
    output_names,
)
from kdcache.labels.classes import CLASSES
from kdcache.labels.reader import LabelReader
from kdcache.labels.tokens import TOKENS
from kdcache.labels.values import VALUES

__all__ = [
    "LABEL_KINDS",
    "Known",
    "LabelKind",
    "LabelReader",
    "LabelType",
    "Labels",
    "kind_of",
    "known",
    "known_rows",
    "output_names",
    "resolve",
]

LABEL_KINDS: dict[str, LabelKind] = {kind.name: kind for kind in (CLASSES, VALUES, TOKENS)}
"""Every kind by the name that plans give it: `PlanConfig.problem`."""


def kind_of(problem_type: str | None, outputs: int) -> LabelKind | None:
    """The kind of the outputs of a classifier, by what its configuration says; None: of none."""
    return next((k for k in LABEL_KINDS.values() if k.means(problem_type, outputs)), None)


def resolve(
    reader: LabelReader,
    *,
    label_type: LabelType = "auto",
    known: Sequence[str] | None = None,
    count: int | None = None,
    corpus_names: Sequence[str] | None = None,
    new: bool = False,
) -> Labels:
    """Decide what the labels are, and read them.

    `known` are the teacher's class names (None: unknown), `count` its number of classes (1:
    regression), `corpus_names` what the corpus itself calls its numbers, as a `datasets.ClassLabel`
    does. `new`: there is no teacher yet, and its classes will be those found here.

    Raises CorpusError, naming file and line, for a label that does not fit.
    """
    one_of("label type", label_type, get_args(LabelType))
    given = Known(
        names=tuple(known) if known else None,
        count=count,
        corpus=tuple(corpus_names) if corpus_names is not None else None,
        new=new,
        guess=label_type == "auto" and count is None,
    )
    kind = _kind(reader, label_type, given)
    assert kind.read is not None
    return kind.read(reader, given)


def _kind(reader: LabelReader, label_type: LabelType, given: Known) -> LabelKind:
    if label_type == "auto":
        return VALUES if _regression(reader, given) else CLASSES
    return next(kind for kind in LABEL_KINDS.values() if kind.label_type == label_type)


def _regression(reader: LabelReader, given: Known) -> bool:
    if given.count is not None or given.names:
        return given.count == 1
    names = reader.names
    return (
        bool(names)
        and all(reader.value(name) is not None for name in names)
        and not all(name in reader.truths or _is_int(name) for name in names)
    )


def _is_int(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
