"""What a backend of linear_kl is told besides the logits of both sides."""

from typing import NamedTuple


class Spec(NamedTuple):
    """The numbers of the loss; see `kdcache_kernels.linear_kl`."""

    temperature: float
    divergence: str
    soft_weight: float
    hard_weight: float
    ignore_index: int
