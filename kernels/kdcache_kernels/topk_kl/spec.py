"""What a backend of topk_kl is told besides the student's logits."""

from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

Tail: TypeAlias = Literal["bucket", "renormalize", "truncate"]
Divergence: TypeAlias = Literal["forward", "reverse", "js"]
TAILS = ("bucket", "renormalize", "truncate")
DIVERGENCES = ("forward", "reverse", "js")


class Teacher(NamedTuple):
    """The teacher's support: ids [N, K], true log-probabilities [N, K], and what the rest weighs.

    `rest` [N] is the tail's statistic at the temperature of the loss, None where there is no tail.
    """

    ids: Tensor
    logprobs: Tensor
    rest: Tensor | None


class Spec(NamedTuple):
    """The numbers of the loss; see `kdcache_kernels.topk_kl`."""

    temperature: float
    tail: str
    divergence: str
    soft_weight: float
    hard_weight: float
    ignore_index: int
