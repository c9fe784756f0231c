"""What a loss is: a frozen configuration that says what it matches and computes one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import nn

from kdcache.errors import ConfigError
from kdcache.labels import LabelKind
from kdcache.plans.batch import Batch, Rows
from kdcache.signals import Activations, ModelSizes, SoftUse, Tap

Over = Literal["rows", "padded", "pairs", "documents", "labelled", "batch"]
"""What a loss is a mean over: the rows of its matches; padded positions, of which those rows are
the ones that are no pads; pairs of two tokens of a document; documents, or those with a label; or,
in a loss that compares the documents of a batch with each other, the documents of a batch that
nobody may cut."""

LABELS = Tap("labels")
"""The corpus's own labels, in the place of what a teacher computed."""


PEERS = Tap("peers")
"""The logits of students that are trained together with this one, in their place."""


class Match(NamedTuple):
    """A value of the student, and the cached one it is held against.

    Attributes:
        student: what is read out of the student: `logits` may come as the head that makes them,
            see `losses.passes`.
        teacher: what the teacher computed, or LABELS, or PEERS.
        positions: of the rows of tokens: "cls", "mean", "all", "selected"; "": what the cache
            holds.
        project: name of a learned linear map from the student's width to the teacher's. Matches of
            one name share it, "" is a name, and None is no map: both widths have to be one.
        signal: name of the signal; "": the first that holds the teacher's value.
        use: what is asked of soft labels; None of others.
        any_width: whether the two may be of unequal width without a map.
        whole: whether it takes all rows of a document: a cache may hold a fraction of them.
    """

    student: Tap
    teacher: Tap
    positions: str = ""
    project: str | None = None
    signal: str = ""
    use: SoftUse | None = None
    any_width: bool = False
    whole: bool = False


class Pair(NamedTuple):
    """Both sides of a match, of one batch, N rows each; a side of several matches is one object.

    Attributes:
        student: [N, width], with its map applied; of logits perhaps the `Head` that makes them.
        teacher: decoded: `LayerRows`, `SoftLabels`, `HeadLabels`, or labels [N]; of PEERS a list
            of their logits.
        wider: whether soft labels may have ids beyond the student's outputs.
    """

    student: Any
    teacher: Any
    wider: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a loss knows of one batch besides its pairs.

    Attributes:
        batch: inputs and labels.
        labels: what the labels are.
        activations: all that was read out of the student.
        rows: the rows, or documents, that the loss is a mean over.
        total: what they count for in all batches of the step, on every rank; known to the host.
        teacher: sizes of the teacher that the pairs are of; None: nothing is known of it.
        share: what the teacher counts for of each document, [B]; None: 1, as if it were alone.
        state: what the loss keeps between steps, if it declares any (`Loss`): a tensor that is put
            in the place of another, of its shape, is there in the next step.
        learned: what the loss learns beside the student, if it declares any (`Loss`).
        seed: of the run, for what a loss draws.
        number: steps of the run before this one.
        placing: places of documents among all of the cache by their numbers, which have gaps; None:
            they have none.
    """

    batch: Batch
    labels: LabelKind
    activations: Activations
    rows: Rows
    total: float
    teacher: ModelSizes | None = None
    share: torch.Tensor | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    learned: nn.Module | None = None
    seed: int = 0
    number: int = 0
    placing: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def places(self) -> torch.Tensor:
        """Places of the batch's documents among all of the cache, [B] int64: 0 and on."""
        docs = self.batch["docs"]
        return docs if self.placing is None else self.placing(docs)

    @cached_property
    def weight(self) -> torch.Tensor:
        """What each row, or document, counts for, [N] floating: 0 where it is masked, else what its
        document weighs (`example_weight`), over `total`, and times its teacher's share. The sum of
        the rows' values times these is the batch's part of the mean over the step. In a mean over
        pairs it is what each pair of a document counts for, [B].
        """
        dtype = exact(next(iter(self.activations.values.values()))[:0]).dtype
        weights = self.batch.row_weights(self.rows, self.total, dtype)
        if self.share is None:
            return weights
        return weights * self.batch.of_rows(self.share.to(dtype), self.rows)


class Loss(Protocol):
    """A frozen dataclass with a `weight`; the objective is the weighted sum of all losses.

    One that keeps something between steps has a method `state(student, teacher)` of the two
    ModelSizes, too: tensors by name, as they are before the first step. They lie in checkpoints.
    One that remembers documents has `remembered(documents)` of their number in its place.
    One that learns more than linear maps between widths has a method `learned` of the same two: the
    module, which is trained with the student and thrown away, at the learning rate times a field
    `rate` where it has one.
    One with a true `by_words` compares words of tokens that are not the same on both sides.
    One with a method `together` takes several teachers at once, the pairs of each by its name, in
    the place of `value`; `state` and `learned` then get the sizes of each, and a method `beside`
    names what it reads of the first besides.
    """

    kind: ClassVar[str]

    @property
    def over(self) -> Over: ...

    @property
    def weight(self) -> float: ...

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> Sequence[Match]:
        """What it holds against what, all at the same rows; ConfigError for sizes it cannot."""
        ...

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """The sum of the rows' values, each times `step.weight`: a scalar, before its weight.

        `pairs` are those of `matches`, in their order.
        """
        ...


def check_number(what: str, value: float, *, positive: bool = False) -> None:
    """Raise ConfigError unless `value` is finite and 0 or more (more than 0 if `positive`)."""
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        least = "more than 0" if positive else "0 or more"
        raise ConfigError(f"{what} must be {least} and finite; got {value}")


def exact(x: torch.Tensor) -> torch.Tensor:
    """`x` as losses add it up: in float64 if it is, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def sides(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sides in the precision that losses are worked out in."""
    ours = exact(student)
    return ours, teacher.to(ours.dtype)


def safe(length: torch.Tensor) -> torch.Tensor:
    """What to divide by: lengths, and 1 where there is none."""
    return torch.where(length > 0, length, 1.0)


def weighted(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The sum of the rows' values, each times its weight; autocast would round a product `@`."""
    return (rows * weight.to(rows.dtype)).sum()


def means_of(rows: torch.Tensor, owner: torch.Tensor, number: int) -> torch.Tensor:
    """The mean of the rows of each of `number` owners, [N, H] to [number, H].

    `owner` is that of each row, [N] int64, -1 of one that has none. Zeros for one without a row.
    """
    there = owner.where(owner >= 0, number)  # the last one is thrown away
    sums = rows.new_zeros(number + 1, rows.shape[1]).index_add(0, there, rows)
    counts = rows.new_zeros(number + 1).index_add(0, there, torch.ones_like(rows[:, 0]))
    return (sums / safe(counts).unsqueeze(1))[:number]


def even(rows: torch.Tensor) -> torch.Tensor:
    """The weights of a mean over N rows, [N], of the dtype of what is in `rows`, [N, ...]."""
    return rows.new_full((len(rows),), 1 / max(len(rows), 1))


def layers_text(layers: Sequence[int]) -> str:
    """Layer numbers as signals take them: 2-4-6."""
    return "-".join(map(str, layers))
