"""All layers of a teacher, spread over all layers of a student by optimal transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses import transport
from kdcache.losses.attention import check_heads, heads_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, exact, safe
from kdcache.losses.layer_matches import PROJECTIONS, learns
from kdcache.signals import LayerRows, ModelSizes, Tap
from kdcache_kernels import layer_costs
from kdcache_kernels.relation_kl.arguments import CHUNK, CHUNK_ELSEWHERE
from kdcache_kernels.relation_kl.pieces import Piece, pieces_of

KINDS = ("attention", "hidden")
State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class EMD:
    """Earth mover's distance between layers, BERT-EMD (Li et al. 2020, arXiv:2010.06133).

    Mean squared errors of hidden states, and of attention scores before the softmax, between every
    block of the student and every block of the teacher are the costs of an optimal transport from
    weights of the student's blocks to those of the teacher's: one for each of the two. What flows
    is a constant in the gradient. The error of the embedding outputs is added. Means are over
    tokens, and over pairs of tokens of a document and heads: pads take no part, unlike in the
    paper's code.

    Weights start even. After a step those of a block are inverse to what a unit of its weight paid
    (cost attention), and lie in the run's checkpoints.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. The paper takes .001 to .005.
        transport: factor of the two distances beside the embeddings.
        separate: whether blocks have other weights for scores than for hidden states; else the mean
            of both, as in the paper's code.
        projection: "linear" learns one map for all layers from the student's width to the
            teacher's, "none" learns none, "auto" learns one where the widths differ.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "emd"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    transport: float = 1.0
    separate: bool = False
    projection: str = "auto"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of an emd loss", self.weight)
        check_number("transport of emd", self.transport)
        one_of("projection of emd", self.projection, PROJECTIONS)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Embeddings; then hidden states, queries and keys of all blocks: the last of the student
        stand beside all of the teacher's that are left, or the other way round.
        """
        if student.layers < 1:
            raise ConfigError(
                "emd compares blocks, and the student has none: choose a transformer, or another "
                "loss"
            )
        check_heads(self.kind, student, teacher)
        learned = learns(self.projection, lambda: student.hidden != teacher.hidden)
        blocks = [
            (min(block, student.layers), min(block, teacher.layers))
            for block in range(1, max(student.layers, teacher.layers) + 1)
        ]
        places = [("hidden", 0, 0), *((n, *b) for n in ("hidden", "query", "key") for b in blocks)]
        return tuple(
            Match(
                Tap(name, ours),
                Tap(name, theirs),
                positions="all",
                signal=self.signal,
                project="" if learned and name == "hidden" else None,
                any_width=name != "hidden",
                whole=True,
            )
            for name, ours, theirs in places
        )

    def state(self, student: ModelSizes, teacher: ModelSizes) -> State:
        """The weights of the blocks of both sides, of each of the two distances."""
        depths = {"student": student.layers, "teacher": teacher.layers}
        return {
            f"{side}_{kind}": torch.full((layers,), 1 / layers, dtype=torch.float64)
            for side, layers in depths.items()
            for kind in KINDS
        }

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """What the batch's documents count for, times its distances; updates the weights."""
        moved, embeddings = moves(pairs, step)
        if not self.separate:
            _average(step.state)
        distances = torch.stack([one.distance for one in moved.values()]).sum()
        return step.weight.sum() * (self.transport * distances + embeddings)


class Move(NamedTuple):
    """What one transport came to.

    Attributes:
        distance: the sum of what flows times what it costs, with a gradient.
        costs: mean squared errors between blocks, [M, N].
        flow: likewise.
    """

    distance: torch.Tensor
    costs: torch.Tensor
    flow: torch.Tensor


def moves(pairs: Sequence[Pair], step: Step) -> tuple[dict[str, Move], torch.Tensor]:
    """The transports of scores and of hidden states, and the embeddings' mean squared error.

    `pairs` are as `EMD.matches` puts them. The next weights of blocks are put into `step.state`.
    """
    embeddings, *blocks = pairs
    size = len(blocks) // 3
    hidden, query, key = (blocks[at : at + size] for at in range(0, 3 * size, size))
    depths = len(step.state["student_hidden"]), len(step.state["teacher_hidden"])
    documents = _Documents.of(step)
    moved = {
        "attention": _of_scores(partial(documents.scores, query, key, depths), step.state),
        "hidden": _of_states(documents.costs(hidden, depths), step.state),
    }
    return moved, documents.costs([embeddings], (1, 1)).sum()


Chunk = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]
"""Values [rows, ...] of each block of the student, and of the teacher, and what a row counts for in
the mean over values, [rows]."""


