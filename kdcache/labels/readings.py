"""Readings of class labels, in the order they are tried: names, then numbers by value."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdcache.errors import CorpusError

SHOWN = 4
WHOLE = (
    "labels are whole numbers: taken as numbers of classes "
    "(--label-type float makes them regression values)"
)
_UNNAMED = re.compile(r"label_(\d+)", re.IGNORECASE)
_LEADING = re.compile(r"[-+]?\d+(\.\d+)?(?![\w.])")


class Label(NamedTuple):
    """A distinct label: its code, as written, where it was first seen, how often, as a number."""

    code: int
    name: str
    where: str
    documents: int
    value: float | None


@dataclass(frozen=True)
class Reading:
    """Class names in the order of their ids, the id of each label's code, and what was guessed."""

    classes: Sequence[str]
    ids: Mapping[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Classes:
    """What is known of the classes: the teacher's names and their number, the corpus's names.

    `new`: there is no teacher yet, and what it will call its classes is made up here.
    """

    known: tuple[str, ...] | None
    count: int | None
    corpus: tuple[str, ...] | None
    most: int
    new: bool = False

    @property
    def limit(self) -> int:
        """Class numbers lie below it."""
        return len(self.known) if self.known else self.count or self.most


def number(text: str) -> float | None:
    """The finite number that a text spells, None if it spells none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def _by_exact_name(labels: Sequence[Label], classes: Classes) -> Reading | None:
    numbered = _in_order(classes.known)
    if classes.known is None or not {label.name for label in labels} <= numbered.keys():
        return None
    if len(numbered) < len(classes.known):
        _require_unique(labels, classes.known)
    ids = {label.code: numbered[label.name] for label in labels}
    notes = _guess("names, not numbers,", labels, ids, classes.known)
    return Reading(classes.known, ids, notes if _could_number(labels, ids, classes) else ())


def _by_folded_name(labels: Sequence[Label], classes: Classes) -> Reading | None:
    folded = {name.casefold(): index for name, index in _in_order(classes.known).items()}
    names = [label.name.casefold() for label in labels]
    if classes.known is None or len(folded) < len(classes.known) or not set(names) <= folded.keys():
        return None
    ids = {label.code: folded[name] for label, name in zip(labels, names, strict=True)}
    return Reading(
        classes.known, ids, _guess("names, whatever their case,", labels, ids, classes.known)
    )


def _by_label_number(labels: Sequence[Label], classes: Classes) -> Reading | None:
    """LABEL_n, which transformers calls the class n of a model without names."""
    found = [_UNNAMED.fullmatch(label.name) for label in labels]
    if not all(found):
        return None
    ids = {label.code: int(match[1]) for label, match in zip(labels, found, strict=True) if match}
    _require_within(labels, ids, classes)
    return Reading(classes.known or _numbered("LABEL_{}", ids, classes), ids)


def _by_number_in_name(labels: Sequence[Label], classes: Classes) -> Reading | None:
    """Numbers that class names are or begin with, as in `1 star`."""
    known = classes.known or ()
    found = [_LEADING.match(name.strip()) for name in known]
    numbers = {float(match[0]): index for index, match in enumerate(found) if match}
    if len(numbers) < len(found) or not all(label.value in numbers for label in labels):
        return None
    ids = {label.code: numbers[label.value] for label in labels if label.value is not None}
    plain = all(number(known[ids[label.code]]) == label.value for label in labels)
    if plain and not _could_number(labels, ids, classes):
        return Reading(known, ids)
    return Reading(known, ids, _guess("names, not numbers,", labels, ids, known))


def _new_numbers(labels: Sequence[Label], classes: Classes) -> Reading | None:
    """Whole numbers in their order, those that documents have: 1 to 5 are five classes, not six."""
    values = {label.code: label.value for label in labels if label.value is not None}
    if not classes.new or classes.corpus is not None or len(values) < len(labels):
        return None
    _require_within(labels, values, classes)
    names = [str(value) for value in sorted({int(value) for value in values.values()})]
    order = _in_order(names)
    return Reading(names, {code: order[str(int(v))] for code, v in values.items()}, (WHOLE,))


def _by_number(labels: Sequence[Label], classes: Classes) -> Reading | None:
    """Numbers of classes, counted from 0."""
    values = {label.code: label.value for label in labels if label.value is not None}
    if len(values) < len(labels) or not _counts(labels, classes):
        return None
    _require_within(labels, values, classes)
    ids = {code: int(value) for code, value in values.items()}
    if classes.known is not None:
        return Reading(classes.known, ids, _guess("numbers", labels, ids, classes.known))
    notes = (WHOLE,) if classes.count is None else ()
    return Reading(_numbered("{}", ids, classes), ids, notes)


def _counts(labels: Sequence[Label], classes: Classes) -> bool:
    """Whether the numbers are no names that the corpus gave to classes in an order of its own."""
    if classes.corpus is None:
        return True
    order = _in_order(classes.corpus)
    return classes.known is not None and all(order[x.name] == x.value for x in labels)


def _as_the_corpus_counts(labels: Sequence[Label], classes: Classes) -> Reading | None:
    """The order in which the corpus names its classes, where the teacher has no names."""
    order = _in_order(classes.corpus)
    if (
        classes.known is not None
        or classes.corpus is None
        or not {x.name for x in labels} <= order.keys()
    ):
        return None
    ids = {label.code: order[label.name] for label in labels}
    return Reading(
        classes.corpus, ids, _unnamed("as the corpus does", classes.corpus, new=classes.new)
    )


def _alphabetically(labels: Sequence[Label], classes: Classes) -> Reading | None:
    if classes.known is not None:
        return None
    names = sorted({label.name for label in labels})
    order = _in_order(names)
    ids = {label.code: order[label.name] for label in labels}
    return Reading(names, ids, _unnamed("alphabetically", names, new=classes.new))


BY_NAME = (_by_exact_name, _by_folded_name, _by_label_number, _by_number_in_name)
READINGS = (*BY_NAME, _new_numbers, _by_number, _as_the_corpus_counts, _alphabetically)


def _in_order(names: Sequence[str] | None) -> dict[str, int]:
    """The place of each name, without blanks around it."""
    return {name.strip(): index for index, name in enumerate(names or ())}


def _require_unique(labels: Sequence[Label], known: Sequence[str]) -> None:
    times = Counter(name.strip() for name in known)
    for label in labels:
        if times[label.name] > 1:
            raise CorpusError(
                f"{label.where}: the teacher has {times[label.name]} classes called "
                f"{label.name!r}; give each a name of its own in id2label of its config.json"
            )


def _numbered(pattern: str, ids: Mapping[int, int], classes: Classes) -> list[str]:
    return [pattern.format(i) for i in range(classes.count or max(ids.values()) + 1)]


def _require_within(labels: Sequence[Label], ids: Mapping[int, float], classes: Classes) -> None:
    for label in labels:
        value = ids[label.code]
        if float(value).is_integer() and 0 <= value < classes.limit:
            continue
        if classes.known is None and classes.count is None:
            raise CorpusError(
                f"{label.where}: label {label.name} is no class: whole numbers from 0 to "
                f"{classes.limit - 1:,} name classes; for regression pass --label-type float"
            )
        raise CorpusError(
            f"{label.where}: label {label.name} is outside the teacher's {classes.limit} classes "
            f"(0 to {classes.limit - 1}); name another column with --label-column, or correct it"
        )


def _could_number(labels: Sequence[Label], ids: Mapping[int, int], classes: Classes) -> bool:
    """Whether labels that are names of classes could as well be numbers, of other classes."""
    return all(
        label.value is not None and label.value.is_integer() and 0 <= label.value < classes.limit
        for label in labels
    ) and any(label.value != ids[label.code] for label in labels)


def _guess(
    what: str, labels: Sequence[Label], ids: Mapping[int, int], known: Sequence[str]
) -> tuple[str, ...]:
    pairs = [f"{x.name} is class {ids[x.code]}, {known[ids[x.code]]}" for x in labels]
    return (f"labels are taken as {what} of the teacher's classes: {listed(pairs, '; ')}",)


def _unnamed(how: str, names: Sequence[str], *, new: bool) -> tuple[str, ...]:
    pairs = listed([f"{index} {name}" for index, name in enumerate(names)])
    if new:
        return (f"classes are numbered {how} ({pairs})",)
    note = (
        f"no class names of the teacher are known: classes are numbered {how} ({pairs}); "
        "if the teacher numbers them otherwise, name them in id2label of its config.json"
    )
    return (note,)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The first few of some names."""
    return between.join(names[:SHOWN]) + (f"{between}..." if len(names) > SHOWN else "")
