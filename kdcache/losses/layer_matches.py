"""Matches of layers: their hidden states, and the maps learned where widths differ."""

from __future__ import annotations

from collections.abc import Callable

from kdcache.losses.base import Match
from kdcache.losses.layer_maps import LayerMap, Pairs, layer_pairs
from kdcache.signals import ModelSizes, Tap

PROJECTIONS = ("auto", "none", "linear")
"""When a map from the student's width to the teacher's is learned: "auto" where they differ."""


def learns(projection: str, differ: Callable[[], bool]) -> bool:
    """Whether a map is learned; `differ` is asked, whether widths do, for "auto" alone."""
    return projection == "linear" or (projection == "auto" and differ())


def pairs_or_last(layer_map: LayerMap, student: ModelSizes, teacher: ModelSizes) -> Pairs:
    """The pairs of a layer map; of "" the last layers of both.

    Raises:
        ConfigError: the map is no map of these depths.
    """
    last = f"{student.layers}:{teacher.layers}"
    return layer_pairs(layer_map or last, student.layers, teacher.layers)


def hidden_matches(
    pairs: Pairs,
    student: ModelSizes,
    teacher: ModelSizes,
    *,
    positions: str,
    signal: str,
    projection: str = "none",
    shared: bool = False,
    any_width: bool = False,
    whole: bool = False,
) -> tuple[Match, ...]:
    """The hidden states of pairs of layers at `positions`, or where the cache has them ("cache").

    Where any of the widths differ, `projection` may ask for maps: one for each layer of the
    student, or one that all share. `whole` is as in `Match`.
    """

    def differ() -> bool:
        return any(student.width("hidden", ours) != teacher.hidden for ours, _ in pairs)

    learned = learns(projection, differ)
    return tuple(
        Match(
            Tap("hidden", ours),
            Tap("hidden", theirs),
            positions="" if positions == "cache" else positions,
            signal=signal,
            project=None if not learned else "" if shared else str(ours),
            any_width=any_width,
            whole=whole,
        )
        for ours, theirs in pairs
    )
