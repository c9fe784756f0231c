"""Log-probabilities as 8-bit codes, and vocabulary ids as 16 bits plus packed high bits."""

from __future__ import annotations

import math
from functools import cache

import torch

FLOOR = -16.0  # nats: the least log-probability a code can stand for


@cache
def table() -> torch.Tensor:
    """The 256 log-probabilities codes stand for, [256] float32, in nats, from 0 down to FLOOR.

    Steps grow with the square root of the value: the error of a probability p weighs p in the
    divergence, so likely tokens get the fine steps (decision 0003).
    """
    steps = torch.arange(256, dtype=torch.float64) / 255
    return (FLOOR * steps.square()).to(torch.float32)


def to_codes(logprobs: torch.Tensor) -> torch.Tensor:
    """Nearest code of each log-probability (nats), uint8."""
    return _nearest(logprobs, table())


def _nearest(logprobs: torch.Tensor, falling: torch.Tensor) -> torch.Tensor:
    falling = falling.to(logprobs.device)
    edges = -(falling[1:] + falling[:-1]) / 2
    return torch.bucketize(-logprobs.float(), edges).to(torch.uint8)


def from_codes(codes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (nats, float32) of codes."""
    return table().to(codes.device)[codes.long()]


GROWTH = 0.3  # of a step, per nat: where bytes are few, unlikely tokens are told less exactly


@cache
def steep_table(levels: int) -> torch.Tensor:
    """The `levels` log-probabilities of a coarser table, [levels] float32, from 0 down to FLOOR.

    Steps grow as exp(GROWTH * distance from 0): once codes are compressed, this costs less
    divergence for its bytes than even steps or those of `table`.
    """
    steps = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    span = 1 - math.exp(GROWTH * FLOOR)
    return (torch.log1p(-span * steps) / GROWTH).to(torch.float32)


def to_steep_codes(logprobs: torch.Tensor, levels: int) -> torch.Tensor:
    """Nearest code of each log-probability (nats) in `steep_table`, uint8."""
    return _nearest(logprobs, steep_table(levels))


def from_steep_codes(codes: torch.Tensor, levels: int) -> torch.Tensor:
    """Log-probabilities (nats, float32) of codes of `steep_table`."""
    return steep_table(levels).to(codes.device)[codes.long()]


def high_bits(vocabulary: int) -> int:
    """Bits of an id beyond the first 16."""
    return max(0, (vocabulary - 1).bit_length() - 16)


def pack_high(ids: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack the bits beyond the first 16 of ids [N, K] into uint8 [N, ceil(K * bits / 8)].

    Bit b of rank j is bit j * bits + b of the row, least significant first.
    """
    flags = (ids.unsqueeze(-1) >> torch.arange(16, 16 + bits, device=ids.device)) & 1
    flat = flags.flatten(1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).unflatten(1, (-1, 8))
    weights = 1 << torch.arange(8, device=ids.device)
    packed: torch.Tensor = (flat * weights).sum(-1)
    return packed.to(torch.uint8)


def unpack_high(packed: torch.Tensor, k: int, bits: int) -> torch.Tensor:
    """High parts (already shifted by 16) of ids, int64 [N, K]."""
    flags = (packed.long().unsqueeze(-1) >> torch.arange(8, device=packed.device)) & 1
    flat = flags.flatten(1)[:, : k * bits].unflatten(1, (k, bits))
    ids: torch.Tensor = (flat << torch.arange(16, 16 + bits, device=packed.device)).sum(-1)
    return ids
