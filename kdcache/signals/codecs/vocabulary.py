"""A vocabulary in the order of how often its tokens occur: numbers of likely tokens are small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from kdcache.errors import DamageError
from kdcache.manifest import Json
from kdcache.signals.base import ArtifactSources
from kdcache.signals.taps import ModelSizes
from kdcache.tasks import Task

FILE = "logits/vocabulary"
"""Where a cache keeps the order, under `files/`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """A permutation of the V ids of a vocabulary.

    Attributes:
        ids: [V] int64, the id at each rank, the most frequent first.
        ranks: [V] int64, the rank of each id.
    """

    ids: torch.Tensor
    ranks: torch.Tensor
    _there: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False
    )

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, ranks) on a device, copied there once."""
        if device not in self._there:
            self._there[device] = (self.ids.to(device), self.ranks.to(device))
        return self._there[device]

    def to_bytes(self) -> bytes:
        """The ids in their order, as little-endian uint16, or uint32 beyond 65,536 of them."""
        return self.ids.numpy().astype(_dtype(len(self.ids))).tobytes()


@dataclass(frozen=True, eq=False)
class StoredVocabulary:
    """The order that a cache keeps, read when it is first asked for: to repair a cache whose file
    is damaged, it has to be opened.

    Raises DamageError then, if it is not what was stored.
    """

    read: Callable[[str], bytes]
    size: int

    def on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, ranks) on a device, copied there once."""
        return self._order.on(device)

    @cached_property
    def _order(self) -> Vocabulary:
        return from_bytes(self.read(FILE), self.size)


def _dtype(size: int) -> str:
    return "<u2" if size <= 65_536 else "<u4"


def size_of(size: int) -> int:
    """Bytes of the order of `size` ids."""
    return size * np.dtype(_dtype(size)).itemsize


def attributes(size: int) -> Json:
    """What tells another reader where a rank's id stands."""
    return {"ranks_of": f"files/{FILE}", "dtype": _dtype(size)}


def by_frequency(counts: npt.NDArray[np.int64], size: int) -> Vocabulary:
    """The order of `size` ids by how often each occurs; equals, and those unseen, by their id."""
    padded = np.zeros(size, np.int64)
    padded[: len(counts)] = counts[:size]
    return _vocabulary(np.argsort(-padded, kind="stable"))


def from_bytes(data: bytes, size: int) -> Vocabulary:
    """The order that `to_bytes` wrote; DamageError if it is no permutation of `size` ids."""
    if len(data) == size_of(size):
        ids = np.frombuffer(data, _dtype(size)).astype(np.int64)
        if (np.bincount(ids, minlength=size) == 1).all() and int(ids.max(initial=0)) < size:
            return _vocabulary(ids)
    raise DamageError(f"files/{FILE} is damaged: it is no order of {size:,} ids")


def _vocabulary(ids: npt.NDArray[np.int64]) -> Vocabulary:
    ranks = np.empty_like(ids)
    ranks[ids] = np.arange(len(ids))
    return Vocabulary(ids=torch.from_numpy(ids), ranks=torch.from_numpy(ranks))


def of_corpus(task: Task, size: int, sources: ArtifactSources) -> Vocabulary:
    """The order by the corpus's token counts; classes are no tokens and stay in theirs."""
    counts = np.zeros(0, np.int64) if task.labelled else sources.token_counts()
    return by_frequency(counts, size)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A signal that stores ids as their ranks in the order of a vocabulary, which it keeps."""

    vocabulary: Vocabulary | StoredVocabulary | None = field(
        default=None, compare=False, repr=False
    )

    def artifacts(
        self, task: Task, shape: ModelSizes, sources: ArtifactSources
    ) -> dict[str, bytes]:
        """The vocabulary in the order of the corpus's counts; that of classes stays as it is."""
        return {FILE: of_corpus(task, shape.outputs, sources).to_bytes()}

    def artifact_bytes(self, shape: ModelSizes) -> dict[str, int]:
        """Two bytes an id, or four beyond 65,536 of them."""
        return {FILE: size_of(shape.outputs)}

    def with_artifacts(self, shape: ModelSizes, read: Callable[[str], bytes]) -> Self:
        """This signal with the order of the vocabulary."""
        return replace(self, vocabulary=StoredVocabulary(read, shape.outputs))

    def ranks_of(self, ids: torch.Tensor) -> torch.Tensor:
        """The rank of each id, on the ids' device."""
        return self._order.on(ids.device)[1][ids]

    def ids_of(self, ranks: torch.Tensor) -> torch.Tensor:
        """The id at each rank, on the ranks' device; -1, which is no rank, stays as it is."""
        return self._order.on(ranks.device)[0][ranks.clamp(min=0)].where(ranks >= 0, ranks)

    @property
    def _order(self) -> Vocabulary | StoredVocabulary:
        assert self.vocabulary is not None, "the signal has not been with_artifacts"
        return self.vocabulary
