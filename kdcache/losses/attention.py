"""Attention scores of the student's layers against the teacher's, which no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.attention_error import probability_error, score_loss
from kdcache.losses.base import Match, Over, Pair, Step, check_number
from kdcache.losses.combine import COMBINE
from kdcache.losses.layer_maps import LayerMap, layer_pairs
from kdcache.signals import ModelSizes, Tap
from kdcache_kernels import relation_kl

HEADS = ("each", "sum")


@dataclass(frozen=True, kw_only=True)
class AttentionScores:
    """Attention of every mapped layer: scores, or the probabilities that softmax makes of them.

    Scores are made of queries and keys while a student trains, a few documents at a time: q k^T
    over the square root of the width of a head, between all tokens of a document. Pads take no
    part. Neither does a causal mask: what a token may not attend to is compared all the same.

    | paper                        | compare       | a mean over     | layers |
    |------------------------------|---------------|-----------------|--------|
    | TinyBERT, Jiao et al. 2020,  | scores        | heads, pairs of | sum    |
    | arXiv:1909.10351             |               | tokens          |        |
    | MobileBERT, Sun et al. 2020, | probabilities | heads, tokens   | mean   |
    | arXiv:2004.02984             |               |                 |        |
    | Meta-KD, Pan et al. 2021,    | probability-  | heads, pairs of | sum    |
    | arXiv:2012.01266             | mse           | tokens          |        |

    The codes of these papers count pads, so their values depend on how far documents are padded.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        compare: "scores", their squared error; "probabilities", the divergence of the student's
            from the teacher's, which has the gradient of their cross-entropy; or "probability-mse",
            the squared error of probabilities.
        heads: "each" compares head by head, "sum" the scores of all heads added up, of models that
            may have any numbers of heads.
        layer_map: which layers: "uniform", "skip", "last", "first", or pairs of a student and a
            teacher layer such as "1:3,2:6". Of a named map the embedding outputs, which do not
            attend, are left out.
        layers: how the mapped layers become one number: "sum", "mean", or another of COMBINE.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "attention"
    weight: float = 1.0
    compare: str = "scores"
    heads: str = "each"
    layer_map: LayerMap = "uniform"
    layers: str = "sum"
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of an attention loss", self.weight)
        one_of("compare of attention", self.compare, COMPARE)
        one_of("heads of attention", self.heads, HEADS)
        one_of("layers of attention", self.layers, COMBINE)
        if self.heads == "sum" and self.compare != "scores":
            raise ConfigError(
                f"heads=sum of attention adds scores up; got compare={self.compare}: set it to "
                "scores, or heads to each"
            )

    @property
    def over(self) -> Over:
        """Pairs of two tokens of a document, or tokens."""
        return COMPARE[self.compare].over

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Queries and keys of every token at each of the mapped layers."""
        if self.heads == "each":
            check_heads(self.kind, student, teacher)
        else:
            _check_keys(self.kind, student, teacher)
        pairs = attending(self.kind, self.layer_map, student, teacher)
        return attention_matches(pairs, ("query", "key"), self.signal)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum or mean over the mapped layers of each layer's sum over documents."""
        lengths = step.batch.known_lengths()
        heads = heads_of(step)
        weight = step.weight
        if self.over == "rows":  # all rows of a document count for as much
            first = lengths.cumsum(0) - lengths
            weight = weight[first.to(weight.device, non_blocking=True)]
        theirs = None if step.teacher is None else step.teacher.heads
        added: Any = {"together": True, "their_heads": theirs} if self.heads == "sum" else {}
        found = [
            COMPARE[self.compare].value(queries, keys, lengths, heads, weight, **added)
            for queries, keys in zip(pairs[::2], pairs[1::2], strict=True)
        ]
        return COMBINE[self.layers](torch.stack(found), step.state)


