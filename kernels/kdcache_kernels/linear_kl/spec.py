"""What a backend of linear_kl is told besides the logits of both sides, and what makes those."""

from typing import NamedTuple

from torch import Tensor


class Spec(NamedTuple):
    """The numbers of the loss; see `kdcache_kernels.linear_kl`."""

    temperature: float
    divergence: str
    soft_weight: float
    hard_weight: float
    ignore_index: int


class TeacherHead(NamedTuple):
    """The teacher's head and its input, under the names of the arguments."""

    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    teacher_scale: Tensor | None