class _Documents(NamedTuple):
    """The documents of a batch, and what they count for.

    Attributes:
        lengths: tokens of each.
        share: of each, [B], which sum to 1, or are 0.
        step: of which they are.
    """

    lengths: list[int]
    share: torch.Tensor
    step: Step

    @classmethod
    def of(cls, step: Step) -> _Documents:
        total = step.weight.sum()
        return cls(step.batch.known_lengths().tolist(), step.weight / safe(total), step)

    def _even(self, counts: list[int], columns: int) -> torch.Tensor:
        """What a value counts for in each document, which has so many rows of so many values."""
        of_each = torch.tensor(counts).to(self.share, non_blocking=True)
        return self.share / safe((self.share * of_each).sum()) / columns

    def costs(self, pairs: Sequence[Pair], depths: tuple[int, int]) -> torch.Tensor:
        """Mean squared errors of hidden states between blocks, [M, N], with a gradient."""
        ours = [exact(pair.student) for pair in pairs[: depths[0]]]
        theirs = [pair.teacher for pair in pairs[: depths[1]]]
        if len({rows.layout for rows in theirs}) > 1:  # of several signals
            theirs = [LayerRows(codes=rows.dense()) for rows in theirs]
        scales = [rows.scale for rows in theirs if rows.scale is not None]
        weight = self._even(self.lengths, 1)
        tokens = torch.tensor(self.lengths).to(weight.device, non_blocking=True)
        return layer_costs(
            ours,
            [rows.codes for rows in theirs],
            scales or None,
            weight=weight.repeat_interleave(tokens, output_size=len(ours[0])),
        )

    def scores(
        self, query: Sequence[Pair], key: Sequence[Pair], depths: tuple[int, int]
    ) -> Iterator[Chunk]:
        """Attention scores of some documents of one length, [documents, heads, n, n]."""
        heads = heads_of(self.step)
        blocks = list(zip(query, key, strict=True))
        student = [(exact(q.student), exact(k.student)) for q, k in blocks[: depths[0]]]
        teacher = [(q.teacher.dense(), k.teacher.dense()) for q, k in blocks[: depths[1]]]
        weight = self._even([length * length for length in self.lengths], heads)
        dtype = student[0][0].dtype
        room = CHUNK.get(weight.device.type, CHUNK_ELSEWHERE) // weight.itemsize
        for piece in pieces_of(self.lengths, heads, room // sum(depths)):
            ours, theirs = (
                [_scores(piece, heads, dtype, *block) for block in side]
                for side in (student, teacher)
            )
            yield ours, theirs, weight[piece.documents]


def _scores(
    piece: Piece, heads: int, dtype: torch.dtype, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor:
    """What a block takes the softmax of, of queries and keys of all tokens, [N, heads * D]."""
    queries, keys = (piece.read(rows, heads, dtype) for rows in (query, key))
    with torch.autocast(query.device.type, enabled=False):  # which would round the scores
        found: torch.Tensor = queries * queries.shape[-1] ** -0.5 @ keys.mT
    return found


def squared(ours: torch.Tensor, theirs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of squared differences of rows [rows, ...], each times its weight, [rows]."""
    return (weight * (ours - theirs).square().flatten(1).sum(1)).sum()


def _of_states(costs: torch.Tensor, state: State) -> Move:
    """The transport between blocks by costs that have a gradient."""
    flow = _planned(costs.detach(), state, "hidden")
    return Move((flow * costs).sum(), costs.detach(), flow)


def _planned(costs: torch.Tensor, state: State, kind: str) -> torch.Tensor:
    """What flows between blocks; puts their next weights into `state`."""
    sides = [state[f"{side}_{kind}"] for side in ("student", "teacher")]
    flow = transport.plan(costs, *sides)
    for axis, side in enumerate(("student", "teacher")):
        paid = (flow * costs).sum(1 - axis).to(torch.float64)
        state[f"{side}_{kind}"] = transport.next_weights(paid, sides[axis])
    return flow


def _of_scores(chunks: Callable[[], Iterator[Chunk]], state: State) -> Move:
    """The transport between blocks by the costs of scores, of which a chunk is there at a time.

    An error from several blocks of the teacher, each times what flows there, is one from their mean
    but for a constant: that one has the gradient, and is held for a block of the student alone.
    """
    with torch.no_grad():
        costs = sum(_costs(*chunk) for chunk in chunks())
        assert isinstance(costs, torch.Tensor)
        flow = _planned(costs, state, "attention")
        value = (flow * costs).sum()
    from_mean = torch.stack([_from_means(flow, *chunk) for chunk in chunks()]).sum()
    return Move(from_mean + (value - from_mean.detach()), costs, flow)


def _costs(
    ours: list[torch.Tensor], theirs: list[torch.Tensor], weight: torch.Tensor
) -> torch.Tensor:
    """Squared differences of every block of one side from every one of the other, [M, N]."""
    rows = [torch.stack([squared(one, other, weight) for other in theirs]) for one in ours]
    return torch.stack(rows)


def _from_means(
    flow: torch.Tensor, ours: list[torch.Tensor], theirs: list[torch.Tensor], weight: torch.Tensor
) -> torch.Tensor:
    """Squared differences of the student's blocks from the mean of what flows to each."""
    every = torch.stack(theirs)
    parts = []
    for one, flows in zip(ours, flow, strict=True):
        total = flows.sum()
        mean = torch.tensordot(flows / safe(total), every, 1)
        parts.append(total * squared(one, mean, weight))
    return torch.stack(parts).sum()


def _average(state: State) -> None:
    """Let blocks have one weight: the mean of what they have for scores and for hidden states."""
    for side in ("student", "teacher"):
        names = [f"{side}_{kind}" for kind in KINDS]
        both = torch.stack([state[name] for name in names]).mean(0)
        state |= dict.fromkeys(names, both)
