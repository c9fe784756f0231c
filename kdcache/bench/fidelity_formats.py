"""Formats of other projects for soft labels, rebuilt from what is published of them.

They are measured beside ours: what they decode to, and the bytes of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numcodecs import zstd

from kdcache.signals import SoftLabels
from kdcache_kernels import topk_encode

LEAST_TAIL = 1e-4  # mass left to a tail that a record says nothing of, where the kept sum to 1


@dataclass(frozen=True, kw_only=True)
class Format:
    """A record of the k likeliest ids.

    Attributes:
        keep: rows of logits [N, V] to what the record decodes to and its bytes a row.
        limit: why the figures may flatter or wrong it; empty if nothing is known.
    """

    name: str
    keep: Callable[[torch.Tensor], tuple[SoftLabels, float]]
    limit: str = ""


def formats(ks: Sequence[int]) -> list[Format]:
    """Every format at every k; DistillKit at its two recommended settings too."""
    found = [
        *(Format(name=f"int32 + fp16, k={k}", keep=_plain(k)) for k in ks),
        *(Format(name=f"Megatron-LM, k={k}", keep=_megatron(k)) for k in ks),
        *(
            Format(name=f"DistillKit, k={k}, exact 1, 3 terms", keep=_distillkit(k, 1, COARSE))
            for k in ks
        ),
    ]
    fine = Format(
        name="DistillKit, k=128, exact 16, 6 terms", keep=_distillkit(128, 16, (*FINE, 0.5))
    )
    return [*found, fine]


def from_record(ids: torch.Tensor, logprobs: torch.Tensor) -> SoftLabels:
    """Labels of a record without a tail: what the kept leave of one, and one token's for T=2.

    Where the kept sum to more than 1 - LEAST_TAIL they are scaled down to it.
    """
    total = logprobs.double().logsumexp(1)
    tail = torch.log1p(-total.exp().clamp(max=1 - LEAST_TAIL))
    scale = torch.logaddexp(total, tail)
    tail = (tail - scale).float()
    return SoftLabels(
        ids=ids,
        logprobs=(logprobs.double() - scale[:, None]).float(),
        tail_logmass=tail,
        tail_stat=tail / 2,
    )


def _plain(k: int) -> Callable[[torch.Tensor], tuple[SoftLabels, float]]:
    def keep(logits: torch.Tensor) -> tuple[SoftLabels, float]:
        ids, logprobs, _, _ = topk_encode(logits, k)
        return from_record(ids, logprobs.half().float()), 6.0 * k

    return keep


def _megatron(k: int) -> Callable[[torch.Tensor], tuple[SoftLabels, float]]:
    """Offline distillation of Megatron-LM (its pull request 5019): uint16 and a flag for bit 17 of
    ids, float16 log-probabilities, the tensors of a shard compressed by zstd."""

    def keep(logits: torch.Tensor) -> tuple[SoftLabels, float]:
        ids, logprobs, _, _ = topk_encode(logits, k)
        kept = logprobs.half()
        pieces = (ids.to(torch.uint16), (ids >> 16).bool(), kept)
        size = sum(len(zstd.compress(piece.numpy().tobytes(), 3)) for piece in pieces)
        return from_record(ids, kept.float()), size / len(ids)

    return keep


COARSE = (0.0, 1.0, 0.5)
FINE = (0.0, 1.0, 2.0, 3.0, 4.0)


def _distillkit(
    k: int, exact: int, powers: Sequence[float]
) -> Callable[[torch.Tensor], tuple[SoftLabels, float]]:
    """Ids packed at ceil(log2 V) bits; `exact` log-probabilities in bfloat16, the rest a polynomial
    in the rank, fitted by least squares, its coefficients in float32."""
    terms = len(powers)

    def keep(logits: torch.Tensor) -> tuple[SoftLabels, float]:
        ids, logprobs, _, _ = topk_encode(logits, k)
        rank = np.arange(k - exact, dtype=np.float64)
        basis = np.stack([rank**power for power in powers], 1)
        rest = logprobs[:, exact:].double().numpy().T
        coefficients = np.linalg.lstsq(basis, rest, rcond=None)[0].astype(np.float32)
        fitted = torch.from_numpy((basis @ coefficients).T).float()
        first = logprobs[:, :exact].bfloat16().float()
        bits = (logits.shape[1] - 1).bit_length()
        size = 2 * exact + 4 * terms + -(-k * bits // 8)
        return from_record(ids, torch.cat([first, fitted], 1)), float(size)

    return keep
