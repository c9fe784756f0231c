"""Soft labels: Kullback-Leibler divergence of the student from the cached teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kdcache.errors import one_of
from kdcache.losses.base import Match, Over, Pair, Step, check_number, even, exact, weighted
from kdcache.losses.shared import within
from kdcache.signals import (
    LOGITS,
    Head,
    HeadLabels,
    ModelSizes,
    SoftLabels,
    SoftUse,
    TeacherOutputs,
)
from kdcache.signals.soft_labels import STAT_TEMPERATURE
from kdcache.tasks import IGNORE_INDEX
from kdcache_kernels import linear_kl_rows, linear_topk_kl_rows, topk_kl_rows

TAILS = ("bucket", "renormalize", "truncate", "drawn")
REDUCTIONS = ("row", "element")


@dataclass(frozen=True, kw_only=True)
class SoftKL:
    """KL(teacher || student) at a temperature.

    Papers disagree about its scale, so the scale is spelled out:

    | paper                              | reduction | t_squared | temperature |
    |------------------------------------|-----------|-----------|-------------|
    | Hinton et al. 2015, 1503.02531     | row       | true      | 1 to 20     |
    | DistilBERT, 1910.01108             | row       | true      | 2           |
    | PKD, 1908.09355 (its code)         | element   | true      | 5, 10, 20   |
    | TinyBERT, 1909.10351 (its code)    | element   | false     | 1           |
    | AD-KD, 2305.10010                  | row       | false     | 1 to 4      |

    Attributes:
        weight: factor in the objective; 0 leaves the loss out.
        temperature: divides the logits of both sides.
        tail: classes outside a top-k cache: "bucket" makes them one class on both sides,
            "renormalize" spreads their mass over the k, "truncate" drops them, "drawn" gives it to
            ids that the cache drew from among them (`draws=16`), at temperature 1.
        reduction: "row" is the mean over rows (torch's batchmean), "element" divides by the
            number of classes too (torch's mean).
        t_squared: multiply by T^2, so that the gradient's size does not depend on T.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "kl"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    temperature: float = 1.0
    tail: str = "bucket"
    reduction: str = "row"
    t_squared: bool = True
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of a kl loss", self.weight)
        check_number("temperature", self.temperature, positive=True)
        one_of("tail of kl", self.tail, TAILS)
        one_of("reduction of kl", self.reduction, REDUCTIONS)

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Logits against soft labels, whose tail serves the temperature."""
        use = SoftUse(temperature=self.temperature, tail=self.tail)
        return (Match(LOGITS, LOGITS, signal=self.signal, use=use),)

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """The divergence alone; `losses.passes` has it together with hard labels.

        Of several classes a document it is that of the sigmoid of each class, added up.
        """
        ((student, soft, wider),) = pairs
        if isinstance(soft, TeacherOutputs):
            assert step.labels.divergence is not None, "binding has refused it"
            rows = step.labels.divergence(exact(student), soft.values, self.temperature)
            return weighted(rows, step.weight) * self._scale(student.shape[1])
        return soft_and_hard(
            student,
            soft,
            wider=wider,
            temperature=self.temperature,
            tail=self.tail,
            reduction=self.reduction,
            t_squared=self.t_squared,
            row_weight=step.weight,
        )[0]

    def _scale(self, outputs: int) -> float:
        """What a divergence without T^2 is multiplied by."""
        scale = self.temperature**2 if self.t_squared else 1.0
        return scale / outputs if self.reduction == "element" else scale


def soft_and_hard(
    logits_or_head: torch.Tensor | Head,
    soft: SoftLabels | HeadLabels,
    *,
    temperature: float,
    wider: bool = False,
    tail: str = "bucket",
    reduction: str = "row",
    t_squared: bool = True,
    weight: float = 1.0,
    labels: torch.Tensor | None = None,
    hard_weight: float = 0.0,
    row_weight: torch.Tensor | None = None,
    hard_factor: float | None = None,
) -> Rows:
    """`weight` KL(teacher || student) + `hard_weight` cross-entropy, from one pass over logits.

    Args:
        logits_or_head: the student's logits [N, V], or its head, whose logits are then never made
            whole.
        soft: teacher, N rows of true log-probabilities at T = 1, or what they come from.
        wider: whether `soft` may have ids beyond V, whose mass is then part of the tail.
        labels: [N] int64, IGNORE_INDEX where there is none, which costs nothing.
        row_weight: [N] floating, what each row counts for; None: 1 / N, the mean over rows.
        hard_factor: how many times that a row counts for in the hard loss; None: so that it is the
            mean over the labelled rows, which the host then counts.

    Returns:
        The sum over rows, which carries the gradient, and both parts of it before `weight` and
        `hard_weight`, in nats.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    rows, classes = logits_or_head.shape
    if hard_factor is None:
        known = 0 if labels is None else int((labels != IGNORE_INDEX).sum())
        hard_factor = rows / max(known, 1)
    scale = 1.0 if t_squared else temperature**-2  # the op's divergence has T^2 in it
    if reduction == "element":
        scale /= classes
    options: dict[str, Any] = {
        "temperature": temperature,
        "soft_weight": weight * scale,
        "labels": labels,
        "hard_weight": hard_weight * hard_factor,
        "ignore_index": IGNORE_INDEX,
    }
    total, divergence, entropy = _rows(logits_or_head, soft, tail, options, row_weight, wider=wider)
    if row_weight is None:
        row_weight = even(divergence)
    soft_part, hard_part = (weighted(part, row_weight) for part in (divergence, entropy))
    return total, soft_part * scale, hard_part * hard_factor


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _rows(
    logits_or_head: torch.Tensor | Head,
    soft: SoftLabels | HeadLabels,
    tail: str,
    options: dict[str, Any],
    weight: torch.Tensor | None,
    *,
    wider: bool,
) -> Rows:
    """Loss, and rows of both its parts; `tail` says nothing where no class is left out."""
    student = Head if isinstance(logits_or_head, Head) else torch.Tensor
    if isinstance(soft, HeadLabels) and student is not Head:  # which no op serves
        soft, wider = soft.dense(), False
    if isinstance(soft, SoftLabels):
        soft, tail_options = _with_tail(
            soft, logits_or_head.shape[1], tail, options["temperature"], wider
        )
        options |= tail_options
    return OPS[student, type(soft)](logits_or_head, soft, weight, options)


def _with_tail(
    soft: SoftLabels, outputs: int, tail: str, temperature: float, wider: bool
) -> tuple[SoftLabels, dict[str, Any]]:
    """Labels of the student's outputs, and the options of an op that describe their tail."""
    if tail == "drawn":
        soft, tail = soft.with_drawn(), "bucket"
    stat = soft.tail_stat if temperature == STAT_TEMPERATURE else None
    if wider:
        soft = within(soft, outputs, temperature, tail)
        stat = soft.tail_stat
    return soft, {"tail_logmass": soft.tail_logmass, "tail_stat": stat, "tail": tail}


def _of_logits(logits: Any, soft: Any, weight: torch.Tensor | None, options: Any) -> Rows:
    return topk_kl_rows(logits, soft.ids, soft.logprobs, weight=weight, **options)


def _through_head(head: Any, soft: Any, weight: torch.Tensor | None, options: Any) -> Rows:
    operands = (head.hidden, head.weight, head.bias, soft.ids, soft.logprobs)
    with head.as_in_model():
        return linear_topk_kl_rows(*operands, row_weight=weight, **options)


def _through_both(head: Any, soft: Any, weight: torch.Tensor | None, options: Any) -> Rows:
    with head.as_in_model():
        return linear_kl_rows(
            head.hidden,
            head.weight,
            soft.rows.codes,
            soft.weight,
            bias=head.bias,
            teacher_bias=soft.bias,
            teacher_scale=soft.rows.scale,
            row_weight=weight,
            **options,
        )


OPS: dict[tuple[type, type], Callable[[Any, Any, torch.Tensor | None, Any], Rows]] = {
    (torch.Tensor, SoftLabels): _of_logits,
    (Head, SoftLabels): _through_head,
    (Head, HeadLabels): _through_both,
}
"""What serves a student's logits, or its head, with a teacher's soft labels, or its head."""
