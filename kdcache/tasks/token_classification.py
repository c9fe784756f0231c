"""Words with a class each, such as the entities of named-entity recognition.

A document is a list of words with a list of tags. Of each word the first token is selected: it has
the word's label, and the logits have a row for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcache.errors import MissingExtraError
from kdcache.manifest import Json
from kdcache.tasks.base import Entry, Ids, Task

if TYPE_CHECKING:
    from kdcache.corpora.documents import Document
    from kdcache.models import Tokenizer
    from kdcache.plans import PlanConfig

PREFIXES = ("B", "I", "E", "S")
METRICS = {
    "entity_f1": "f1_score",
    "entity_precision": "precision_score",
    "entity_recall": "recall_score",
}
"""Scores of entities, and what seqeval calls them."""


def encode_words(
    batch: Sequence[Document], first: int, tokenizer: Tokenizer, config: PlanConfig
) -> tuple[list[Entry], int]:
    """The first token of every word of documents numbered from `first`; labels number words.

    A word that the tokenizer makes nothing of, and what lies beyond the longest length, has none.
    """
    entries, truncated = [], 0
    encoded = tokenizer.encode_words([document.words for document in batch], config.max_length)
    for number, (ids, words, cut_off) in enumerate(encoded):
        positions, labels = first_of_words(words)
        entry = Entry(first + number, 0, 0, ids, len(ids), positions, labels)
        entries += [entry] if len(ids) else []
        truncated += cut_off
    return entries, truncated


def first_of_words(words: Sequence[int | None]) -> tuple[Ids, Ids]:
    """Positions of first tokens, and which word each is of; None is a token of no word."""
    starts = [
        (position, word)
        for position, (before, word) in enumerate(pairwise([None, *words]))
        if word is not None and word != before
    ]
    found = np.asarray(starts, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def has_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities: O, and B-, I- and the like before the entity's kind."""
    inner = [name for name in names if name != "O"]
    return bool(inner) and all(
        name.partition("-")[0] in PREFIXES and name.partition("-")[2] for name in inner
    )


def entity_scores(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> Json:
    """F1, precision and recall of whole entities, as seqeval has them by default (Nakayama 2018).

    `predicted` and `labels` [rows] are class ids, `counts` the rows of each document; a row without
    a label is left out. Nothing where the names are none of entities.
    """
    if not has_entities(names):
        return {}
    require_seqeval()
    from seqeval import metrics

    known = labels >= 0
    before = np.concatenate([[0], np.cumsum(known)])
    ends = before[np.cumsum(counts)[:-1]]  # of documents, among the rows with a label
    unnamed = ["O"] * (int(predicted.max(initial=0)) + 1 - len(names))
    tags = np.asarray([*names, *unnamed], object)
    told: list[Any] = [
        [tags[ids].tolist() for ids in np.split(rows[known], ends)] for rows in (labels, predicted)
    ]
    return {
        name: float(getattr(metrics, function)(*told, zero_division=0))
        for name, function in METRICS.items()
    }


def require_seqeval() -> None:
    """Raise MissingExtraError unless what scores entities can be imported."""
    try:
        import seqeval  # noqa: F401  # to see that it is there
    except ImportError as error:
        raise MissingExtraError(
            f"scores of entities need seqeval ({error}); run: pip install 'kdcache[ner]'"
        ) from error


TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    auto="AutoModelForTokenClassification",
    heads=("ForTokenClassification",),
    rows="selected",
    kinds=("classes",),
    signals=("logits:dense",),
    pipeline="token-classification",
    call='pipe("a text whose words have classes", aggregation_strategy="simple")',
    measured="masked-lm",  # its hidden states; classes are small and exact
    selected="first tokens of words",
    words=("tokens", "words"),
    tags=("tags", "ner_tags", "labels"),
    encode=encode_words,
    scores=entity_scores,
    metric=lambda names: "entity_f1" if has_entities(names) else "",
    require=require_seqeval,
    told=tuple((name, name.replace("_f1", " F1").replace("_", " ")) for name in METRICS),
    predicted=True,
)
