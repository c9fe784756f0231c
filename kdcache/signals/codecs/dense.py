"""All logits of each row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from kdcache.errors import ModelError, one_of
from kdcache.manifest import Json
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Stats,
    check_fraction,
    logits_space,
    settings,
)
from kdcache.signals.soft_labels import (
    SoftLabelCodec,
    SoftLabels,
    SoftUse,
    divergence,
    kl_stats,
    kl_summary,
)
from kdcache.signals.taps import LOGITS, Activations, ModelSizes
from kdcache.tasks import Task

DENSE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DenseLogits(SoftLabelCodec):
    """All logits (or the regression values) of each row, as they left the teacher."""

    codec: ClassVar[str] = "dense"
    dtype: str = "fp32"
    fraction: float = 1.0

    def __post_init__(self) -> None:
        check_fraction("logits:dense", self.fraction)
        one_of("dtype of logits:dense", self.dtype, DENSE_DTYPES)

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        return settings({"codec": self.codec, **asdict(self)})

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Dense logits fit every teacher; ConfigError for a fraction of single rows."""
        logits_space(self.codec, task, self.fraction)

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """`values` [rows, outputs]."""
        return [
            ArraySpec(
                name="values",
                space=logits_space(self.codec, task, self.fraction),
                row_shape=(shape.outputs,),
                axes=("output",),
                dtype={"fp32": "float32", "fp16": "float16"}[self.dtype],
                chunk_rows=max(64, 16_384 * 128 // max(128, shape.outputs)),
            )
        ]

    def lacks(self, use: SoftUse, outputs: int) -> str:
        """Nothing: whatever is asked of soft labels is here."""
        return ""

    def encode(self, activations: Activations) -> Arrays:
        """Logits in the stored dtype; ModelError where fp16 cannot hold them."""
        values = activations[LOGITS].to(DENSE_DTYPES[self.dtype])
        if not torch.isfinite(values).all():
            raise ModelError("a logit is too large for fp16; store the logits with dtype=fp32")
        return {"values": values}

    def soft(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Stored rows to soft labels over all classes."""
        values = raw["values"].float()
        ids = torch.arange(values.shape[1], device=values.device).expand(values.shape)
        return SoftLabels(ids=ids, logprobs=values.log_softmax(-1), values=values)

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """KL(teacher || decoded) in nats and top-1 agreement; absolute error of a single value."""
        exact = activations[LOGITS][rows].double()
        decoded = encoded["values"][rows].double()
        worst = float((exact - decoded).abs().max())
        kl = divergence(exact.log_softmax(-1), decoded.log_softmax(-1))
        same = exact.argmax(-1) == decoded.argmax(-1)
        return {**kl_stats("kl", kl, same), "value_error_max": worst}

    def summarise(self, stats: Stats) -> Json:
        """Mean and max KL in nats, top-1 agreement, largest absolute error of a value."""
        return {**kl_summary("kl", stats), "value_error_max": stats["value_error_max"]}
