"""Tokens drawn from the teacher's distribution: the full gradient, without bias, in few bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Stats,
    check_fraction,
    logits_space,
    settings,
)
from kdcache.signals.codecs import gaps, sampling, vocabulary
from kdcache.signals.soft_labels import NO_RAW, SoftLabelCodec, SoftLabels, SoftUse
from kdcache.signals.taps import LOGITS, ModelSizes
from kdcache.tasks import Task

CHUNK_ROWS = 1024
ID_BYTES = (0.25, 1.6)  # of a draw, least and most; repeats cost next to nothing


@dataclass(frozen=True, kw_only=True)
class SampledLogits(SoftLabelCodec, vocabulary.Ranked):
    """`n` ids drawn with replacement from the teacher's distribution at T=1.

    The share of the draws that fell on an id estimates its probability without bias, and with it
    the gradient of KL(teacher || student) over the whole vocabulary, which the k likeliest ids
    never give (Anshumann et al. 2025, arXiv:2503.16870). Draws are stratified, one from every
    n-th of the distribution, which lowers their variance; they depend on `seed` and the row's
    logits alone. Stored as ranks by the corpus's counts, rising, as differences: a repeat is a
    difference of zero. Losses must ask for T=1.
    """

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

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for a teacher of a single output, which is a value, or a fraction of
        single rows.
        """
        logits_space(self.codec, task, self.fraction)
        if shape.outputs < 2:
            raise ConfigError(
                f"logits:sampled draws classes; the teacher has {shape.outputs} output: "
                "use logits:dense"
            )

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """Planes of the differences between the ranks of the draws, [rows, n]."""
        least, most = (share * self.n for share in ID_BYTES)
        count = gaps.planes(shape.outputs)
        return [
            ArraySpec(
                name=name,
                space=logits_space(self.codec, task, self.fraction),
                row_shape=(self.n,),
                axes=("draw",),
                dtype="uint8",
                attributes=vocabulary.attributes(shape.outputs),
                chunk_rows=CHUNK_ROWS,
                packing="columns",
                expected=(least / count, most / count),
            )
            for name in gaps.names(shape.outputs)
        ]

    def lacks(self, use: SoftUse, outputs: int) -> str:
        """What a use of the labels lacks here, `{loss}` for the loss's name; "" if nothing."""
        if use.raw or use.temperature == 1:
            return NO_RAW if use.raw else ""
        return (
            f"temperature {use.temperature:g} needs what the cache does not hold: logits:sampled "
            "tells the teacher at temperature 1. Set {loss}.temperature=1, or build a cache with "
            "logits:topk"
        )

    def encode(self, activations: Activations) -> Arrays:
        """Draws of every row, on the logits' device."""
        drawn = sampling.sample(activations[LOGITS], self.n, self.seed)
        return gaps.split(self.ranks_of(drawn).sort(1).values, activations[LOGITS].shape[1])

    def soft(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Distinct ids and the logarithm of their share of the draws; -1 fills the row up."""
        ranks, shares = sampling.distinct(gaps.join(raw, outputs))
        most = min(self.n, outputs)
        return SoftLabels(
            ids=self.ids_of(ranks[:, :most]),
            logprobs=shares[:, :most],
            tail_logmass=torch.full((len(ranks),), -torch.inf, device=ranks.device),
        )

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Distinct ids, and squared distance of the estimate from the teacher's distribution."""
        exact = activations[LOGITS][rows].double().softmax(-1)
        chosen = {name: values[rows] for name, values in encoded.items()}
        soft = self.soft(chosen, exact.shape[1])
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
