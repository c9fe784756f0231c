"""Run a model on a batch, computing the language-model head at the rows of interest only."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.padding import by_length, joined, padded
from kdcache.plans.batch import Batch
from kdcache.signals import Head, Outputs
from kdcache.tasks import Task

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EQUAL = "kdcache_equal_lengths"  # attribute of a model whose documents are not to be padded


def run_model(
    model: Any, task: Task, batch: Batch, *, hidden: bool, head: nn.Linear | None = None
) -> Outputs:
    """Outputs of a transformers model, teacher or student, for a batch.

    Logits have exactly the task's rows: one per document, masked position or token. A language
    model's head runs on those rows only, so [B, L, V] never exists. With `head`, which `plain_head`
    found in the model, it does not run at all: the outputs hold it and what it would have seen.

    Pads are the model's own; a model that `check_alone` found to say something else with them
    gets documents of one length at a time.
    """
    pieces = by_length(batch) if getattr(_unwrapped(model), EQUAL, False) else []
    if len(pieces) < 2:
        return _run(model, task, batch, hidden=hidden, head=head)
    said = [_run(model, task, piece.batch, hidden=hidden, head=head) for piece in pieces]
    return joined(task, batch, pieces, said)


def _run(model: Any, task: Task, batch: Batch, *, hidden: bool, head: nn.Linear | None) -> Outputs:
    mask = batch.mask
    rows = None
    if task == "masked-lm":
        rows = batch["masked"]
    elif task == "causal-lm":
        rows = mask.flatten().nonzero().squeeze(1)
    with ExitStack() as stack:
        taken = None if head is None else stack.enter_context(_not_applied(head))
        out = _forward(model, batch, rows, hidden=hidden)
    if hidden and getattr(out, "hidden_states", None) is None:
        raise ModelError(
            f"{type(_unwrapped(model)).__name__} tells of no hidden states: leave out the signal "
            "or the loss that reads them"
        )
    layers = list(out.hidden_states) if hidden else []
    said: dict[str, Any] = {"hidden": layers, "mask": mask, "masked": batch.get("masked")}
    if head is None or taken is None:
        return Outputs(logits=_chosen(out.logits, rows), **said)
    (seen,) = taken
    unapplied = Head(
        hidden=_chosen(seen["input"], rows),
        weight=head.weight,
        bias=head.bias,
        autocast=seen["autocast"],
    )
    shape = (len(unapplied.hidden), head.out_features)
    return Outputs(logits=torch.empty(shape, device="meta"), head=unapplied, **said)


def plain_head(model: Any, batch: Batch) -> nn.Linear | None:
    """The layer whose output a language model's logits are; None if there is none.

    Some models scale or cap what their head says, or multiply by its weight elsewhere. To find out,
    the model is run once on `batch`, dropout off, for the logits of the first token.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return None
    said: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _module, _inputs, output: said.append(output))
    try:
        with untouched(model):
            first = torch.zeros(1, dtype=torch.int64, device=batch.mask.device)
            logits = _forward(model, batch, first, hidden=False).logits
    finally:
        handle.remove()
    return head if len(said) == 1 and torch.equal(said[0], logits) else None


@contextmanager
def untouched(*models: Any) -> Iterator[None]:
    """Dropout off and no gradients; afterwards modes and random numbers are what they were."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    places = {model.device for model in models if model.device.type == "cuda"}
    numbers = np.random.get_state()  # noqa: NPY002  # this one, which BigBird seeds
    try:
        for model in models:
            model.eval()
        with torch.random.fork_rng(places), torch.no_grad():
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002  # the same
        for module, training in modes:
            module.training = training


def _forward(model: Any, batch: Batch, rows: torch.Tensor | None, *, hidden: bool) -> Any:
    accepted = inspect.signature(_unwrapped(model).forward).parameters
    inputs: dict[str, Any] = {k: batch[k] for k in INPUTS if k in batch and k in accepted}
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    config = _unwrapped(model).config
    with _head_rows(model, rows), padded(config, batch, pools=rows is None) as ids:
        return model(**(inputs | {"input_ids": ids}), output_hidden_states=hidden)


def _chosen(said: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """The task's rows of what a head said or saw, unless only they went through it."""
    if rows is None:
        return said
    flat = said.flatten(0, -2)
    return flat if len(flat) == len(rows) else flat[rows]


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


@contextmanager
def _not_applied(head: nn.Linear) -> Iterator[list[dict[str, Any]]]:
    """Let the model's head hand on its input, and keep it with the autocast of that moment.

    It is kept here because what the model returns may have been converted on its way out.
    """
    seen: list[dict[str, Any]] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        on = torch.is_autocast_enabled(kind)
        seen.append({"input": x, "autocast": torch.get_autocast_dtype(kind) if on else None})
        return x

    vars(head)["forward"] = keep
    try:
        yield seen
    finally:
        del vars(head)["forward"]
