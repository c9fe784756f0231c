"""Rows of tokens, document by document: what losses need that compare the tokens of one."""

from __future__ import annotations

from typing import NamedTuple

import torch

from kdcache.losses.base import Match, Step, safe
from kdcache.losses.layer_maps import LayerMap, layer_pairs
from kdcache.losses.layer_matches import hidden_matches
from kdcache.plans.batch import Rows
from kdcache.signals import ModelSizes


class ByDocument(NamedTuple):
    """Which document each of N rows is of.

    Attributes:
        owner: [N] int64, rising.
        number: of documents, B.
        longest: no document has more rows than that.
        known: rows of each document, where the host knows them.
    """

    owner: torch.Tensor
    number: int
    longest: int
    known: list[int] | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Rows of each document, [B] int64."""
        return self.sums(torch.ones_like(self.owner))

    def counts(self) -> list[int]:
        """The same on the host, which waits for a device unless they are known."""
        return self.lengths.tolist() if self.known is None else self.known

    def sums(self, rows: torch.Tensor) -> torch.Tensor:
        """The sum of each document's rows: [N, ...] to [B, ...]."""
        return rows.new_zeros(self.number, *rows.shape[1:]).index_add(0, self.owner, rows)

    def unit(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, ...] over the length that each column has in a document; zeros stay zeros."""
        squares = self.sums(rows.square())
        return rows / safe(squares).sqrt()[self.owner]

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, ...] as [B, longest, ...], zeros at pads."""
        lengths = self.lengths
        first = lengths.cumsum(0) - lengths
        place = torch.arange(len(rows), device=rows.device) - first[self.owner]
        empty = rows.new_zeros(self.number, self.longest, *rows.shape[1:])
        return empty.index_put((self.owner, place), rows)


def by_document(step: Step) -> ByDocument:
    """The documents of all tokens, or of the tokens that a loss is a mean over."""
    number, longest = step.batch["attention_mask"].shape
    places = torch.arange(number, device=step.batch["attention_mask"].device)
    rows = step.rows if step.rows.space == "token" else Rows("token")
    known = None if rows.sampled_rows or step.batch.lengths is None else list(step.batch.lengths)
    return ByDocument(step.batch.of_rows(places, rows), number, longest, known)


def token_matches(
    layer_map: LayerMap,
    student: ModelSizes,
    teacher: ModelSizes,
    *,
    signal: str,
    projection: str = "none",
    any_width: bool = False,
    whole: bool = True,
) -> tuple[Match, ...]:
    """The hidden states of tokens of the mapped layers; `whole`, of all tokens of a document.

    A map is learned for each layer as `projection` says, "auto" where its widths differ.
    """
    return tuple(
        match
        for pair in layer_pairs(layer_map, student.layers, teacher.layers)
        for match in hidden_matches(
            (pair,),
            student,
            teacher,
            positions="all",
            signal=signal,
            projection=projection,
            any_width=any_width,
            whole=whole,
        )
    )
