"""Formats of other projects for soft labels, rebuilt from what is published of them.

They are measured beside ours: what they decode to, and the bytes of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from numcodecs import zstd

from kdcache.bench.fidelity_distillkit import Bins, Setting, decode, encode, parquet_bytes
from kdcache.signals import SoftLabels
from kdcache_kernels import topk_encode

LEAST_TAIL = 1e-4  # mass left to a tail that a record does not store, where the stored ids sum to 1


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a format made of rows of logits.

    Attributes:
        labels: what it decodes to.
        size: bytes a row, by its arithmetic.
        file_size: bytes a row of the file that its project writes, compression included; None
            where the arithmetic is of the file, or the file is not known.
    """

    labels: SoftLabels
    size: float
    file_size: float | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A record of a few ids a row; `keep` takes logits [N, V]."""

    name: str
    keep: Callable[[torch.Tensor], Record]


TERMS = {"3 terms": (0.0, 1.0, 0.5), "6 terms": (0.0, 1.0, 2.0, 3.0, 4.0, 0.5)}
RESIDUALS = (Bins(bits=8, number=16),)
"""As in the example of DistillKit's README; its two recommended settings have none."""


def formats(ks: Sequence[int]) -> list[Format]:
    """Every format at every k; DistillKit at its two recommended settings too."""
    budget, fine = ("exact 1, 3 terms", 1, "3 terms"), ("exact 16, 6 terms", 16, "6 terms")
    settings = [*((k, *budget) for k in ks), (128, *fine)]
    return [
        *(Format(name=f"int32 + fp16, k={k}", keep=partial(_plain, k=k)) for k in ks),
        *(Format(name=f"Megatron-LM, k={k}", keep=partial(_megatron, k=k)) for k in ks),
        *(
            Format(
                name=f"DistillKit, k={k}, {name}{more}",
                keep=partial(
                    _distillkit,
                    setting=Setting(k=k, exact=exact, powers=TERMS[terms], bins=bins),
                ),
            )
            for more, bins in (("", ()), (", 8-bit residuals", RESIDUALS))
            for k, name, exact, terms in settings
            if k - exact >= sum(each.number for each in bins)
        ),
        Format(name="SE-KD3X, 50 draws, 64 entries", keep=partial(_sekd, samples=50, entries=64)),
    ]


def from_record(ids: torch.Tensor, logprobs: torch.Tensor) -> SoftLabels:
    """Labels of a record without a tail: what the stored ids leave of one, and one token's for T=2.

    Where the stored ids sum to more than 1 - LEAST_TAIL they are scaled down to it.
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


def _plain(logits: torch.Tensor, *, k: int) -> Record:
    ids, logprobs, _, _ = topk_encode(logits, k)
    return Record(labels=from_record(ids, logprobs.half().float()), size=6.0 * k)


def _megatron(logits: torch.Tensor, *, k: int) -> Record:
    """Offline distillation of Megatron-LM (its pull request 5019): uint16 and a flag for bit 17 of
    ids, float16 log-probabilities, the tensors of a shard compressed by zstd."""
    ids, logprobs, _, _ = topk_encode(logits, k)
    halves = logprobs.half()
    pieces = (ids.to(torch.uint16), (ids >> 16).bool(), halves)
    size = sum(len(zstd.compress(piece.numpy().tobytes(), 3)) for piece in pieces)
    return Record(labels=from_record(ids, halves.float()), size=size / len(ids))


def _distillkit(logits: torch.Tensor, *, setting: Setting) -> Record:
    ids, logprobs, _, _ = topk_encode(logits, setting.k)
    columns = encode(ids, logprobs, setting, logits.shape[1])
    return Record(
        labels=from_record(ids, decode(columns[0], setting)),
        size=float(sum(column.shape[1] for column in columns)),
        file_size=parquet_bytes(columns) / len(ids),
    )


SHARES = 127  # 7 bits


def _sekd(logits: torch.Tensor, *, samples: int, entries: int) -> Record:
    """SE-KD3X (arXiv:2602.01395, its training/offline_cache.py at e56c3ca): draws with their
    shares, of 3 bytes each (17 bits of id, 7 of share), a row filled up to a fixed number."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat(
        [
            torch.multinomial(rows.softmax(-1), samples, replacement=True, generator=generator)
            for rows in logits.split(256)
        ]
    )
    drawn = drawn.sort(1).values
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    counts = torch.zeros_like(drawn).scatter_add_(
        1, first.long().cumsum(1) - 1, torch.ones_like(drawn)
    )
    ids = torch.full_like(drawn, -1).scatter_(1, first.long().cumsum(1) - 1, drawn)
    shares = _shares(counts / samples)
    logprobs = (shares / shares.sum(1, keepdim=True)).log()
    ids = torch.where(shares > 0, ids, -1)
    tail = torch.full((len(ids),), -torch.inf)
    return Record(
        labels=SoftLabels(ids=ids, logprobs=logprobs, tail_logmass=tail), size=3.0 * entries
    )


def _shares(exact: torch.Tensor) -> torch.Tensor:
    """Shares in steps of 1 / SHARES that sum to 1: those rounded most are corrected by a step."""
    steps = (exact * SHARES).round()
    lack = SHARES - steps.sum(1, keepdim=True)
    order = (exact * SHARES - steps).abs().argsort(1, descending=True).argsort(1)
    there = (exact > 0).sum(1, keepdim=True)
    chosen = (order < lack.abs()) & (order < there)
    return (steps + torch.where(chosen, lack.sign(), 0)).clamp(0, SHARES)
