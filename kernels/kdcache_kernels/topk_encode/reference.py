"""topk_encode in plain torch, a block of rows at a time."""

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype

# Of logits in compute precision; about five such buffers live at once. On a CPU they stay in cache.
BLOCK_BYTES = 8 << 20
CPU_BLOCK_BYTES = 1 << 20


def make_inputs(n: int, v: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Draw teacher logits [N, V]; coarse dtypes hold ties."""
    g = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(n, v, generator=g)).to(dtype)


def topk_encode(
    logits: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (ids, logprobs, tail_logmass, tail_stat, log-sum of the row's exponentials).

    The last is not finite for a row that is no distribution; see the public function.
    """
    n, v = logits.shape
    dtype = compute_dtype(logits)
    device = logits.device
    ids = torch.empty((n, k), dtype=torch.int64, device=device)
    logprobs = torch.empty((n, k), dtype=torch.float32, device=device)
    tails = torch.empty((2, n), dtype=torch.float32, device=device)
    totals = torch.empty(n, dtype=dtype, device=device)
    block = CPU_BLOCK_BYTES if device.type == "cpu" else BLOCK_BYTES
    step = max(1, block // (v * dtype.itemsize))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        x = logits[rows].to(dtype, copy=True)
        ids[rows] = _largest(x, k)
        top = x.gather(1, ids[rows])
        rest = x.scatter_(1, ids[rows], float("-inf"))
        lse_rest = rest.logsumexp(1)
        lse = totals[rows] = torch.logaddexp(top.logsumexp(1), lse_rest)
        logprobs[rows] = top - lse[:, None]
        tails[0, rows] = lse_rest - lse
        tails[1, rows] = rest.div_(temperature).logsumexp(1) - lse / temperature
    return ids, logprobs, tails[0], tails[1], totals


def _largest(x: Tensor, k: int) -> Tensor:
    """Ids of the k largest of each row, the smaller id first among equals, [N, k]."""
    values, ids = x.topk(min(k + 1, x.shape[1]), 1)
    last = values[:, k - 1 : k]
    # topk may keep any of the classes that equal its last value: settle those rows by id.
    unsure = (values[:, k:] == last).any(1)
    ids = ids[:, :k]
    if unsure.any():
        ids[unsure] = _first_of_ties(x[unsure], last[unsure], k)
    ids = ids.sort(1).values
    order = x.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, order)


def _first_of_ties(x: Tensor, last: Tensor, k: int) -> Tensor:
    above = x > last
    equal = x == last
    room = k - above.sum(1, keepdim=True)
    keep = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    return keep.nonzero()[:, 1].view(-1, k)


def require_distributions(totals: Tensor) -> None:
    """Raise ValueError, naming the row, if some row's `totals` is not finite."""
    bad = (~totals.isfinite()).nonzero()
    if len(bad):
        raise ValueError(
            f"logits must hold no NaN or +inf, and one finite value a row; row {int(bad[0])} does "
            f"not ({len(bad)} such rows): check the teacher's forward pass and dtype"
        )
