"""Tokens drawn from the teacher's distribution: the full gradient, without bias, in few bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.signals import gaps, vocabulary
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Outputs,
    Stats,
    TeacherShape,
    check_fraction,
    logits_space,
    settings,
)
from kdcache.signals.soft import SoftLabels
from kdcache.tasks import Task

CHUNK_ROWS = 1024
BLOCK_VALUES = 1 << 21  # of a block of rows; some four buffers of 8 bytes a value live at once
ID_BYTES = (0.25, 1.6)  # of a draw, least and most; repeats cost next to nothing
GOLDEN, MIX_1, MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


@dataclass(frozen=True, kw_only=True)
class SampledLogits(vocabulary.Ranked):
    """`n` ids drawn with replacement from the teacher's distribution at T=1.

    The share of the draws that fell on an id estimates its probability without bias, and with it
    the gradient of KL(teacher || student) over the whole vocabulary, which the k likeliest ids
    never give (Anshumann et al. 2025, arXiv:2503.16870). Draws are stratified, one from every
    n-th of the distribution, which lowers their variance; they depend on `seed` and the row's
    logits alone. Stored as ranks by the corpus's counts, rising, as differences: a repeat is a
    difference of zero. Losses must ask for T=1.
    """

    name: ClassVar[str] = "logits"
    codec: ClassVar[str] = "sampled"
    n: int = 50
    seed: int = 0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 65536:
            raise ConfigError(f"n of logits:sampled must lie in [1, 65536]; got {self.n}")
        if not 0 <= self.seed < 2**62:
            raise ConfigError(f"seed of logits:sampled must lie in [0, 2**62); got {self.seed}")
        check_fraction("logits:sampled", self.fraction)

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return settings(
            {"codec": self.codec, "n": self.n, "seed": self.seed, "fraction": self.fraction}
        )

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError for a teacher of a single output, which is a value, or a fraction of
        single rows.
        """
        logits_space(self.codec, task, self.fraction)
        if shape.outputs < 2:
            raise ConfigError(
                f"logits:sampled draws classes; the teacher has {shape.outputs} output: "
                "use logits:dense"
            )

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """Planes of the differences between the ranks of the draws, [rows, n]."""
        least, most = (share * self.n for share in ID_BYTES)
        count = gaps.planes(shape.outputs)
        return [
            ArraySpec(
                name=name,
                space=logits_space(self.codec, task, self.fraction),
                row_shape=(self.n,),
                dtype="uint8",
                attributes=vocabulary.attributes(shape.outputs),
                chunk_rows=CHUNK_ROWS,
                packing="columns",
                expected=(least / count, most / count),
            )
            for name in gaps.names(shape.outputs)
        ]

    def encode(self, outputs: Outputs) -> Arrays:
        """Draws of every row, a block of rows at a time, on the logits' device."""
        width = outputs.logits.shape[1]
        rows = max(1, BLOCK_VALUES // width)
        drawn = torch.cat([draw(block, self.n, self.seed) for block in outputs.logits.split(rows)])
        return gaps.split(self.on(drawn.device)[1][drawn].sort(1).values, width)

    def decode(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Distinct ids and the logarithm of their share of the draws; -1 fills the row up."""
        ranks = gaps.join(raw, outputs)
        fresh = ranks.diff(dim=1, prepend=torch.full_like(ranks[:, :1], -1)) != 0
        slot = fresh.cumsum(1) - 1
        counts = torch.zeros(ranks.shape, device=ranks.device)
        counts.scatter_add_(1, slot, torch.ones_like(counts))
        ids = torch.full_like(ranks, -1).scatter_(1, slot, self.on(ranks.device)[0][ranks])
        nothing = torch.full((len(ranks),), -torch.inf, device=ranks.device)
        most = min(self.n, outputs)
        return SoftLabels(
            ids=ids[:, :most], logprobs=(counts / self.n).log()[:, :most], tail_logmass=nothing
        )

    def measure(self, outputs: Outputs, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Distinct ids, and squared distance of the estimate from the teacher's distribution."""
        exact = outputs.logits[rows].double().softmax(-1)
        kept = {name: values[rows] for name, values in encoded.items()}
        soft = self.decode(kept, exact.shape[1])
        live = soft.ids >= 0
        ids, share = soft.ids.clamp(min=0), soft.logprobs.double().exp()
        estimate = torch.zeros_like(exact).scatter_add_(1, ids, share)
        likeliest = ids.gather(1, share.argmax(1, keepdim=True)).squeeze(1)
        return {
            "rows": float(len(exact)),
            "distinct": float(live.sum()),
            "error": float((estimate - exact).square().sum()),
            "norm": float(exact.square().sum()),
            "same": float((likeliest == exact.argmax(1)).sum()),
        }

    def summarise(self, stats: Stats) -> Json:
        """Distinct ids a row, relative root of the mean squared error, top-1 agreement."""
        return {
            "rows": int(stats["rows"]),
            "distinct_ids": stats["distinct"] / stats["rows"],
            "sampling_error": (stats["error"] / stats["norm"]) ** 0.5,
            "top1_agreement": stats["same"] / stats["rows"],
        }


def draw(logits: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """`n` stratified draws of each row's softmax, ids int64 [N, n], rising.

    Draw j falls where the distribution function passes (j + u) / n, u uniform in [0, 1): the
    expected count of an id is n times its probability, whatever the order of the ids.
    """
    risen = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    strata = torch.arange(n, device=logits.device) + _uniform(logits, n, seed)
    points = strata / n * risen[:, -1:]
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
