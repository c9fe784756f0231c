"""Distances between the tokens of a document, by their hidden states or by what they attend to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from kdcache.errors import ConfigError, one_of
from kdcache.losses.attention import attending, attention_matches, heads_of, heads_told
from kdcache.losses.base import Match, Over, Pair, Step, check_number, safe, sides
from kdcache.losses.between_documents import products, shares
from kdcache.losses.by_document import ByDocument, by_document, token_matches
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap
from kdcache.plans.lengths import cut
from kdcache.signals import ModelSizes

OF = ("hidden", "attention")
CHUNK_BYTES = 2**24
"""Of the distances of one side that are there at a time, unless one document takes more."""
GROUP = 1024
"""Pairs of tokens that may as well be padded as one more group of documents is worked out."""


class Some(NamedTuple):
    """Documents of like length: their places in a batch, [documents] int64, and their longest."""

    docs: torch.Tensor
    longest: int

    def of(self, padded: torch.Tensor) -> torch.Tensor:
        """Their part of all documents' [B, heads, longest of all, width]."""
        return padded.index_select(0, self.docs)[:, :, : self.longest]


Points = Callable[[Some], torch.Tensor]
"""Of some documents, what there is a distance between: [documents, heads, longest, width]."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Relations between the tokens of each document, as a prototype of MLKD-BERT computes them.

    Euclidean distances between every two tokens of a document, pads left out, over the mean of
    those of the whole batch that are not zero; smooth L1 with beta 1, mean over all pairs of a
    document, those of a token with itself included, then over documents. A long document counts
    like a short one, in that mean too. Widths may differ.

    Source: Zhang et al. 2024 (MLKD-BERT), arXiv:2407.02775, by the code of HandH1998/tmp_bert_mlkd,
    which measures the student's hidden states behind the map of its hidden loss, and counts pads.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        of: "hidden", distances between hidden states; or "attention", between the rows of scores
            of each head, before scaling and softmax, of which both models need as many.
        layer_map: which layers, as in the loss `hidden`; those that attend begin with 1, and layer
            0 of a named map is left out.
        layers: how the mapped layers become one number: "mean", "sum", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "distances"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    of: str = "hidden"
    layer_map: LayerMap = "uniform"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of distances", self.weight)
        one_of("of of distances", self.of, OF)
        one_of("layers of distances", self.layers, COMBINE)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Hidden states of every token, or queries and keys, of any widths."""
        if self.of == "hidden":
            return token_matches(
                self.layer_map, student, teacher, signal=self.signal, any_width=True
            )
        if None in (student.heads, teacher.heads) or student.heads != teacher.heads:
            raise ConfigError(
                "distances between rows of attention take as many heads on both sides; the student "
                f"has {heads_told(student)} and the teacher {heads_told(teacher)}: set of=hidden"
            )
        pairs = attending(self.kind, self.layer_map, student, teacher)
        return attention_matches(pairs, ("query", "key"), self.signal)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum or mean over the mapped layers of the batch's share of the step times its loss."""
        documents = by_document(step)
        if self.of == "hidden":
            layers = [_hidden(pair, documents) for pair in pairs]
        else:
            heads = heads_of(step)
            layers = [
                _scores(*both, documents, heads)
                for both in zip(pairs[::2], pairs[1::2], strict=True)
            ]
        found = [distance_loss(*layer, documents, step.weight) for layer in layers]
        return COMBINE[self.layers](torch.stack(found), step.state)


def _hidden(pair: Pair, documents: ByDocument) -> tuple[Points, Points]:
    """The hidden states of both sides, as of one head."""

    def points(rows: torch.Tensor) -> Points:
        padded = documents.padded(rows)[:, None]
        return lambda some: some.of(padded)

    ours, theirs = sides(pair.student, pair.teacher.dense())
    return points(ours), points(theirs)


def _scores(query: Pair, key: Pair, documents: ByDocument, heads: int) -> tuple[Points, Points]:
    """The products of queries and keys of both sides, a row for each query; zeros at pads."""

    def points(queries: torch.Tensor, keys: torch.Tensor) -> Points:
        width = queries.shape[1] // heads
        split = [
            documents.padded(rows).unflatten(2, (-1, width)).transpose(1, 2)
            for rows in (queries, keys)
        ]
        repeats = heads // split[1].shape[1]  # grouped queries share their keys
        return lambda some: products(
            some.of(split[0]), some.of(split[1]).repeat_interleave(repeats, dim=1)
        )

    ours = [sides(pair.student, pair.teacher.dense()) for pair in (query, key)]
    return points(ours[0][0], ours[1][0]), points(ours[0][1], ours[1][1])


def distance_loss(
    student: Points,
    teacher: Points,
    documents: ByDocument,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Smooth L1 between relative distances of tokens: of what a batch counts for, a scalar.

    `weight` is [B], what each document counts for; None: 1 / B. Distances are those of documents of
    like length. They are kept where all are few, else worked out again, also going backward.
    """
    lengths = documents.lengths
    first = student(Some(lengths.new_zeros(1), 1))
    of = shares(first.new_empty(documents.number, 0), weight)
    entry = of.share / (first.shape[1] * lengths.square())  # a document's mean over heads and pairs
    size = first.shape[1] * first.element_size()
    groups = _groups(documents.counts(), size, lengths.device)
    few = sum(size * len(some.docs) * some.longest**2 for some in groups) <= CHUNK_BYTES

    def apart(side: Points, some: int) -> torch.Tensor:
        return _apart(side(groups[some]))

    if few:
        apart = cache(apart)

    def counted(some: int) -> torch.Tensor:
        docs, longest = groups[some]
        real = torch.arange(longest, device=docs.device) < lengths[docs, None]
        return (real[:, None, :, None] & real[:, None, None, :]) * entry[docs, None, None, None]

    def sums(side: Points, some: int) -> torch.Tensor:
        far, share = apart(side, some), counted(some)
        return torch.stack([(far * share).sum(), ((far > 0) * share).sum()])

    def losses(some: int, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        near, known = apart(student, some) / ours, apart(teacher, some) / theirs
        return (smooth_l1_loss(near, known, reduction="none") * counted(some)).sum()

    run = _at_once if few else _again
    means = []
    for side in (student, teacher):
        total, number = torch.stack([run(sums, side, n) for n in range(len(groups))]).sum(0)
        means.append(safe(total / safe(number)))
    return of.total * torch.stack([run(losses, n, *means) for n in range(len(groups))]).sum()


def _groups(lengths: list[int], size: int, device: torch.device) -> list[Some]:
    """The documents of some lengths, each group's distances in the bytes there may be; `size` is
    that of a distance.
    """
    like = cut(lengths, lambda number, longest: number * longest**2 + GROUP)
    groups = []
    for places in like:
        docs = torch.tensor(places).to(device, non_blocking=True)
        longest = max(lengths[place] for place in places)
        count = max(1, CHUNK_BYTES // (size * longest**2))
        groups += [Some(part, longest) for part in docs.split(count)]
    return groups


def _apart(points: torch.Tensor) -> torch.Tensor:
    """Euclidean distances [..., n, n] between points [..., n, d]; the gradient at 0 is 0."""
    with torch.autocast(points.device.type, enabled=False):
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def _again(function: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
    found: torch.Tensor = checkpoint(
        function, *given, use_reentrant=False, preserve_rng_state=False
    )
    return found


def _at_once(function: Callable[..., torch.Tensor], *given: Any) -> torch.Tensor:
    return function(*given)
