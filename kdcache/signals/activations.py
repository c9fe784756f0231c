"""Activations: what was read out of a model for one batch, and how its attention made of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kdcache.signals.positions import of_subset, select
from kdcache.signals.taps import HEAD, LOGITS, TAP_KINDS, Tap
from kdcache.tasks import RowSpace, Subset, Task


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How a block turns queries and keys into attention, as it did for one batch.

    Attributes:
        scaling: factor of query times key.
        softcap: bound on the scores, as Gemma 2 has it; None: no bound.
        causal: whether, without a mask, a token attends to none behind it.
        mask: as the attention got it, [B or 1, heads or 1, L, L]: bool, True where a token attends,
            or floats to add; None: no mask.
    """

    scaling: float
    softcap: float | None = None
    causal: bool = False
    mask: torch.Tensor | None = None

    def scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """What the block takes the softmax of, [B, heads, L, L]: rows are queries.

        `query` is [B, heads, L, D] and `key` [B, key heads, L, D]. Where a token does not attend
        there is the least number of the dtype.
        """
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        mask = self.full_mask(len(query), query.shape[2], query.device)
        if mask.dtype != torch.bool:
            return scores + mask
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)

    def full_mask(self, documents: int, length: int, device: torch.device) -> torch.Tensor:
        """The mask for every document, [documents, heads or 1, length, length], whatever it is."""
        mask = self.mask
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
            mask = mask.tril() if self.causal else mask
        return mask.expand(documents, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a language model, not applied: logits are `hidden @ weight.T + bias`.

    Attributes:
        hidden: [rows of the task's logits, H].
        weight: [V, H].
        bias: [V].
        autocast: dtype in which the model would have applied it; None: that of `hidden`.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    autocast: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """That of the logits."""
        return len(self.hidden), len(self.weight)

    def first(self, outputs: int) -> Head:
        """The head of the first `outputs` alone: others get no mass, and no gradient."""
        bias = None if self.bias is None else self.bias[:outputs]
        return replace(self, weight=self.weight[:outputs], bias=bias)

    def as_in_model(self) -> AbstractContextManager[Any]:
        """The autocast in which the model would have applied it."""
        kind, on = self.hidden.device.type, self.autocast is not None
        return torch.autocast(kind, dtype=self.autocast, enabled=on)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a model computed for one padded batch of B documents of up to L tokens.

    Attributes:
        values: the tensors that were asked for; `Tap` says their shapes.
        mask: [B, L] bool, True where there is a token.
        selected: flat indices into B * L of the positions that the task selects, if it does.
        head: where `head` was asked for, that and the weights it would have met.
        attention: by layer, how queries and keys make scores, where one of them was asked for.
        peers: what the students computed that are trained with this one.
        moved: what the model computed at the points of another teacher, if it was run there too.
    """

    values: Mapping[Tap, torch.Tensor]
    mask: torch.Tensor
    selected: torch.Tensor | None = None
    head: Head | None = None
    attention: Mapping[int, Attention] = field(default_factory=dict)
    peers: tuple[Activations, ...] = ()
    moved: Activations | None = None

    @property
    def students(self) -> list[Activations]:
        """These and those of the peers, each with all others as its peers."""
        if not self.peers:
            return [self]
        every = [replace(one, peers=()) for one in (self, *self.peers)]
        return [
            replace(one, peers=(*every[:place], *every[place + 1 :]))
            for place, one in enumerate(every)
        ]

    def __getitem__(self, tap: Tap) -> torch.Tensor:
        return self.values[tap]

    @property
    def logits_or_head(self) -> torch.Tensor | Head:
        """The logits, [rows, outputs]; of a language model asked for its head alone, that."""
        return self.values[LOGITS] if LOGITS in self.values or self.head is None else self.head

    def layers(self, name: str) -> list[torch.Tensor]:
        """The values of a tap at every layer there is, the lowest first."""
        return [self.values[tap] for tap in sorted(self.values) if tap.name == name]

    def states(self, tap: Tap) -> torch.Tensor:
        """A tap of tokens as [B, L, width]: the heads of a query side by side."""
        value = self.values[tap]
        return value.transpose(1, 2).flatten(2) if value.dim() == 4 else value

    def rows(self, tap: Tap, positions: str = "all") -> torch.Tensor:
        """Rows of a tap as a cache stores them, pads left out.

        Of a tap of tokens those at `positions`, as `select` takes them: [tokens, width] of all.
        Others are rows already: [B, W] of `pooled`, [rows, outputs] of `logits`.
        """
        states = self.states(tap)
        if states.dim() == 2:
            return states
        return select(states, positions, self.mask, self.selected)

    def at_rows(self, task: Task, space: RowSpace, rows: torch.Tensor | None) -> Activations:
        """These at the rows of a subset of a space: `mask` or `selected` has only those.

        `rows` [n] int64 are numbers among all rows of the batch, as `Plan.sampled_rows` gives them.
        Where `space` is no subset nothing changes.
        """
        if not isinstance(space, Subset):
            return self
        assert rows is not None, "which rows a subset keeps is to be read with it"
        chosen = of_subset(self.mask, self.selected, space, rows)
        if task.rows != space.of:
            return replace(self, **chosen)
        values = {
            tap: value[rows] if TAP_KINDS[tap.name].per == "row" else value
            for tap, value in self.values.items()
        }
        head = self.head and replace(self.head, hidden=values[HEAD])
        return replace(self, values=values, head=head, **chosen)
