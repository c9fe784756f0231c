"""The steps of a profile: ways to train that take turns, and what each step is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Way(NamedTuple):
    """A way to work out the losses of a step.

    Attributes:
        fused: whether a language model's head is left to the losses, where it can be.
        plain: whether the losses are worked out by operations of torch's own.
    """

    name: str
    fused: bool = True
    plain: bool = False


OURS = Way("kdcache")
UNFUSED = Way("head unfused", fused=False)
PLAIN = Way("plain torch losses", fused=False, plain=True)


def ways(heads: Sequence[bool]) -> tuple[Way, ...]:
    """The ways of a run in which the losses take the heads of some of its caches, or of none."""
    return (OURS, UNFUSED, PLAIN) if any(heads) else (OURS, PLAIN)


WARM, TIME, MEMORY, OPS, TRACE = "warm", "time", "memory", "ops", "trace"
WARM_UP = 2
OP_STEPS = 3


class Turn(NamedTuple):
    """A step: what it is for, and by which way; all of a round have the documents of its first."""

    kind: str
    way: Way
    first: bool = True


def turns(those: Sequence[Way], steps: int, *, trace: bool) -> list[Turn]:
    """All steps of a profile, in order: to warm up, `steps` of each way that are timed, memory,
    ops, and one for the trace. Each way is the first of a round as often as the others: that step
    meets documents of new lengths, and pays for it.
    """
    rounds = [*[WARM] * WARM_UP, *[TIME] * steps, MEMORY]
    found: list[Turn] = []
    for number, kind in enumerate(rounds):
        shift = number % len(those)
        order = [*those[shift:], *those[:shift]]
        found += [Turn(kind, way, way is order[0]) for way in order]
    found += [Turn(OPS, OURS)] * OP_STEPS
    return found + [Turn(TRACE, OURS)] * trace
