"""Soft labels: Kullback-Leibler divergence of the student from the cached teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from kdcache.errors import ConfigError, one_of
from kdcache.losses.base import CacheFacts, Needs, Over, Step, check_number, require_outputs
from kdcache.losses.shared import within
from kdcache.plans.batch import Batch
from kdcache.signals import (
    Head,
    HeadLabels,
    SampledLogits,
    SmallTopK,
    SoftLabels,
    TeacherShape,
    TopKLogits,
)
from kdcache.tasks import IGNORE_INDEX
from kdcache_kernels import linear_kl_rows, linear_topk_kl_rows, topk_kl_rows

TAILS = ("bucket", "renormalize", "truncate", "drawn")
REDUCTIONS = ("row", "element")
STORED_TEMPERATURES = (1.0, 2.0)  # a topk cache keeps the tail's statistics at these


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
    """

    kind: ClassVar[str] = "kl"
    over: ClassVar[Over] = "rows"
    weight: float = 1.0
    temperature: float = 1.0
    tail: str = "bucket"
    reduction: str = "row"
    t_squared: bool = True

    def __post_init__(self) -> None:
        check_number("weight of a kl loss", self.weight)
        check_number("temperature", self.temperature, positive=True)
        one_of("tail of kl", self.tail, TAILS)
        one_of("reduction of kl", self.reduction, REDUCTIONS)

    def needs(self, name: str, facts: CacheFacts, student: TeacherShape) -> Needs:
        """Soft labels, and tail statistics that serve the temperature."""
        if facts.problem == "regression":
            raise ConfigError(
                f"losses.{name}: the teacher gives values, not probabilities; use the loss "
                "logit_mse (recipe kd-mse)"
            )
        if "logits" not in facts.signals:
            raise ConfigError(
                f"losses.{name} needs soft labels; the cache holds {facts.held()}: build one with "
                "--signal logits:dense or logits:topk"
            )
        require_outputs(name, facts, student)
        self._check_tail(name, facts)
        return Needs(logits=True)

    def _check_tail(self, name: str, facts: CacheFacts) -> None:
        signal = facts.signals["logits"]
        if isinstance(signal, SampledLogits) and self.temperature != 1:
            raise ConfigError(
                f"losses.{name}: temperature {self.temperature:g} needs what the cache does not "
                f"hold: logits:sampled tells the teacher at temperature 1. Set "
                f"losses.{name}.temperature=1, or build a cache with logits:topk"
            )
        if not isinstance(signal, (TopKLogits, SmallTopK)):
            return
        if self.tail == "drawn":
            self._check_draws(name, signal)
            return
        whole = signal.k == facts.shape.outputs
        if whole or self.tail == "renormalize" or self.temperature in STORED_TEMPERATURES:
            return
        raise ConfigError(
            f"losses.{name}: temperature {self.temperature:g} with tail={self.tail} needs what the "
            f"cache does not hold: logits:{signal.codec} keeps the tail at temperatures 1 and 2. "
            f"Set losses.{name}.temperature to 1 or 2, or losses.{name}.tail=renormalize, or build "
            "a cache with logits:dense"
        )

    def _check_draws(self, name: str, signal: TopKLogits | SmallTopK) -> None:
        if not signal.draws:
            raise ConfigError(
                f"losses.{name}: tail=drawn needs ids drawn from the tail, which the cache does "
                f"not hold: build one with --signal logits:{signal.codec},k={signal.k},draws=16, "
                f"or set losses.{name}.tail=bucket"
            )
        if self.temperature != 1:
            raise ConfigError(
                f"losses.{name}: tail=drawn tells the teacher at temperature 1; got "
                f"{self.temperature:g}. Set losses.{name}.temperature=1, or "
                f"losses.{name}.tail=bucket"
            )

    def rows(self, batch: Batch, needs: Needs) -> float:
        """Rows of the soft labels, which a fraction makes fewer than those of the task."""
        return batch.rows("logits")

    def value(self, step: Step, needs: Needs) -> torch.Tensor:
        """The divergence alone; `soft_and_hard` fuses it with hard labels."""
        return self._fused(step, step.beside["logits"].said, None, 1.0, 0.0).total

    def with_hard(self, step: Step, weight: float, hard_weight: float) -> SoftAndHard:
        """This loss and cross-entropy in one pass, weighted by what is given."""
        return self._fused(step, step.student.said, step.labels, weight, hard_weight)

    def _fused(
        self,
        step: Step,
        said: torch.Tensor | Head,
        labels: torch.Tensor | None,
        weight: float,
        hard_weight: float,
    ) -> SoftAndHard:
        assert step.soft is not None
        return soft_and_hard(
            said,
            step.soft,
            wider=step.wider,
            temperature=self.temperature,
            tail=self.tail,
            reduction=self.reduction,
            t_squared=self.t_squared,
            weight=weight,
            labels=labels,
            hard_weight=hard_weight,
        )


