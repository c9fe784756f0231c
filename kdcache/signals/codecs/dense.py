"""All logits of each row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, get_args

import torch

from kdcache.errors import ModelError, one_of
from kdcache.labels.base import Activation
from kdcache.labels.multi_label import bernoulli_kl
from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    Columns,
    Stats,
    check_fraction,
    logits_space,
    of_signal,
    settings,
)
from kdcache.signals.soft_labels import (
    SoftLabelCodec,
    SoftLabels,
    SoftUse,
    TeacherOutputs,
    divergence,
    kl_stats,
    kl_summary,
)
from kdcache.signals.taps import LOGITS, ModelSizes, Tap
from kdcache.tasks import Task

DENSE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DenseLogits(SoftLabelCodec):
    """All logits (or the regression values) of each row, as they left the teacher.

    Attributes:
        activation: what makes probabilities of them. But for a softmax, the outputs themselves are
            what is decoded, exported and measured. It follows from the teacher.
    """

    codec: ClassVar[str] = "dense"
    dtype: str = "fp32"
    fraction: float = 1.0
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        one_of("activation of logits:dense", self.activation, get_args(Activation))
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

    def decode(
        self, arrays: Arrays, tap: Tap | int = LOGITS, sizes: ModelSizes | None = None
    ) -> SoftLabels | TeacherOutputs:
        """Soft labels, or outputs that are no softmax."""
        if self.activation == "softmax":
            return super().decode(arrays, tap, sizes)
        rows = of_signal(arrays, self.kind) if isinstance(tap, int) else arrays
        return TeacherOutputs(values=rows["values"].float())

    def columns(self, arrays: Arrays, sizes: ModelSizes) -> Columns:
        """The fields of what is decoded."""
        if self.activation == "softmax":
            return super().columns(arrays, sizes)
        return {"values": arrays["values"].float()}

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
        if self.activation != "softmax":
            told = {"rows": float(len(exact)), "value_error_max": worst}
            return told if self.activation == "none" else {**told, **_bernoulli(exact, decoded)}
        kl = divergence(exact.log_softmax(-1), decoded.log_softmax(-1))
        same = exact.argmax(-1) == decoded.argmax(-1)
        return {**kl_stats("kl", kl, same), "value_error_max": worst}

    def summarise(self, stats: Stats) -> Json:
        """Mean and max KL in nats, top-1 agreement, largest absolute error of a value.

        Of several classes a document the KL is that of all their sigmoids, and no top-1 agreement.
        """
        if self.activation != "softmax":
            figures = kl_summary("kl", stats) if "kl_sum" in stats else {"rows": int(stats["rows"])}
            figures.pop("top1_agreement", None)
            return {**figures, "value_error_max": stats["value_error_max"]}
        return {**kl_summary("kl", stats), "value_error_max": stats["value_error_max"]}


def _bernoulli(exact: torch.Tensor, decoded: torch.Tensor) -> Stats:
    """Of sigmoids: KL of all classes in nats, and documents of which every class is the same."""
    kl = bernoulli_kl(decoded, exact)
    return kl_stats("kl", kl, ((exact > 0) == (decoded > 0)).all(-1))
