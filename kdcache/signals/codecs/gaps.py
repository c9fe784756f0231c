"""Sorted whole numbers as their differences, split into planes of bytes that compress well."""

from __future__ import annotations

import torch


def planes(vocabulary: int) -> int:
    """Bytes that the largest difference takes: one array of bytes each."""
    return max(1, -(-(vocabulary - 1).bit_length() // 8))


def names(vocabulary: int, of: str = "gaps") -> list[str]:
    """The arrays of the planes, the lowest byte first."""
    return [f"{of}_{plane}" for plane in range(planes(vocabulary))]


def split(ordered: torch.Tensor, vocabulary: int, of: str = "gaps") -> dict[str, torch.Tensor]:
    """Rows [N, K] of rising ranks below `vocabulary` to planes of differences, uint8 [N, K].

    The first value of a row is its difference from zero; equal neighbours give 0.
    """
    gaps = ordered.diff(dim=1, prepend=torch.zeros_like(ordered[:, :1]))
    return {
        name: ((gaps >> (8 * plane)) & 255).to(torch.uint8)
        for plane, name in enumerate(names(vocabulary, of))
    }


def join(raw: dict[str, torch.Tensor], vocabulary: int, of: str = "gaps") -> torch.Tensor:
    """The rows that were split, int64 [N, K]."""
    planes = enumerate(names(vocabulary, of))
    parts = (raw[name].long() << (8 * plane) for plane, name in planes)
    gaps: torch.Tensor = sum(parts, torch.zeros((), dtype=torch.int64))
    return gaps.cumsum(1)
