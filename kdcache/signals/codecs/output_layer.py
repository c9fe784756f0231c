"""The whole distribution from the last hidden state and the teacher's output layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from kdcache.errors import ConfigError, ModelError
from kdcache.manifest import Json
from kdcache.signals.activations import Activations, Head
from kdcache.signals.base import (
    Arrays,
    ArraySpec,
    ArtifactSources,
    Stats,
    check_fraction,
    logits_space,
    settings,
)
from kdcache.signals.codecs.linear_file import LinearFile, most_bytes, save
from kdcache.signals.codecs.quantised import LayerRows, RowCodec
from kdcache.signals.soft_labels import SoftLabelCodec, SoftLabels, divergence, kl_stats, kl_summary
from kdcache.signals.taps import HEAD, LOGITS, ModelSizes, Tap
from kdcache.tasks import Task

FILE = "logits/head.safetensors"
"""Where a cache keeps the output layer, under `files/`: tensors `weight` [V, H], `bias` [V]."""


@dataclass(frozen=True, kw_only=True)
class HeadLabels:
    """Soft labels of N rows that are not worked out: the output layer's input, and the layer.

    Attributes:
        rows: [N, H].
        weight: [V, H].
        bias: [V] or None.
    """

    rows: LayerRows
    weight: torch.Tensor
    bias: torch.Tensor | None

    def first(self, outputs: int) -> HeadLabels:
        """For a student that has but the first `outputs`: the teacher says nothing else."""
        bias = None if self.bias is None else self.bias[:outputs]
        return replace(self, weight=self.weight[:outputs], bias=bias)

    def dense(self) -> SoftLabels:
        """Soft labels over the whole vocabulary, [N, V]."""
        values = _apply(Head(hidden=self.rows.dense(), weight=self.weight, bias=self.bias))
        ids = torch.arange(values.shape[1], device=values.device).expand(values.shape)
        return SoftLabels(ids=ids, logprobs=values.log_softmax(-1), values=values)


@dataclass(frozen=True, kw_only=True)
class HiddenHead(SoftLabelCodec):
    """What the output layer of a language model takes, [rows, H], and that layer, once.

    Soft labels are then whole and, with `dtype=fp32`, exact, for H values a row whatever the
    vocabulary. `dtype` and `group` are those of `hidden`.
    """

    codec: ClassVar[str] = "hidden-head"
    dtype: str = "fp16"
    group: int | None = None
    fraction: float = 1.0
    layer: LinearFile | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _ = self.rows  # which checks itself
        check_fraction("logits:hidden-head", self.fraction)

    @property
    def rows(self) -> RowCodec:
        """How the rows are stored."""
        return RowCodec(what="logits:hidden-head", dtype=self.dtype, group=self.group)

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        values = {"dtype": self.dtype, "group": self.group, "fraction": self.fraction}
        return settings({"codec": self.codec, **values})

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError for a classifier, or a group that does not divide the width."""
        if task.labelled:
            raise ConfigError(
                "logits:hidden-head is for language models; store the classes with logits:dense"
            )
        self.rows.check(shape.hidden)

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """`codes` [rows, hidden] and, for integers, `scale`."""
        return self.rows.arrays(logits_space(self.codec, task, self.fraction), shape.hidden)

    def artifacts(
        self, task: Task, shape: ModelSizes, sources: ArtifactSources
    ) -> dict[str, bytes]:
        """The output layer; ModelError if it does not take the hidden states as they are."""
        weight, bias = sources.head()
        if weight.shape[1] != shape.hidden:
            raise ModelError(
                f"the teacher's output layer takes {weight.shape[1]} values, not its hidden "
                f"{shape.hidden}: store logits:topk"
            )
        return {FILE: save({"": (weight, bias)})}

    def artifact_bytes(self, shape: ModelSizes) -> dict[str, int]:
        """Weight and bias in float32, and the header; half where the teacher is a 16-bit one."""
        return {FILE: most_bytes({"": (shape.outputs, shape.hidden)})}

    def with_artifacts(self, shape: ModelSizes, read: Callable[[str], bytes]) -> HiddenHead:
        """This signal with the output layer, which is read once it is needed."""
        return replace(self, layer=LinearFile(read, FILE, {"": (shape.outputs, shape.hidden)}))

    def taps(self) -> tuple[Tap, ...]:
        """The output layer's input, in place of the logits."""
        return (HEAD,)

    def gives(self) -> tuple[Tap, ...]:
        """Soft labels, worked out or as the output layer's input and the layer."""
        return (LOGITS, HEAD)

    def decode(
        self, arrays: Arrays, tap: Tap | int = LOGITS, sizes: ModelSizes | None = None
    ) -> Any:
        """`SoftLabels` of the logits, `HeadLabels` of the head."""
        return self.labels(arrays) if tap == HEAD else super().decode(arrays, tap, sizes)

    def encode(self, activations: Activations) -> Arrays:
        """Codes of what the output layer would have taken, on the teacher's device."""
        return self.rows.encode(activations[HEAD], "the output layer's input")

    def labels(self, raw: Arrays) -> HeadLabels:
        """Soft labels as `linear_kl` takes them: [N, V] never exists."""
        assert self.layer is not None, "the signal has not been with_artifacts"
        rows = self.rows.decode(raw)
        weight, bias = self.layer.on(rows.codes.device)
        return HeadLabels(rows=rows, weight=weight, bias=bias)

    def soft(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Soft labels over the whole vocabulary, [N, V]."""
        return self.labels(raw).dense()

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """KL(teacher || decoded) in nats over the vocabulary, and top-1 agreement."""
        assert activations.head is not None
        exact = _apply(replace(activations.head, hidden=activations[HEAD][rows]))
        soft = self.soft({name: a[rows] for name, a in encoded.items()}, exact.shape[1])
        assert soft.values is not None
        decoded = soft.values.double().log_softmax(-1)
        kl = divergence(exact.double().log_softmax(-1), decoded)
        return kl_stats("kl", kl, exact.argmax(-1) == soft.logprobs.argmax(-1))

    def summarise(self, stats: Stats) -> Json:
        """Mean and max KL in nats, top-1 agreement."""
        return kl_summary("kl", stats)


def _apply(head: Head) -> torch.Tensor:
    """Logits, float32 [N, V]."""
    logits = head.hidden.float() @ head.weight.float().T
    return logits if head.bias is None else logits + head.bias.float()
