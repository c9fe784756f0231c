"""Ids drawn from a distribution with replacement: an estimate of all of it, without bias.

Anshumann et al. 2025, arXiv:2503.16870.
"""

from __future__ import annotations

import torch

BLOCK_VALUES = 1 << 21  # of a block of rows; some four buffers of 8 bytes a value live at once
GOLDEN, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def sample(logits: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """`n` stratified draws of each row's softmax, ids int64 [N, n], rising.

    Draw j falls where the distribution function passes (j + u) / n, u uniform in [0, 1): the
    expected count of an id is n times its probability, whatever the order of the ids. An id
    without probability is never drawn, from a row that has any.
    """
    return torch.cat([_sample(block, n, seed) for block in logits.split(_block_rows(logits))])


def sample_tail(logits: torch.Tensor, ids: torch.Tensor, n: int) -> torch.Tensor:
    """`n` draws of each row from what is left of its softmax without `ids` [N, K]."""
    rows = _block_rows(logits)
    blocks = zip(logits.split(rows), ids.split(rows), strict=True)
    return torch.cat([_sample(block.scatter(1, top, -torch.inf), n, 0) for block, top in blocks])


def _block_rows(logits: torch.Tensor) -> int:
    return max(1, BLOCK_VALUES // logits.shape[1])


def _sample(logits: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    risen = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    total = risen[:, -1:]
    strata = torch.arange(n, device=logits.device) + _uniform(logits, n, seed)
    points = (strata / n * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(risen, points, right=True).clamp_(max=logits.shape[1] - 1)


def _uniform(logits: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """Numbers in [0, 1), float64 [N, n], that a row's logits and the seed determine."""
    bits = logits.float().contiguous().view(torch.int32).long()
    odd = torch.arange(logits.shape[1], device=logits.device) * 2 + 1
    key = _mix((bits * _mix(odd)).sum(1, keepdim=True) + seed * GOLDEN % 2**63)
    numbers = _mix(key + torch.arange(1, n + 1, device=logits.device) * GOLDEN)
    return ((numbers >> 11) & (2**53 - 1)).double() / 2**53


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, which wraps as uint64 does."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def distinct(rising: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each number of rows [N, n] once, in their order, -1 after the last; and its share of n.

    The shares are logarithms, float32 [N, n], -inf after the last.
    """
    fresh = rising.diff(dim=1, prepend=torch.full_like(rising[:, :1], -1)) != 0
    slot = fresh.cumsum(1) - 1
    counts = torch.zeros(rising.shape, device=rising.device)
    counts.scatter_add_(1, slot, torch.ones_like(counts))
    numbers = torch.full_like(rising, -1).scatter_(1, slot, rising)
    return numbers, (counts / rising.shape[1]).log()
