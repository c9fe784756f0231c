"""A loss held against a cache and a student once, with all its matches and teachers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kdcache.errors import ConfigError, said_of
from kdcache.labels import LabelKind
from kdcache.losses.base import LABELS, Loss, Match
from kdcache.losses.bound import Bound, BoundLoss
from kdcache.losses.cache_spec import CacheSpec
from kdcache.losses.matching import Matching
from kdcache.losses.teachers import CHOOSERS, FIRST, Teaching
from kdcache.plans.batch import Rows
from kdcache.signals import POSITIONS, ModelSizes


def bind(
    name: str, loss: Loss, cache: CacheSpec, student: ModelSizes, teaching: Teaching = FIRST
) -> BoundLoss:
    """The matches of losses.`name` on a cache; ConfigError if cache or student cannot serve one."""
    moved = tuple(teacher for teacher, one in cache.teachers.items() if one.points)
    names = teaching.of(name, tuple(cache.teachers), moved)
    at = _read_at(name, cache, names)
    if hasattr(loss, "together") and (teaching.choose != FIRST.choose or teaching.probability):
        raise ConfigError(
            f"losses.{name} learns itself which of its teachers count: leave choose and "
            "probability out"
        )
    sides = {}
    for place, teacher in enumerate(names):
        source = cache.teachers[teacher]
        with said_of(f"losses.{name}"):
            wanted = wanted_of(loss, student, source.shape, first=place == 0)
        if source.task.rows != cache.task.rows and any(match.use is not None for match in wanted):
            raise ConfigError(
                f"losses.{name} learns the soft labels of {teacher}, a teacher for {source.task} "
                f"with outputs for every token, and the student's are for {cache.task}: give it a "
                f"head of its own (kdcache train one=CACHE two=CACHE --teacher two={teacher})"
            )
        mark = f"_t{place}" if len(names) > 1 else ""
        sides[teacher] = Matching(name, loss, wanted, source, student, mark)
    taught = {t: tuple(map(where.bind, where.matches)) for t, where in sides.items()}
    for teacher, where in sides.items():
        where.check_shared(taught[teacher])
    matches = [match for bound in taught.values() for match in bound]
    if teaching != FIRST and all(match.teacher == LABELS for match in matches):
        raise ConfigError(
            f"losses.{name} learns from labels: teachers and choose are for losses that learn from "
            "a teacher; leave them out"
        )
    _check_words(name, loss, cache, matches)
    rows = _rows_of(name, loss, matches, several=len(names) > 1)
    found = BoundLoss(name, loss, taught, rows, at=at)
    if len(names) == 1 and teaching.choose == FIRST.choose:
        return found
    soft: dict[str, Bound] = {}
    if CHOOSERS[teaching.choose].labels:
        soft = {t: where.on_labels(teaching.choose) for t, where in sides.items()}
    return found._replace(choose=teaching.choose, probability=teaching.probability, soft=soft)


def _read_at(name: str, cache: CacheSpec, names: Sequence[str]) -> str:
    """The one of a loss's teachers at whose points the student reads for it; "": where it reads
    the documents of the cache. ConfigError for teachers that were run at different places.
    """
    moved = [teacher for teacher in names if cache.teachers[teacher].points]
    own = names == (cache.name,)
    if own or (not moved and not cache.points):
        return ""
    if len(names) == 1 and moved and not cache.points:
        return moved[0]
    one = moved[0] if moved else cache.name
    raise ConfigError(
        f"losses.{name} learns from {', '.join(names)}, and {one} was run at points: a student "
        "cannot read a document in two places for one loss; make it a loss for each, in a cache "
        "whose first teacher was run at the texts, or train on the caches side by side"
    )


def wanted_of(
    loss: Loss, student: ModelSizes, teacher: ModelSizes, *, first: bool
) -> tuple[Match, ...]:
    """The matches of a loss with a teacher, and those it has with the first one beside them."""
    more: Any = getattr(loss, "beside", None)
    found = tuple(loss.matches(student, teacher))
    return (*found, *more(student, teacher)) if first and more is not None else found


def _rows_of(name: str, loss: Loss, matches: Sequence[Bound], *, several: bool) -> Rows:
    """The rows that a loss is a mean over; ConfigError where its matches have not the same."""
    if loss.over in ("documents", "labelled", "pairs", "batch") or not matches:
        _check_classes(name, matches)
        return Rows("document", labelled=loss.over == "labelled", paired=loss.over == "pairs")
    spaces = {match.rows for match in matches}
    if len(spaces) > 1:
        which = "its matches with all its teachers" if several else "its matches"
        raise ConfigError(
            f"losses.{name} is a mean over the rows of {which}, which are not the same: "
            f"{', '.join(sorted(map(_rows_text, spaces)))}; make it one loss for each"
        )
    (rows,) = spaces
    return rows._replace(padded=loss.over == "padded")


def of_one_vocabulary(name: str) -> str:
    """Why a loss that compares words has none to compare."""
    return (
        f"losses.{name} compares words that teacher and student cut into tokens of their own, and "
        "both have one vocabulary: set student.tokenizer to the folder of another, or use the loss "
        "hidden"
    )


def _check_words(name: str, loss: Loss, cache: CacheSpec, matches: Sequence[Bound]) -> None:
    """See to it that tokens are compared one by one where both have the same, and else by words."""
    by_words = getattr(loss, "by_words", False)
    if by_words and not cache.reworded:
        raise ConfigError(of_one_vocabulary(name))
    if cache.reworded and not by_words and any(m.rows.space != "document" for m in matches):
        raise ConfigError(
            f"losses.{name} compares token by token, and the student has a tokenizer of its own "
            "(student.tokenizer): use the loss words, or one of documents"
        )


def _check_classes(name: str, matches: Sequence[Bound]) -> None:
    """See to it that a loss that compares documents by their labels gets a class of each."""
    for match in matches:
        labels = match.source.labels
        one_each = match.rows.space == POSITIONS["cls"] and _one_class(labels)
        if match.teacher == LABELS and not one_each:
            raise ConfigError(
                f"losses.{name} compares documents by the class of each; the task of the cache is "
                f"{match.source.task}, its labels are {labels.name}: leave the loss out"
            )


def _one_class(labels: LabelKind) -> bool:
    return labels.activation == "softmax" and not labels.no_divergence


def _rows_text(rows: Rows) -> str:
    return f"{rows.space} ({rows.sampled_rows})" if rows.sampled_rows else rows.space


def learned_maps(bound: Mapping[str, BoundLoss], others: Collection[str]) -> dict[str, Bound]:
    """The matches with a learned map, by its name; `others` are losses that learn a module.

    Raises ConfigError where two losses would train one map: the name of a loss, with that of one of
    its maps behind it, may be that of another loss.
    """
    found: dict[str, Bound] = {}
    owners = {name: name for name in others}
    for name, one in bound.items():
        for match in one.matches:
            if match.project and owners.setdefault(match.project, name) != name:
                raise ConfigError(
                    f"losses.{owners[match.project]} and losses.{name} would both call a learned "
                    f"map {match.project}, and share it: give one of them another name"
                )
            if match.project:
                found[match.project] = match
    return found
