"""Both sides of every match of a batch, each read once however many losses look at it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from kdcache.losses.base import LABELS, PEERS, Pair, means_of
from kdcache.losses.bound import Bound
from kdcache.losses.cache_spec import CacheSpec
from kdcache.plans.batch import TEACHER_LENGTHS, Batch
from kdcache.signals import HEAD, LOGITS, Activations, Head, LayerRows, of_signal
from kdcache.spans import DECODE, span

Project = Callable[[str, torch.Tensor], torch.Tensor]


class Pairs:
    """The pairs of one batch, from the activations of a student.

    Args:
        project: applies a learned map, by its name, to rows.
    """

    def __init__(
        self,
        cache: CacheSpec,
        batch: Batch,
        activations: Activations,
        *,
        project: Project,
    ) -> None:
        self.cache, self.batch, self.activations = cache, batch, activations
        self.project = project
        self._made: dict[tuple[Any, ...], Any] = {}
        self._at_sampled: dict[str, Activations] = {}

    def of(self, match: Bound) -> Pair:
        """Both sides of a match."""
        where = match.student, match.outputs, match.rows.sampled_rows, match
        make = self._mapped if match.project else self._student
        student = self._once(make, match.project, *where)
        return Pair(student, self.teacher_of(match), match.teacher == LOGITS and _wider(match))

    def teacher_of(self, match: Bound) -> Any:
        """The teacher's side of a match."""
        with span(DECODE):
            return self._once(self._teacher, match.signal, match.teacher, match)

    def _once(self, make: Callable[[Bound], Any], *key: Any) -> Any:
        """What `make` gives for the match that is last of the key, and for others like it."""
        *same, match = key
        known = (make, *same, match.positions)
        if known not in self._made:
            self._made[known] = make(match)
        return self._made[known]

    def _student(self, match: Bound) -> Any:
        """The student's side, at the rows of a match."""
        activations = self._at(match)
        if match.student == LOGITS:
            return _first(activations.logits_or_head, match.outputs)
        return activations.rows(match.student, match.positions)

    def _mapped(self, match: Bound) -> Any:
        """The same with its learned map applied."""
        where = match.student, match.outputs, match.rows.sampled_rows, match
        rows = self._once(self._student, "", *where)
        return self.project(match.project, rows)

    def _at(self, match: Bound) -> Activations:
        """The activations at the rows of a match: selected once for all taps that share them."""
        name = match.rows.sampled_rows
        if name and name not in self._at_sampled:
            rows = self.batch[name]
            self._at_sampled[name] = self.activations.at_rows(self.cache.task, match.space, rows)
        return self._at_sampled[name] if name else self.activations

    def _teacher(self, match: Bound) -> Any:
        """The teacher's side, decoded, at the rows of a match."""
        if match.teacher == PEERS:
            peers = (_first(peer.logits_or_head, match.outputs) for peer in self.activations.peers)
            return [logits.detach() for logits in peers]
        if match.teacher == LABELS:
            return self.batch["labels"]
        if match.teacher == LOGITS:
            return self._soft(match)
        stored = of_signal(self.batch, match.signal)
        rows: LayerRows = match.held.decode(stored, match.teacher, match.source.shape)
        if match.positions == match.stored:
            return rows
        if match.positions == "mean":
            return LayerRows(codes=self._means(rows.dense()))
        index = self._first if match.positions == "cls" else self._selected
        scale = None if rows.scale is None else rows.scale[index]
        return LayerRows(codes=rows.codes[index], scale=scale)

    def _soft(self, match: Bound) -> Any:
        stored, sizes = of_signal(self.batch, match.signal), match.source.shape
        if HEAD in match.held.gives():
            labels = match.held.decode(stored, HEAD, sizes)
            return labels.first(match.outputs) if _wider(match) else labels
        return match.held.decode(stored, LOGITS, sizes)

    @cached_property
    def _token(self) -> torch.Tensor:
        """The number of each position among the tokens of the batch, [B * L]."""
        return self.activations.mask.flatten().cumsum(0) - 1

    @property
    def _first(self) -> torch.Tensor:
        """The teacher's rows of first tokens among those of all tokens."""
        return self._lengths.cumsum(0) - self._lengths

    @property
    def _lengths(self) -> torch.Tensor:
        """The teacher's tokens of each document, [B]: the student's, unless it cuts texts anew."""
        theirs = self.batch.get(TEACHER_LENGTHS)
        return self.activations.mask.sum(1) if theirs is None else theirs

    @property
    def _selected(self) -> torch.Tensor:
        """Rows of selected tokens among those of all tokens."""
        assert self.activations.selected is not None
        return self._token[self.activations.selected]

    def _means(self, rows: torch.Tensor) -> torch.Tensor:
        """Of rows of all tokens, [tokens, H], the mean of each document's, [B, H]."""
        lengths = self._lengths
        places = torch.arange(len(lengths), device=rows.device)
        owner = places.repeat_interleave(lengths, output_size=len(rows))
        return means_of(rows, owner, len(lengths))


def _first(logits_or_head: Any, outputs: int | None) -> Any:
    """Logits, or the head that was not applied: of the outputs that both have."""
    if outputs is None:
        return logits_or_head
    if isinstance(logits_or_head, Head):
        return logits_or_head.first(outputs)
    return logits_or_head[:, :outputs]


def _wider(match: Bound) -> bool:
    """Whether the teacher has outputs that the student lacks."""
    return match.outputs is not None and match.outputs < match.source.shape.outputs
