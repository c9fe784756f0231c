"""Words with a class each, such as the entities of named-entity recognition.

A document is a list of words with a list of tags. Of each word the first token is selected: it has
the word's label, and the logits have a row for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdcache.errors import MissingExtraError, ModelError
from kdcache.manifest import Json
from kdcache.tasks.base import Entry, Ids, Task
from kdcache.tasks.summed import Summed, f1

if TYPE_CHECKING:
    from kdcache.corpora.documents import Document
    from kdcache.models import Tokenizer
    from kdcache.plans import PlanConfig

SCHEMES = {"IOB": "BI", "IOBES": "BIES", "BILOU": "BILU"}
"""Schemes of tags, and the letters that say where in an entity a word is; O is in none."""
SAME = {"L": "E", "U": "S"}
"""What BILOU calls the last word of an entity and the only one, and IOBES, which seqeval reads."""
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


class Tag(NamedTuple):
    """A tag of an entity: where in it a word is, one letter, and the kind of the entity."""

    place: str
    kind: str


def tag_of(name: str) -> Tag | None:
    """What the name of a class says as a tag; None of what is none, and of O."""
    place, _, kind = name.partition("-")
    known = any(place in letters for letters in SCHEMES.values()) and len(place) == 1
    return Tag(place, kind) if known and kind else None


def scheme_of(names: Sequence[str]) -> str:
    """The scheme of the tags that classes are; "": they are not all tags, and words are scored.

    Raises:
        ModelError: tags of two schemes.
    """
    inner = [tag_of(name) for name in names if name != "O"]
    tags = [tag for tag in inner if tag is not None]
    if not tags or len(tags) < len(inner):
        return ""
    places = {tag.place for tag in tags}
    found = next((name for name, known in SCHEMES.items() if places <= set(known)), None)
    if found is None:
        known = ", ".join(f"{name} ({'- '.join(known)}-)" for name, known in SCHEMES.items())
        raise ModelError(
            f"the classes mix schemes of tags ({'- '.join(sorted(places))}-): entities are told "
            f"apart by one of {known}; name the classes so in id2label of the model's config.json"
        )
    return found


def scored(names: Sequence[str]) -> str:
    """Whether entities or words are scored, and why."""
    if scheme := scheme_of(names):
        return f"entities, tagged in {scheme}"
    inner = [name for name in names if name != "O"]
    others = [name for name in inner if tag_of(name) is None]
    if len(others) < len(inner):
        return f"words, for the class {others[0]!r} is no tag of an entity"
    return "words, for the classes are no tags of entities"


def entity_scores(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> Json:
    """F1, precision and recall of whole entities, as seqeval has them by default (Nakayama 2018).

    `predicted` and `labels` [rows] are class ids, `counts` the rows of each document; a row without
    a label is left out. Nothing where the names are not all tags of entities. Those of BILOU are
    read as IOBES.
    """
    if not scheme_of(names):
        return {}
    from seqeval import metrics

    told = _tags(predicted, labels, counts, names)
    return {
        name: float(getattr(metrics, function)(*told, zero_division=0))
        for name, function in METRICS.items()
    }


def entity_f1(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> Summed | None:
    """F1 of whole entities by what each document adds to it; None where no entities are scored."""
    if not scheme_of(names):
        return None
    from seqeval.metrics.sequence_labeling import get_entities

    pairs = zip(*_tags(predicted, labels, counts, names), strict=True)
    there = [(set(get_entities(right)), set(get_entities(told))) for right, told in pairs]
    both = np.array([len(right & told) for right, told in there], np.int64)
    return f1("entity_f1", both, np.array([len(right) + len(told) for right, told in there]))


def _tags(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> list[Any]:
    """Tags of every document, as seqeval has them: the right ones, and those predicted."""
    known = labels >= 0
    before = np.concatenate([[0], np.cumsum(known)])
    ends = before[np.cumsum(counts)[:-1]]  # of documents, among the rows with a label
    unnamed = ["O"] * (int(predicted.max(initial=0)) + 1 - len(names))
    tags = np.asarray([*map(_as_seqeval, names), *unnamed], object)
    return [
        [tags[ids].tolist() for ids in np.split(rows[known], ends)] for rows in (labels, predicted)
    ]


def _as_seqeval(name: str) -> str:
    tag = tag_of(name)
    return name if tag is None else f"{SAME.get(tag.place, tag.place)}-{tag.kind}"


def require_seqeval(names: Sequence[str]) -> None:
    """Raise MissingExtraError unless what scores entities, if any, can be imported."""
    if not scheme_of(names):
        return
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
    summed=entity_f1,
    metric=lambda names: "entity_f1" if scheme_of(names) else "",
    scored=scored,
    require=require_seqeval,
    told=tuple((name, name.replace("_f1", " F1").replace("_", " ")) for name in METRICS),
    predicted=True,
)
