"""Classifiers of transformers' whose last layer is another: a classifier taken over, or several."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import nn

from kdcache.models.classifiers import classifier_name, put_classifier
from kdcache.models.module_student import ModuleStudent
from kdcache.models.student_config import StudentConfig

NAME = "projected"  # what a folder calls a student of the kind
Layer = tuple[torch.Tensor, torch.Tensor | None, bool]
"""Weight [out, in], bias [out] or None, and whether a ReLU follows."""


class Chain(nn.Module):
    """Linear layers one after the other.

    Args:
        widths: of what goes into each, and comes out of the last.
        relus: whether a ReLU follows each.
    """

    def __init__(self, widths: Sequence[int], relus: Sequence[bool]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(widths))
        self.relus = tuple(relus)

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Logits [..., outputs] of what a classifier reads, [..., W]."""
        for layer, relu in zip(self.layers, self.relus, strict=True):
            read = layer(read).relu() if relu else layer(read)
        return read


class Projected(nn.Module):
    """A classifier of transformers' with a chain of layers in the place of its last one.

    Args:
        model: its configuration, as its `to_dict` gives it.
        widths: those of the chain.
        relus: likewise.
    """

    def __init__(self, *, model: dict[str, Any], widths: list[int], relus: list[bool]) -> None:
        super().__init__()
        self.settings = {"model": model, "widths": widths, "relus": relus}
        rest = {name: value for name, value in model.items() if name != "model_type"}
        config = transformers.AutoConfig.for_model(model["model_type"], **rest)
        self.model = transformers.AutoModelForSequenceClassification.from_config(config)
        put_classifier(self.model, Chain(widths, relus))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, outputs]."""
        typed = "token_type_ids" in inspect.signature(self.model.forward).parameters
        more = {"token_type_ids": token_type_ids} if typed else {}
        logits: torch.Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).logits
        return logits


def with_layers(model: Any, layers: Sequence[Layer]) -> Any:
    """A classifier whose last layer is what `layers` are together, one after the other.

    It is the model itself where no ReLU keeps them from being one linear layer, and else a student
    that is a module, whose folder is one of kdcache's.
    """
    if not any(relu for _, _, relu in layers):
        put_classifier(model, _one(layers))
        return model
    widths = [layers[0][0].shape[1], *(weight.shape[0] for weight, _, _ in layers)]
    relus = [relu for _, _, relu in layers]
    settings = model.config.to_dict()
    made = Projected(model=settings, widths=widths, relus=relus).to(model.device)
    own: Any = made.model
    with torch.no_grad():
        chain: Any = getattr(own, classifier_name(own))
        for place, (weight, bias, _) in enumerate(layers):
            _fill(chain.layers[place], weight, bias)
    put_classifier(model, chain)
    made.model = model
    return ModuleStudent(_config(model.config, made), made)


def _one(layers: Sequence[Layer]) -> nn.Linear:
    """Linear layers as one."""
    weight, bias, _ = layers[0]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    for above, shift, _ in layers[1:]:
        weight, bias = above @ weight, above @ bias
        bias = bias if shift is None else bias + shift
    made = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    _fill(made, weight, bias)
    return made


@torch.no_grad()
def _fill(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(torch.zeros_like(linear.bias) if bias is None else bias)


def _config(own: Any, made: Projected) -> StudentConfig:
    """The configuration of a student around a model with one of its own."""
    text = own.get_text_config()
    return StudentConfig(
        student=NAME,
        settings=made.settings,
        architectures=["StudentForSequenceClassification"],
        vocab_size=text.vocab_size,
        pad_token_id=text.pad_token_id,
        problem_type=own.problem_type,
        id2label=own.id2label,
        label2id=own.label2id,
    )
