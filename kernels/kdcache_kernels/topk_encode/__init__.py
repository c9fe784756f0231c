"""Top-k of the teacher's distribution with exact statistics of the rest."""

from torch import Tensor

from kdcache_kernels._backends import dispatched
from kdcache_kernels._checks import FLOATS, require_dtype, require_matrix
from kdcache_kernels.topk_encode import reference

__all__ = ["topk_encode"]


def topk_encode(
    logits: Tensor, k: int, *, stat_temperature: float = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep the `k` most probable classes of each row of teacher logits, and what the rest weighs.

    Args:
        logits: teacher, [N, V], float32, float16, bfloat16 or float64, any device. Inference
            only: no gradient flows. -inf is a banned class.
        k: how many classes to keep, 1 <= k <= V.
        stat_temperature: the T of `tail_stat`.

    Returns:
        ids, int64 [N, k], by decreasing probability; among equal logits the smaller id comes
        first and is the one kept, on every device.
        logprobs, float32 [N, k]: true log-probabilities at temperature 1, in nats.
        tail_logmass, float32 [N]: log of the sum of p outside the k, summed over the rest itself
        and not as log(1 - P); -inf if the rest is empty.
        tail_stat, float32 [N]: log of the sum of `p^(1/T)` outside the k; -inf likewise.

    On a CPU rows are taken in blocks, so that temporary memory stays below 64 MiB (or a few rows);
    on a GPU it is some six tensors [N, k].

    Raises:
        ValueError: wrong shape, k or temperature; a row holding NaN, +inf or only -inf.
        TypeError: wrong dtype.
    """
    require_matrix("logits", logits)
    require_dtype("logits", logits, FLOATS)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must lie in [1, V] with V = {logits.shape[1]}; got {k}")
    if not 0 < stat_temperature < float("inf"):
        raise ValueError(f"stat_temperature must be positive and finite; got {stat_temperature}")
    ids, logprobs, tail_logmass, tail_stat, totals = _kernel(logits.detach(), k, stat_temperature)
    reference.require_distributions(totals)
    return ids, logprobs, tail_logmass, tail_stat


_kernel = dispatched(reference.topk_encode)