class SoftAndHard(NamedTuple):
    """`total` carries the gradient; `soft` and `hard` are its parts before their weights."""

    total: torch.Tensor
    soft: torch.Tensor
    hard: torch.Tensor


def soft_and_hard(
    said: torch.Tensor | Head,
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
) -> SoftAndHard:
    """`weight` KL(teacher || student) + `hard_weight` cross-entropy, from one pass over logits.

    Args:
        said: the student's logits, [N, V], or its head, whose logits are then never made whole.
        soft: teacher, N rows of true log-probabilities at T = 1, or what they come from.
        wider: whether `soft` may have ids beyond V, whose mass is then part of the tail.
        labels: [N] int64, IGNORE_INDEX where there is none; the hard loss is the mean over the
            labelled rows, the soft loss over all.

    Both parts are in nats. Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    rows, classes = said.shape
    scale = 1.0 if t_squared else temperature**-2  # the op's divergence has T^2 in it
    if reduction == "element":
        scale /= classes
    labelled = 1 if labels is None else max(1, int((labels != IGNORE_INDEX).sum()))
    options: dict[str, Any] = {
        "temperature": temperature,
        "soft_weight": weight * scale,
        "labels": labels,
        "hard_weight": hard_weight * rows / labelled,
        "ignore_index": IGNORE_INDEX,
    }
    total, soft_rows, hard_rows = _rows(said, soft, tail, options, wider=wider)
    return SoftAndHard(total, soft_rows.sum() * (scale / max(rows, 1)), hard_rows.sum() / labelled)


Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _rows(
    said: torch.Tensor | Head,
    soft: SoftLabels | HeadLabels,
    tail: str,
    options: dict[str, Any],
    *,
    wider: bool,
) -> Rows:
    """Loss, and rows of both its parts; `tail` says nothing where no class is left out."""
    if isinstance(said, Head) and isinstance(soft, HeadLabels):
        return _both_heads(said, soft, options)
    if isinstance(soft, HeadLabels):
        labels, wider = soft.dense(), False
    else:
        labels = soft
    if tail == "drawn":
        labels, tail = labels.with_drawn(), "bucket"
    temperature = options["temperature"]
    stat = labels.tail_stat if temperature == STORED_TEMPERATURES[1] else None
    if wider:
        labels = within(labels, said.shape[1], temperature, tail)
        stat = labels.tail_stat
    options |= {"tail_logmass": labels.tail_logmass, "tail_stat": stat, "tail": tail}
    if isinstance(said, Head):
        kept = (said.hidden, said.weight, said.bias, labels.ids, labels.logprobs)
        with said.as_in_model():
            return linear_topk_kl_rows(*kept, **options)
    return topk_kl_rows(said, labels.ids, labels.logprobs, **options)


def _both_heads(said: Head, soft: HeadLabels, options: dict[str, Any]) -> Rows:
    with said.as_in_model():
        return linear_kl_rows(
            said.hidden,
            said.weight,
            soft.rows.codes,
            soft.weight,
            bias=said.bias,
            teacher_bias=soft.bias,
            teacher_scale=soft.rows.scale,
            **options,
        )