def probability_loss(
    queries: Pair,
    keys: Pair,
    lengths: torch.Tensor,
    heads: int,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Sum over tokens of weight times the mean over heads of KL(teacher || student), in nats, of
    what a token attends to.

    Arguments are those of `score_loss`; `weight` [B] is what a token of each document counts for.

    Source: Sun et al. 2020 (MobileBERT), arXiv:2004.02984, whose cross-entropy has this gradient.
    """
    return relation_kl(
        queries.student,
        queries.teacher.dense(),
        lengths,
        heads=heads,
        student_keys=keys.student,
        teacher_keys=keys.teacher.dense(),
        weight=weight * lengths.to(weight, non_blocking=True),
    )


class Compared(NamedTuple):
    """What is compared: the sum over documents, and what it is a mean over."""

    value: Callable[..., torch.Tensor]
    over: Over


COMPARE = {
    "scores": Compared(score_loss, "pairs"),
    "probabilities": Compared(probability_loss, "rows"),
    "probability-mse": Compared(probability_error, "pairs"),
}
"""Every way to compare."""


def attending(
    loss: str, layer_map: LayerMap, student: ModelSizes, teacher: ModelSizes
) -> list[tuple[int, int]]:
    """The pairs of a layer map that attend; of a named one without the embedding outputs.

    Raises ConfigError, naming a kind of loss, for others, or if none is left.
    """
    pairs = layer_pairs(layer_map, student.layers, teacher.layers)
    found = [pair for pair in pairs if pair != (0, 0)]
    named = isinstance(layer_map, str) and ":" not in layer_map
    lowest = [pair for pair in (found if named else pairs) if 0 in pair]
    if lowest or not found:
        ours, theirs = (lowest or list(pairs))[0]
        raise ConfigError(
            f"layer_map of {loss} pairs layers that attend, from 1; got {ours}:{theirs}: 0 is the "
            f"embedding output; give pairs such as '{student.layers}:{teacher.layers}'"
        )
    return found


def attention_matches(
    pairs: Iterable[tuple[int, int]], names: Sequence[str], signal: str
) -> tuple[Match, ...]:
    """What is named of the attention of pairs of layers, of every token, pair by pair."""
    return tuple(
        Match(
            Tap(name, ours),
            Tap(name, theirs),
            positions="all",
            signal=signal,
            any_width=True,
            whole=True,
        )
        for ours, theirs in pairs
        for name in names
    )


def check_heads(loss: str, student: ModelSizes, teacher: ModelSizes) -> None:
    """Raise ConfigError, naming a kind of loss, unless all queries and keys have as many heads, as
    far as it is known.
    """
    sides = {"student": student, "teacher": teacher}
    heads = {
        f"{who}'s {name}": count
        for who, sizes in sides.items()
        for name, count in (("queries", sizes.heads), ("keys", sizes.key_heads))
        if count is not None
    }
    if len(set(heads.values())) > 1:
        told = ", ".join(f"the {what} {count}" for what, count in heads.items())
        raise ConfigError(
            f"{loss} compares heads one by one, and they are not as many: {told}; choose a "
            "student with as many heads as the teacher, the loss attention with heads=sum, which "
            "adds their scores up, or the loss relations, which cuts widths into heads of its own"
        )


def _check_keys(loss: str, student: ModelSizes, teacher: ModelSizes) -> None:
    """Raise ConfigError, naming a kind of loss, for a model whose queries share keys, as far as it
    is known: the sum of all its heads' scores is no product of what it gives.
    """
    for who, sizes in (("student", student), ("teacher", teacher)):
        heads = {sizes.heads, sizes.key_heads} - {None}
        if len(heads) > 1:
            raise ConfigError(
                f"{loss} adds the scores of all heads up, each of a query and a key of its own; "
                f"the {who} has {sizes.heads} heads of queries and {sizes.key_heads} of keys: take "
                "the loss relations, which cuts widths into heads of its own"
            )


def heads_told(sizes: ModelSizes) -> str:
    """How many heads of attention a model has, in words."""
    if sizes.heads is None:
        return "no attention"
    of_keys = "" if sizes.key_heads in (sizes.heads, None) else f" (of keys {sizes.key_heads})"
    return f"{sizes.heads}{of_keys}"


def heads_of(step: Step) -> int:
    """Heads of the student's attention, as many as the teacher's."""
    values = step.activations.values
    return next(values[tap].shape[1] for tap in values if tap.name == "query")
