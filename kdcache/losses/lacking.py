"""A cache that does not hold what a loss needs, and the signal that it would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcache.errors import ConfigError
from kdcache.losses.base import Match, layers_text
from kdcache.losses.cache_spec import CacheSpec
from kdcache.signals import TAP_KINDS, ModelSizes
from kdcache.signals.attention import PROJECTED
from kdcache.signals.base import settings_text
from kdcache.tasks import Task


class LackingError(ConfigError):
    """A cache does not hold what a loss needs, and another build of it might.

    Attributes:
        asked: the end of the message, which says what to build the cache with.
        cache: as the teacher that the loss learns from.
        student: sizes of what is trained.
    """

    def __init__(self, text: str, asked: str, cache: CacheSpec, student: ModelSizes) -> None:
        super().__init__(text)
        self.asked, self.cache, self.student = asked, cache, student

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, self.args  # what another process is told of it


def signal_for(match: Match, matches: Sequence[Match], task: Task) -> str:
    """The signal to build for a match, with what the other `matches` of its loss read of it."""
    tap, options = match.teacher, []
    name = f"{match.signal}=" if match.signal else ""
    if match.use is not None:
        return f"{name}logits:dense" + ("" if match.use.raw else f" or {name}logits:topk")
    if tap.how is not None:
        return f"{name}{tap.name}:{settings_text(tap.how.settings())}"
    if tap.name in PROJECTED:
        return f"{name}attention:layers={layers_text(layers_of(matches, *PROJECTED))}"
    if tap.layer is not None:
        options.append(f"layers={layers_text(layers_of(matches, tap.name))}")
    if TAP_KINDS[tap.name].per == "token":
        options.append(f"positions={positions_for(match, task)}")
    return ":".join(filter(None, [name + tap.name, ",".join(options)]))


def positions_for(match: Match, task: Task) -> str:
    """The positions that a match reads; where its loss takes any, those of the task's logits."""
    return match.positions or ("cls" if task.rows == "document" else "all")


def layers_of(matches: Sequence[Match], *taps: str) -> list[int]:
    """The layers that matches read of some taps of the teacher."""
    layers = {match.teacher.layer for match in matches if match.teacher.name in taps}
    return sorted(layer for layer in layers if layer is not None)
