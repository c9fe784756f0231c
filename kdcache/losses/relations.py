"""Relations between the tokens of a document: between its queries, keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.attention import attention_matches, heads_told
from kdcache.losses.base import Match, Over, Pair, Step, check_number
from kdcache.losses.layer_maps import LayerMap
from kdcache.losses.layer_matches import pairs_or_last
from kdcache.signals import TAP_KINDS, ModelSizes
from kdcache_kernels import relation_kl

KINDS = ("query", "key", "value")
SELF_RELATIONS = ("query-query", "key-key", "value-value")
COMBINE = ("mean", "sum")


@dataclass(frozen=True, kw_only=True)
class Relations:
    """KL from the teacher's relations between tokens to the student's, as in MiniLM.

    A relation is, for each of `heads` equal parts of the width, softmax(X Y^T / sqrt(d)) over the
    tokens of one document, X and Y its queries, keys or values, d the columns of a part. KL is the
    mean over rows and parts of a document, then over documents: a long one counts like a short one.
    Only distributions are compared, so widths may differ. Pads take no part, and neither does a
    causal mask.

    | paper                              | relations                      | combine | heads |
    |------------------------------------|--------------------------------|---------|-------|
    | MiniLM, Wang et al. 2020,          | query-key, value-value         | sum     | 0     |
    | arXiv:2002.10957                   |                                |         |       |
    | MiniLMv2, Wang et al. 2021,        | query-query, key-key,          | mean    | 48,   |
    | arXiv:2012.15828                   | value-value                    |         | or 64 |

    Both take the last layer; of a large teacher the second takes the 21st of 24, and 64 heads.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        relations: of what: two of query, key and value with a - between them. Those that are to
            count otherwise than the others go into a loss of their own.
        combine: "mean" or "sum" over the relations of a layer.
        heads: parts that the width of both models is cut into; 0: heads of the attention, of
            which both need as many.
        layer_map: which layers; "": the last of both. Of several the mean.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "relations"
    over: ClassVar[Over] = "documents"
    weight: float = 1.0
    relations: tuple[str, ...] = SELF_RELATIONS
    combine: str = "mean"
    heads: int = 0
    layer_map: LayerMap = ""
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a relations loss", self.weight)
        one_of("combine of relations", self.combine, COMBINE)
        wrong = [r for r in self.relations if not set(_sides(r)) <= set(KINDS)]
        if wrong or not self.relations:
            raise ConfigError(
                "relations are two of query, key and value with a - between them, such as "
                f"query-key; got {wrong[0] if wrong else 'none'!r}"
            )
        if self.heads < 0:
            raise ConfigError(
                "heads of relations is 1 or more, or 0 for those of the attention; got "
                f"{self.heads}"
            )

    @property
    def kinds(self) -> list[str]:
        """What has to be known of both sides, of each layer."""
        return [kind for kind in KINDS if any(kind in _sides(r) for r in self.relations)]

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Queries, keys or values of every token, of any widths that the heads divide."""
        pairs = pairs_or_last(self.layer_map, student, teacher)
        lowest = [pair for pair in pairs if 0 in pair]
        if lowest:
            raise ConfigError(
                f"layer_map of relations pairs layers that attend, from 1; got {lowest[0][0]}:"
                f"{lowest[0][1]}: 0 is the embedding output; give pairs such as "
                f"'{student.layers}:{teacher.layers}'"
            )
        self._check_widths(student, teacher, max(ours for ours, _ in pairs))
        return attention_matches(pairs, self.kinds, self.signal)

    def _check_widths(self, student: ModelSizes, teacher: ModelSizes, layer: int) -> None:
        """See to it that both sides can be cut into the heads, and that two kinds are as wide.

        Of a cache that holds none of them, which is refused as such, sizes are not known.
        """
        sizes = {size for kind in self.kinds for size in TAP_KINDS[kind].width}
        if any(getattr(teacher, size) is None for size in sizes):
            return
        widths = {
            "student": {kind: student.width(kind, layer) for kind in self.kinds},
            "teacher": {kind: teacher.width(kind) for kind in self.kinds},
        }
        for name, own in widths.items():
            for relation in self.relations:
                first, other = _sides(relation)
                if own[first] != own[other]:
                    raise ConfigError(
                        f"relations: {relation} takes both of one width, and a {first} of the "
                        f"{name} is {own[first]} wide, a {other} {own[other]}: leave it out"
                    )
        every = math.gcd(*(width for own in widths.values() for width in own.values()))
        heads = self.heads or _attention_heads(student, teacher)
        for name, own in widths.items():
            for kind, width in own.items():
                if width % heads:
                    raise ConfigError(
                        f"heads of relations: {heads} does not divide {width}, the width of the "
                        f"{name}'s {kind}: set it to a number that divides the widths of both "
                        f"models, such as {_nearest(heads, every)}"
                    )

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Mean over the mapped layers of each layer's sum over documents."""
        lengths = step.batch.known_lengths()
        size = len(self.kinds)
        layers = [
            dict(zip(self.kinds, pairs[start : start + size], strict=True))
            for start in range(0, len(pairs), size)
        ]
        heads = self.heads or _heads_of(step)
        found = [
            relation_loss(layer[x], layer[y], lengths, heads=heads, weight=step.weight)
            for layer in layers
            for x, y in map(_sides, self.relations)
        ]
        total = torch.stack(found).sum() / len(layers)
        return total / len(self.relations) if self.combine == "mean" else total


def relation_loss(
    queries: Pair,
    keys: Pair,
    lengths: torch.Tensor,
    *,
    heads: int,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over documents of weight times the mean over heads and tokens of KL, in nats.

    Of relations softmax(X Y^T / sqrt(d)), X from `queries` and Y from `keys`, which may be the
    same. Each pair has the tokens of all documents, [N, width]; `lengths` [B] int64 says how many
    each has; `weight` is [B], None: 1 / B.

    Source: Wang et al. 2020, arXiv:2002.10957, and 2021, arXiv:2012.15828.
    """
    own = keys is queries
    return relation_kl(
        queries.student,
        queries.teacher.dense(),
        lengths,
        heads=heads,
        student_keys=None if own else keys.student,
        teacher_keys=None if own else keys.teacher.dense(),
        weight=weight,
    )


def _sides(relation: str) -> tuple[str, str]:
    first, _, other = relation.partition("-")
    return first, other


def _attention_heads(student: ModelSizes, teacher: ModelSizes) -> int:
    """The heads of both models, if they have as many; ConfigError if not."""
    counts = {student.heads, student.key_heads, teacher.heads, teacher.key_heads}
    (heads, *others) = counts
    if others or heads is None:
        raise ConfigError(
            "heads=0 of relations takes those of the attention, which have to be as many on both "
            f"sides; the student has {heads_told(student)} and the teacher {heads_told(teacher)}: "
            "set it to a number that divides both widths"
        )
    return heads


def _heads_of(step: Step) -> int:
    """Heads of the student's attention, as many as the teacher's."""
    values = step.activations.values
    return next(values[tap].shape[1] for tap in values if tap.name in KINDS)


def _nearest(heads: int, width: int) -> int:
    """The divisor of a width that is nearest to a number of heads."""
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: abs(n - heads))
