"""The k likeliest logits of each row, and what is known of their tail."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch

from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Stats,
    check_fraction,
    check_outputs,
    check_topk,
    logits_space,
    settings,
)
from kdcache.signals.codecs.codebook import (
    from_codes,
    high_bits,
    pack_high,
    table,
    to_codes,
    unpack_high,
)
from kdcache.signals.codecs.sampling import sample_tail
from kdcache.signals.soft_labels import (
    STAT_TEMPERATURE,
    SoftLabelCodec,
    SoftLabels,
    SoftUse,
    fill_up,
    measure_topk,
    summarise_topk,
    tail_labels,
    topk_lacks,
)
from kdcache.signals.taps import LOGITS, ModelSizes
from kdcache.tasks import Task
from kdcache_kernels import topk_encode


@dataclass(frozen=True, kw_only=True)
class TopKLogits(SoftLabelCodec):
    """The `k` largest true log-probabilities as 8-bit codes, and exact statistics of the tail.

    With `draws`, that many ids drawn from the tail too, for losses that ask for `tail="drawn"`.
    """

    codec: ClassVar[str] = "topk"
    k: int = 64
    draws: int = 0
    fraction: float = 1.0

    def __post_init__(self) -> None:
        check_fraction("logits:topk", self.fraction)
        check_topk("logits:topk", self.k, self.draws)

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return settings({"codec": self.codec, **asdict(self)})

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for fewer outputs than k, or a fraction of single rows."""
        logits_space(self.codec, task, self.fraction)
        check_outputs("logits:topk", self.k, self.draws, shape)

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """Ids (16 bits, high bits packed apart), codes with their table, tail statistics, draws."""
        space = logits_space(self.codec, task, self.fraction)
        bits = high_bits(shape.outputs)
        book = {"codebook": [float(v) for v in table()], "unit": "nats"}
        specs: list[tuple[str, dict[str, int], str, Json]] = [
            ("ids", {"k": self.k}, "uint16", {}),
            ("logprobs", {"k": self.k}, "uint8", book),
            ("tail_logmass", {}, "float32", {"unit": "nats"}),
            ("tail_stat", {}, "float32", {"unit": "nats", "temperature": STAT_TEMPERATURE}),
        ]
        if self.draws:
            specs.append(("drawn", {"draw": self.draws}, "uint16", {}))
        if bits:
            packed = {"byte_of_k": -(-self.k * bits // 8)}
            specs.insert(1, ("ids_hi", packed, "uint8", {"bits": bits}))
        if bits and self.draws:
            packed = {"byte_of_draw": -(-self.draws * bits // 8)}
            specs.append(("drawn_hi", packed, "uint8", {"bits": bits}))
        return [
            ArraySpec(
                name=name,
                space=space,
                row_shape=tuple(row.values()),
                axes=tuple(row),
                dtype=dtype,
                attributes=attributes,
            )
            for name, row, dtype, attributes in specs
        ]

    def lacks(self, use: SoftUse, outputs: int) -> str:
        """What a use of the labels lacks here, `{loss}` for the loss's name; "" if nothing."""
        return topk_lacks(self.codec, self.k, self.draws, use, outputs)

    def encode(self, activations: Activations) -> Arrays:
        """One pass over the logits, on their device."""
        ids, logprobs, tail_logmass, tail_stat = topk_encode(activations[LOGITS], self.k)
        width = activations[LOGITS].shape[1]
        arrays = {
            **_split("ids", ids, width),
            "logprobs": to_codes(logprobs),
            "tail_logmass": tail_logmass,
            "tail_stat": tail_stat,
        }
        if self.draws:
            arrays |= _split("drawn", sample_tail(activations[LOGITS], ids, self.draws), width)
        return arrays

    def soft(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Stored rows to soft labels over `outputs` classes.

        The tail's mass is exact, so the codes' common error is taken out: the decoded
        probabilities sum to one minus the tail.
        """
        logprobs, tail = from_codes(raw["logprobs"]), raw["tail_logmass"]
        soft = SoftLabels(
            ids=_join("ids", raw, outputs),
            logprobs=fill_up(logprobs, tail),
            tail_logmass=tail,
            tail_stat=raw["tail_stat"],
        )
        if not self.draws:
            return soft
        drawn, mass = tail_labels(_join("drawn", raw, outputs), tail, outputs, self.k)
        return replace(soft, drawn=drawn, drawn_logprobs=mass)

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """KL(teacher || decoded) in nats over the sampled `rows`; see `measure_topk`."""
        logits = activations[LOGITS][rows]
        chosen = {name: values[rows] for name, values in encoded.items()}
        return measure_topk(logits, self.soft(chosen, logits.shape[1]))

    def summarise(self, stats: Stats) -> Json:
        """KL over k ids + tail, KL over the vocabulary, top-1 agreement, mean mass of the k."""
        return summarise_topk(stats)


def _split(name: str, ids: torch.Tensor, outputs: int) -> Arrays:
    """Ids as the arrays `name`, the first 16 bits, and `name`_hi."""
    arrays = {name: (ids & 0xFFFF).to(torch.uint16)}
    if bits := high_bits(outputs):
        arrays[f"{name}_hi"] = pack_high(ids, bits)
    return arrays


def _join(name: str, raw: Arrays, outputs: int) -> torch.Tensor:
    """The ids that were split, int64."""
    ids = raw[name].to(torch.int64)
    if bits := high_bits(outputs):
        ids = ids | unpack_high(raw[f"{name}_hi"], ids.shape[1], bits)
    return ids
