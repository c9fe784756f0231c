"""Run a model on a batch, computing the language-model head at the rows of interest only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kdcache.batch import Batch
from kdcache.signals import Outputs
from kdcache.tasks import Task

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def run_model(model: Any, task: Task, batch: Batch, *, hidden: bool) -> Outputs:
    """Outputs of a transformers model, teacher or student, for a batch.

    Logits have exactly the task's rows: one per document, masked position or token. A language
    model's head runs on those rows only, so [B, L, V] never exists.
    """
    mask = batch.mask
    rows = None
    if task == "masked-lm":
        rows = batch["masked"]
    elif task == "causal-lm":
        rows = mask.flatten().nonzero().squeeze(1)
    accepted = inspect.signature(_unwrapped(model).forward).parameters
    inputs: dict[str, Any] = {k: batch[k] for k in INPUTS if k in batch and k in accepted}
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    with _head_rows(model, rows):
        out = model(**inputs, output_hidden_states=hidden)
    logits = out.logits if rows is None else out.logits.flatten(0, 1)
    if rows is not None and len(logits) != len(rows):
        logits = logits[rows]
    layers = list(out.hidden_states) if hidden else []
    return Outputs(logits=logits, hidden=layers, mask=mask, masked=batch.get("masked"))


def _unwrapped(model: Any) -> Any:
    """The transformers model inside DistributedDataParallel."""
    return getattr(model, "module", model)


@contextmanager
def _head_rows(model: Any, rows: torch.Tensor | None) -> Iterator[None]:
    """Let the head see [1, rows, H] instead of [B, L, H]: language-model heads work row by row."""
    inner = _unwrapped(model).base_model
    if rows is None or inner is _unwrapped(model):
        yield
        return

    def gather(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[rows].unsqueeze(0)
        return output

    handle = inner.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
