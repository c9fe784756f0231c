"""Label kinds: what the label of a document can be. LABEL_KINDS is the table of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from kdcache.errors import CorpusError, one_of
from kdcache.labels.base import (
    UNKNOWN,
    Known,
    LabelKind,
    Labels,
    LabelType,
    Outputs,
    known,
    known_rows,
    output_names,
)
from kdcache.labels.classes import CLASSES
from kdcache.labels.multi_label import MULTI_LABEL
from kdcache.labels.reader import Cells, LabelReader
from kdcache.labels.tokens import TOKENS
from kdcache.labels.values import VALUES
from kdcache.labels.vectors import VECTORS

__all__ = [
    "LABEL_KINDS",
    "UNKNOWN",
    "Cells",
    "Known",
    "LabelKind",
    "LabelReader",
    "LabelType",
    "Labels",
    "Outputs",
    "kind_of",
    "known",
    "known_rows",
    "output_names",
    "resolve",
]

LABEL_KINDS: dict[str, LabelKind] = {
    kind.name: kind for kind in (VALUES, CLASSES, TOKENS, MULTI_LABEL, VECTORS)
}
"""Every kind by the name that plans give it, `PlanConfig.label_kind`; labels that nobody says
anything of are of the first that they can be."""


def kind_of(problem_type: str | None, outputs: int) -> LabelKind | None:
    """The kind of the outputs of a classifier, by what its configuration says; None: of none."""
    return next((k for k in LABEL_KINDS.values() if k.means(problem_type, outputs)), None)


def resolve(
    reader: LabelReader,
    *,
    label_type: LabelType = "auto",
    kind: LabelKind | None = None,
    known: Sequence[str] | None = None,
    count: int | None = None,
    corpus_names: Sequence[str] | None = None,
    columns: Sequence[str] = (),
    new: bool = False,
) -> Labels:
    """Decide what the labels are, and read them.

    `kind` is that of the teacher's outputs (None: what their number tells), `known` are the names
    of these (None: unknown), `count` their number, `corpus_names` what the corpus itself calls its
    numbers, as a `datasets.ClassLabel` does, `columns` the label columns where there are several.
    `new`: there is no teacher yet, and its classes will be those found here.

    Raises CorpusError, naming file and line, for a label that does not fit.
    """
    one_of("label type", label_type, ["auto", *filter(None, map(_asked_as, LABEL_KINDS.values()))])
    given = Known(
        kind=kind or _by_number(known, count),
        names=tuple(known) if known else None,
        count=count,
        corpus=tuple(corpus_names) if corpus_names is not None else None,
        new=new,
        guess=label_type == "auto" and count is None,
        columns=tuple(columns),
    )
    chosen = _chosen(reader, label_type, given)
    assert chosen.read is not None
    if reader.several and not chosen.wide:
        what = "has several label columns" if columns else "has a list of labels"
        raise CorpusError(
            f"{reader.since}: a document {what}, where one is wanted ({chosen.label_type}): choose "
            "a teacher whose config.json says problem_type multi_label_classification (or "
            "regression, with an output for each value), or name another column (--label-column)"
        )
    return chosen.read(reader, given)


def _asked_as(kind: LabelKind) -> str:
    return kind.label_type


def _by_number(names: Sequence[str] | None, count: int | None) -> LabelKind | None:
    """The kind of a teacher of which no more is known than how many outputs it has."""
    if count is not None:
        return kind_of(None, count)
    return CLASSES if names else None


def _chosen(reader: LabelReader, label_type: LabelType, given: Known) -> LabelKind:
    if label_type != "auto":
        return next(kind for kind in LABEL_KINDS.values() if kind.label_type == label_type)
    if given.kind is not None:
        return given.kind
    return next(kind for kind in LABEL_KINDS.values() if kind.guess(reader))
