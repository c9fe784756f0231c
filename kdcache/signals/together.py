"""Signals of one cache together: their arrays, taps and files, and what becomes one signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from kdcache.errors import ConfigError
from kdcache.signals.base import ArraySpec, ArtifactSources, HasArtifacts, Signal
from kdcache.signals.taps import ModelSizes, Tap
from kdcache.tasks import Task


def named_arrays(signals: Mapping[str, Signal], task: Task, shape: ModelSizes) -> list[ArraySpec]:
    """The arrays of signals as they are named in a cache: under the name of each."""
    return [
        replace(spec, name=f"{name}/{spec.name}")
        for name, signal in signals.items()
        for spec in signal.arrays(task, shape)
    ]


def join(one: Any, other: Any) -> Signal:
    """One signal with the layers of two; ConfigError, saying why, where they are not of one kind.

    Everything but the layers has to be the same, and no layer may be in both.
    """
    layers = getattr(one, "layers", ()), getattr(other, "layers", ())
    if type(one) is not type(other) or not all(layers):
        raise ConfigError("a cache holds one of each")
    both = sorted(set(layers[0]) & set(layers[1]))
    if both:
        raise ConfigError(f"both have layer {both[0]}")
    have, want = one.to_json(), other.to_json()
    for name in sorted((have.keys() | want.keys()) - {"layers"}):
        if have.get(name) != want.get(name):
            difference = (
                f"{name} is {have.get(name)} in the first and {want.get(name)} in the other"
            )
            raise ConfigError(f"their layers would be one signal, but {difference}")
    made: Signal = replace(one, layers=tuple(sorted(layers[0] + layers[1])))
    return made


def taps_of(signals: Iterable[Signal]) -> set[Tap]:
    """All that some signals are made of."""
    return {tap for signal in signals for tap in signal.taps()}


def given_by(signals: Iterable[Signal]) -> set[Tap]:
    """All that some signals can be asked for."""
    return {tap for signal in signals for tap in signal.gives()}


def holder(signals: Mapping[str, Signal], tap: Tap) -> str | None:
    """Name of the signal that gives a tap: the one that is called so, or else the first."""
    able = [name for name, signal in signals.items() if tap in signal.gives()]
    return tap.name if tap.name in able else next(iter(able), None)


def artifacts(
    signals: Iterable[Signal], task: Task, shape: ModelSizes, sources: ArtifactSources
) -> dict[str, bytes]:
    """The files that signals need in a cache beside their arrays, by name."""
    files: dict[str, bytes] = {}
    for signal in signals:
        if isinstance(signal, HasArtifacts):
            files |= signal.artifacts(task, shape, sources)
    return files


def with_artifacts(
    signals: Mapping[str, Signal], shape: ModelSizes, read: Callable[[str], bytes]
) -> dict[str, Signal]:
    """Signals ready to encode and decode; `read` gives a file of the cache by its name."""
    return {
        name: signal.with_artifacts(shape, read) if isinstance(signal, HasArtifacts) else signal
        for name, signal in signals.items()
    }
