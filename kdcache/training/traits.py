"""What caches have to have alike that one student learns from, with one head or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdcache.errors import MismatchError
from kdcache.progress import short
from kdcache.store import Cache

SHOWN = 4  # values of a list that a message shows


class Trait(NamedTuple):
    """What several caches have to have alike, and what to do where they do not."""

    of: Callable[[Cache], Any]
    way: str


REPLAN = "plan both corpora with one tokenizer"
TRAITS: Mapping[str, Trait] = {
    "tokenizer (SHA-256)": Trait(lambda cache: cache.plan.config.tokenizer["sha256"][:12], REPLAN),
    "number of tokens": Trait(lambda cache: cache.plan.config.tokenizer["vocab_size"], REPLAN),
    "pad token": Trait(lambda cache: cache.plan.config.tokenizer["pad_id"], REPLAN),
    "token types": Trait(lambda cache: cache.plan.config.tokenizer["type_ids"], REPLAN),
    "mask token": Trait(lambda cache: cache.plan.config.tokenizer.get("mask_id"), REPLAN),
}
"""What caches that one student learns from have alike, by name; None: a plan does not tell."""

OF_A_HEAD: Mapping[str, Callable[[Cache], Any]] = {
    "task": lambda cache: cache.plan.task.name,
    "kind of label": lambda cache: cache.plan.label_kind.name,
    "classes": lambda cache: cache.plan.config.classes if cache.plan.task.labelled else None,
    "number of outputs": lambda cache: cache.shape.outputs if cache.plan.task.labelled else None,
}
"""What caches have alike whose student has one head, by name."""


def require_together(one: Cache, other: Cache) -> None:
    """Raise MismatchError, with the first difference, unless one student can learn from both."""
    for name, trait in TRAITS.items():
        if None in (trait.of(one), trait.of(other)):
            continue
        if told := _difference(name, trait.of, one, other):
            raise MismatchError(
                f"{one.path} and {other.path} do not go together: {told}: {trait.way}"
            )


def apart(one: Cache, other: Cache) -> str:
    """Why a student needs a head for each of two caches, in words; "": it does not."""
    told = (_difference(name, of, one, other) for name, of in OF_A_HEAD.items())
    why = next(filter(None, told), "")
    return why and f"of {short(str(one.path))} and {short(str(other.path))} {why}"


def _difference(name: str, of: Callable[[Cache], Any], one: Cache, other: Cache) -> str:
    found, there = of(one), of(other)
    if found == there:
        return ""
    return f"the {name} is {_text(found)} in the first and {_text(there)} in the second"


def _text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    more = ", ..." if len(value) > SHOWN else ""
    return f"{', '.join(map(str, value[:SHOWN]))}{more} ({len(value)})"
