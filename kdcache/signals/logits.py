"""Soft labels: all classes (`dense`), or the k most likely tokens and what the rest amounts to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.manifest import Json
from kdcache.signals.base import Arrays, ArraySpec, Outputs, Stats, TeacherShape
from kdcache.signals.codebook import (
    from_codes,
    high_bits,
    pack_high,
    table,
    to_codes,
    unpack_high,
)
from kdcache.tasks import LOGITS_SPACE, Task
from kdcache_kernels import topk_encode

DENSE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
STAT_TEMPERATURE = 2.0


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """Decoded soft labels of N rows.

    Attributes:
        ids: [N, K] int64.
        logprobs: [N, K] float32, the teacher's log-probabilities at T=1, in nats.
        tail_logmass: [N] float32, log of the probability outside `ids`; None: nothing is outside.
        tail_stat: [N] float32, log of the sum of p^(1/2) outside `ids` (the tail at T=2).
        values: [N, C] float32, the teacher's raw logits or regression values, where stored.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail_logmass: torch.Tensor | None = None
    tail_stat: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DenseLogits:
    """All logits (or the regression values) of each row, as they left the teacher."""

    name: ClassVar[str] = "logits"
    codec: ClassVar[str] = "dense"
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        one_of("dtype of logits:dense", self.dtype, DENSE_DTYPES)

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return {"codec": self.codec, **asdict(self)}

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Dense logits fit every teacher; a large vocabulary is only large."""

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """`logits/values` [rows, outputs]."""
        return [
            ArraySpec(
                name="logits/values",
                space=LOGITS_SPACE[task],
                row_shape=(shape.outputs,),
                dtype={"fp32": "float32", "fp16": "float16"}[self.dtype],
                chunk_rows=max(64, 16_384 * 128 // max(128, shape.outputs)),
            )
        ]

    def encode(self, outputs: Outputs) -> Arrays:
        """Logits in the stored dtype; ModelError where fp16 cannot hold them."""
        values = outputs.logits.to(DENSE_DTYPES[self.dtype])
        if not torch.isfinite(values).all():
            raise ModelError("a logit is too large for fp16; store the logits with dtype=fp32")
        return {"logits/values": values}

    def decode(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Stored rows to soft labels over all classes."""
        values = raw["logits/values"].float()
        ids = torch.arange(values.shape[1], device=values.device).expand(values.shape)
        return SoftLabels(ids=ids, logprobs=values.log_softmax(-1), values=values)

    def measure(self, outputs: Outputs, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """KL(teacher || decoded) in nats and top-1 agreement; absolute error of a single value."""
        exact = outputs.logits[rows].double()
        decoded = encoded["logits/values"][rows].double()
        worst = float((exact - decoded).abs().max())
        kl = _kl(exact.log_softmax(-1), decoded.log_softmax(-1))
        same = exact.argmax(-1) == decoded.argmax(-1)
        return {**_stats("kl", kl, same), "value_error_max": worst}

    def summarise(self, stats: Stats) -> Json:
        """Mean and max KL in nats, top-1 agreement, largest absolute error of a value."""
        return {**_summary("kl", stats), "value_error_max": stats["value_error_max"]}


@dataclass(frozen=True, kw_only=True)
class TopKLogits:
    """The `k` largest true log-probabilities as 8-bit codes, and exact statistics of the tail."""

    name: ClassVar[str] = "logits"
    codec: ClassVar[str] = "topk"
    k: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 65536:
            raise ConfigError(f"k of logits:topk must lie in [1, 65536]; got {self.k}")

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return {"codec": self.codec, **asdict(self)}

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError if the teacher has fewer than k outputs."""
        if self.k > shape.outputs:
            raise ConfigError(
                f"logits:topk,k={self.k}: the teacher has {shape.outputs} outputs; "
                f"use k={shape.outputs} or less, or logits:dense"
            )

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """Ids (16 bits, high bits packed apart), codes with their table, tail statistics."""
        space, bits = LOGITS_SPACE[task], high_bits(shape.outputs)
        book = {"codebook": [float(v) for v in table()], "unit": "nats"}
        specs: list[tuple[str, tuple[int, ...], str, Json]] = [
            ("ids", (self.k,), "uint16", {}),
            ("logprobs", (self.k,), "uint8", book),
            ("tail_logmass", (), "float32", {"unit": "nats"}),
            ("tail_stat", (), "float32", {"unit": "nats", "temperature": STAT_TEMPERATURE}),
        ]
        if bits:
            packed = (-(-self.k * bits // 8),)
            specs.insert(1, ("ids_hi", packed, "uint8", {"bits": bits}))
        return [
            ArraySpec(name=f"logits/{n}", space=space, row_shape=s, dtype=t, attributes=a)
            for n, s, t, a in specs
        ]

    def encode(self, outputs: Outputs) -> Arrays:
        """One pass over the logits, on their device."""
        ids, logprobs, tail_logmass, tail_stat = topk_encode(outputs.logits, self.k)
        arrays = {
            "logits/ids": (ids & 0xFFFF).to(torch.uint16),
            "logits/logprobs": to_codes(logprobs),
            "logits/tail_logmass": tail_logmass,
            "logits/tail_stat": tail_stat,
        }
        if bits := high_bits(outputs.logits.shape[1]):
            arrays["logits/ids_hi"] = pack_high(ids, bits)
        return arrays

    def decode(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Stored rows to soft labels over `outputs` classes.

        The tail's mass is exact, so the codes' common error is taken out: the decoded
        probabilities sum to one minus the tail.
        """
        ids = raw["logits/ids"].to(torch.int64)
        if bits := high_bits(outputs):
            ids = ids | unpack_high(raw["logits/ids_hi"], self.k, bits)
        logprobs, tail = from_codes(raw["logits/logprobs"]), raw["logits/tail_logmass"]
        kept = _log1mexp(tail)
        logprobs = logprobs + (kept - logprobs.logsumexp(-1)).unsqueeze(-1)
        return SoftLabels(
            ids=ids, logprobs=logprobs, tail_logmass=tail, tail_stat=raw["logits/tail_stat"]
        )

    def measure(self, outputs: Outputs, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """KL(teacher || decoded) in nats, twice: over the k ids and the tail as one outcome (what
        the codes cost), and over the vocabulary, the decoded tail spread evenly (what k costs).
        """
        logits = outputs.logits[rows].double()
        exact = logits.log_softmax(-1)
        soft = self.decode({name: a[rows] for name, a in encoded.items()}, logits.shape[1])
        exact_k, decoded_k = exact.gather(1, soft.ids), soft.logprobs.double()
        assert soft.tail_logmass is not None
        tail = soft.tail_logmass.double()
        true_tail = exact.scatter(1, soft.ids, -torch.inf).logsumexp(-1)
        bucket = _kl(
            torch.cat([exact_k, true_tail.unsqueeze(-1)], 1),
            torch.cat([decoded_k, tail.unsqueeze(-1)], 1),
        )
        rest = logits.shape[1] - self.k
        even = (tail - torch.tensor(float(max(rest, 1))).log()).unsqueeze(-1)
        full = _kl(exact, even.expand(exact.shape).scatter(1, soft.ids, decoded_k))
        same = exact.argmax(-1) == soft.ids.gather(1, decoded_k.argmax(-1, keepdim=True)).squeeze(1)
        kept = float(exact_k.exp().sum())
        return {**_stats("kl", bucket, same), **_stats("full_kl", full, same), "kept": kept}

    def summarise(self, stats: Stats) -> Json:
        """KL over k ids + tail, KL over the vocabulary, top-1 agreement, mean mass of the k."""
        full = _summary("full_kl", stats)
        return {
            **_summary("kl", stats),
            "full_kl_mean": full["full_kl_mean"],
            "full_kl_max": full["full_kl_max"],
            "kept_mass": stats["kept"] / stats["rows"],
        }


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0, without cancellation (Maechler 2012)."""
    x = x.clamp(max=-1e-30)
    return torch.where(x > -0.6931, (-torch.expm1(x)).log(), torch.log1p(-torch.exp(x)))


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities, per row, in nats; impossible outcomes of p count nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def _stats(name: str, kl: torch.Tensor, same: torch.Tensor) -> Stats:
    return {
        "rows": float(len(kl)),
        "same": float(same.sum()),
        f"{name}_sum": float(kl.sum()),
        f"{name}_max": float(kl.max()),
    }


def _summary(name: str, stats: Stats) -> Json:
    return {
        "rows": int(stats["rows"]),
        f"{name}_mean": stats[f"{name}_sum"] / stats["rows"],
        f"{name}_max": stats[f"{name}_max"],
        "top1_agreement": stats["same"] / stats["rows"],
    }
