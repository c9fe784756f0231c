"""A torch classifier as an ONNX graph."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kdcache.errors import ModelError
from kdcache.models.run import INPUTS, untouched

LIMIT = 2_000_000_000  # bytes; a file of ONNX holds no more than 2 GiB
EXAMPLE = (3, 16)  # texts and tokens the graph is traced with; it takes any number of both


class _Logits(torch.nn.Module):
    """The model as a function of its inputs alone."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        return self.model(**given, **self.options).logits


def export_graph(model: Any, path: Path, *, name: str, token_types: bool) -> None:
    """Write a classifier of transformers' to the ONNX file `path`.

    Inputs are `input_ids`, `attention_mask` and, where the model takes them and `token_types`,
    `token_type_ids`, int64 [batch, length]; the output is `logits`, float32 [batch, classes].

    Raises ModelError for a model that torch cannot export, or of more than 2 GB.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LIMIT:
        raise ModelError(
            f"{name} has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB: choose a "
            "smaller model"
        )
    inputs = _example(model, token_types)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    accepted = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted else {}
    try:
        with _silence(), untouched(model):
            program = torch.onnx.export(
                _Logits(model, options).eval(),
                kwargs=inputs,
                dynamo=True,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(inputs, dynamic),
                external_data=False,
                verbose=False,
            )
            assert program is not None
            proto = program.model_proto
    except Exception as error:  # whatever a model's code may do that cannot be traced
        raise ModelError(
            f"torch cannot export {name} to ONNX ({_cause(error)}): serve it with torch"
        ) from error
    _tidy(proto)
    path.write_bytes(proto.SerializeToString())


def _example(model: Any, token_types: bool) -> dict[str, torch.Tensor]:
    texts, tokens = EXAMPLE
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(texts * tokens).reshape(texts, tokens) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, tokens // 2 :] = 0
    values = dict(zip(INPUTS, (ids, mask, torch.zeros_like(ids)), strict=True))
    accepted = inspect.signature(model.forward).parameters
    if not token_types or "token_type_ids" not in accepted:
        del values["token_type_ids"]
    return values


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter tells of its own workings to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": .")


def _tidy(proto: Any) -> None:
    """Name the sizes of inputs and outputs, and drop where on this machine each node comes from."""
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for value in graph.input:
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "length"), strict=True):
            axis.dim_param = name
    graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
