"""The signals of one teacher in a store: which there are, and what their rows say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kdcache.errors import CacheError, ConfigError, one_of
from kdcache.signals import ModelSizes, Signal, Tap, holder, of_signal
from kdcache.store.io.object_path import Root
from kdcache.tasks import Task


@dataclass(frozen=True)
class StoredSignals:
    """Signals by name, ready to decode.

    Attributes:
        root: the store.
        task: what the teacher was run for.
        shape: sizes of the teacher.
        known: the signals.
        newer: those that only a newer version can read, and what is new about each.
    """

    root: Root
    task: Task
    shape: ModelSizes
    known: Mapping[str, Signal]
    newer: Mapping[str, str]

    def __getitem__(self, name: str) -> Signal:
        """A signal; ConfigError if there is none, CacheError if it is of a newer version."""
        if name in self.newer:
            others = ", ".join(self.known) or "none"
            raise CacheError(
                f"{self.root}: signal {name!r} was made by a newer kdcache: this version does not "
                f"know {self.newer[name]}; update kdcache, or read another signal ({others})"
            )
        return self.known[one_of("signal of this cache", name, self.known)]

    def arrays(self, name: str, tap: Tap | None = None) -> list[str]:
        """Names of the arrays of a signal, or those that one of its taps is read from."""
        specs = self[name].arrays(self.task, self.shape)
        return [f"{name}/{spec.name}" for spec in specs if tap is None or spec.read_for(tap)]

    def holder(self, tap: Tap) -> str:
        """Name of the signal that a tap is decoded of, if there is one; else that of the tap."""
        return holder(self.known, tap) or tap.name

    def decode(self, rows: Mapping[str, torch.Tensor], tap: Tap, name: str) -> Any:
        """What losses take, of rows by the names of arrays; see `Cache.decode`."""
        signal = self[name]
        if tap not in signal.gives():
            held = ", ".join(map(str, signal.gives()))
            raise ConfigError(f"{self.root} holds no {tap} in {name}; it holds {held}")
        try:
            return signal.decode(of_signal(rows, name), tap, self.shape)
        except KeyError as error:
            lacking = [array for array in self.arrays(name, tap) if array not in rows]
            if not lacking:
                raise
            message = f"{tap} of {name} is decoded from {lacking[0]}, which was not read"
            raise ConfigError(message) from error
