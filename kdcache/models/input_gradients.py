"""Gradients of a classifier's logits at its embedding output: taps `jacobian` and `attribution`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdcache.errors import ConfigError, ModelError
from kdcache.models.attentions import FUNCTIONS
from kdcache.models.first_block import FirstRead, first_read
from kdcache.models.recording import (
    Forward,
    Taps,
    name_of,
    require_plain,
    states_of,
    unwrapped,
)
from kdcache.signals.attributing import Attributing
from kdcache.signals.taps import EMBEDDINGS, TAP_KINDS, Tap


class Point(NamedTuple):
    """Where a classifier is differentiated: its logits [B, C], and states [B, L, H] at which."""

    logits: torch.Tensor
    states: torch.Tensor


PointOf = Callable[[Forward, float], Point]
"""The point at a share of the embedding output, 1 for that itself; ModelError if there is none."""


@contextmanager
def differentiable(graph: bool) -> Iterator[None]:
    """Let a model be differentiated where nobody asks for gradients; twice, with `graph`.

    What is fused, attention and cuDNN's recurrent layers, has no second derivative.
    """
    with ExitStack() as stack:
        if graph:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        else:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def block_inputs(model: Any, taps: Taps) -> Iterator[FirstRead]:
    """Keep what the first block reads; ModelError for a model that cannot be differentiated so."""
    require_plain(model, "an input gradient")
    inner = unwrapped(model)
    _require_one_pass(inner)
    with _reading(inner, 1.0) as seen:
        yield seen


def _reading(model: Any, scale: float) -> AbstractContextManager[FirstRead]:
    """Scale what the first block reads, and keep it, with a gradient whatever is trained."""

    def scaled(states: torch.Tensor) -> torch.Tensor:
        states = states if scale == 1 else states * scale
        return states if states.requires_grad else states.detach().requires_grad_()

    return first_read(model, scaled, without=f": {INSTEAD}")


def _require_one_pass(model: Any) -> None:
    """Raise ModelError for a model whose blocks are run again for gradients, or fused for good."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    if attention not in (None, *FUNCTIONS):
        raise ModelError(
            f"{name_of(model)} attends as {attention}, which has no second derivative: load it "
            "with attn_implementation='sdpa'"
        )
    if any(m.training and getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise ModelError(
            "input gradients cannot be taken under gradient checkpointing: leave "
            "training.gradient_checkpointing out, or the loss that reads them"
        )


def block_input(forward: Forward, share: float) -> Point:
    """A transformers model at a share of its embedding output, as its first block reads it."""
    seen: FirstRead = forward.recorded[block_inputs]
    if share != 1:
        with _reading(forward.model, share) as seen:
            logits = forward.again().logits
    else:
        logits = forward.out.logits
        _require_embeddings(forward, seen.states)
    assert seen.states is not None, "the model has run"
    return Point(logits, seen.states)


def _require_embeddings(forward: Forward, read: torch.Tensor | None) -> None:
    """Raise ModelError unless the first block has read what the model calls its embeddings."""
    told = states_of(forward)[0]
    if read is None or (told is not read and not torch.equal(told, read)):
        raise ModelError(
            f"{name_of(forward.model)} tells of other embeddings than its first block reads: "
            f"{INSTEAD}"
        )


INSTEAD = "its gradient cannot be taken there; leave out the signal or the loss that reads it"


def declared_embeddings(forward: Forward, share: float) -> Point:
    """A module that returns the tap `embeddings`, at that."""
    if share != 1:
        raise ModelError(
            f"{name_of(forward.model)} cannot be run from a share of its embeddings, as ig_steps "
            "above 1 asks for: leave ig_steps out, or train a transformers model"
        )
    (states,) = forward.out.taps[EMBEDDINGS.name]
    return Point(forward.out.logits, states)


def jacobian(point_of: PointOf, forward: Forward, tap: Tap) -> torch.Tensor:
    """The gradient of every logit, side by side: [B, L, C * H]."""
    _require_classifier(forward, tap)
    point = point_of(forward, 1.0)
    found = [_gradient(forward, one.sum(), point.states) for one in point.logits.unbind(1)]
    return torch.cat(found, -1)


def attribution(point_of: PointOf, forward: Forward, tap: Tap) -> torch.Tensor:
    """Attributions of every view, [B, L, views], in float32 at least: `Tap` says what they are."""
    _require_classifier(forward, tap)
    how = tap.how or TAP_KINDS[tap.name].how
    assert how is not None, "the table says how where the tap does not"
    classes = _classes(forward, how)
    shares = [(k + 1) / how.ig_steps for k in reversed(range(how.ig_steps))]
    embedding: torch.Tensor | None = None
    slopes: list[list[torch.Tensor]] = []
    gradients: list[list[torch.Tensor]] = []
    for share in shares:  # one after the other: without a graph, one is there at a time
        point = point_of(forward, share)
        embedding = point.states if embedding is None else embedding
        odds = [_odds_against(point.logits, view) for view in classes]
        slopes.append([_slope(one, point.logits.shape[1]) for one in odds])
        gradients.append([_gradient(forward, one.sum(), point.states) for one in odds])
    assert embedding is not None
    views = [
        _lengths(_mean(own, steps) * embedding.to(own[0].dtype), how, forward.batch.mask)
        for own, steps in zip(zip(*gradients, strict=True), zip(*slopes, strict=True), strict=True)
    ]
    return torch.stack(views, -1)


def _require_classifier(forward: Forward, tap: Tap) -> None:
    if forward.rows is not None:
        raise ConfigError(
            f"{tap} is a gradient of what a classifier says of a document; "
            f"{name_of(forward.model)} is run for rows of tokens: leave it out"
        )


def _classes(forward: Forward, how: Attributing) -> list[torch.Tensor]:
    """The class of each document in every view, [B] int64."""
    documents, outputs = forward.out.logits.shape
    device = forward.batch.mask.device
    if how.views == "all" or outputs == 1:
        return [torch.full((documents,), c, device=device) for c in range(outputs)]
    if outputs == 2 and how.ig_steps == 1:  # the odds of one are those of the other, turned over
        return [torch.zeros(documents, dtype=torch.int64, device=device)]
    labels = forward.batch.get("labels")
    # Asked once, where the teacher runs: a student's step would wait for its device.
    if labels is None or (not forward.graph and bool((labels < 0).any())):
        steps = f" in {how.ig_steps} steps" if how.ig_steps > 1 else ""
        raise ConfigError(
            f"attribution:views=one of {outputs} classes{steps} is that of the label of each "
            "document, and some have none: take views=all, or leave those documents out"
        )
    return [labels.clamp(min=0)]


def _odds_against(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The logarithm of the odds against a class, [B]; of a single output that itself."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[1] == 1:
        return logits[:, 0]
    chosen = nn.functional.one_hot(classes, logits.shape[1]).bool()
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(1)
    return others - logits.gather(1, classes[:, None]).squeeze(1)


def _slope(odds: torch.Tensor, outputs: int) -> torch.Tensor:
    """The logarithm of what the gradient of -log p is of that of the odds, [B]: of 1 - p."""
    return nn.functional.logsigmoid(odds) if outputs > 1 else torch.zeros_like(odds)


def _gradient(forward: Forward, value: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Of a sum over documents: none has a part in another's."""
    found: torch.Tensor | None = None
    if states.requires_grad:
        (found,) = torch.autograd.grad(
            value, [states], retain_graph=True, create_graph=forward.graph, allow_unused=True
        )
    if found is None:
        raise ModelError(
            f"the logits of {name_of(forward.model)} are not made of the embeddings that it tells "
            f"of, or those are not trained: {INSTEAD}"
        )
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _mean(gradients: tuple[torch.Tensor, ...], slopes: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The mean over points of the gradient of -log p, [B, L, H], up to a factor for each document.

    Where p is close to 1 at all points, only the ratios of their slopes have digits.
    """
    if len(gradients) == 1:
        return gradients[0]
    largest = torch.stack(slopes).detach().amax(0)
    terms = [
        (slope - largest).exp()[:, None, None] * gradient
        for gradient, slope in zip(gradients, slopes, strict=True)
    ]
    return torch.stack(terms).sum(0)


def _lengths(products: torch.Tensor, how: Attributing, mask: torch.Tensor) -> torch.Tensor:
    """The length of each token's products [B, L, H], over that of its document's: [B, L].

    Zeros where there is no token, or nothing in all of a document.
    """
    if how.topk is not None and how.topk < products.shape[-1]:
        products = products.abs().topk(how.topk, -1).values
    products = products.masked_fill(~mask[..., None], 0.0)
    lengths: torch.Tensor = torch.linalg.vector_norm(products, dim=-1)
    whole = lengths.square().sum(1, keepdim=True)
    return lengths / torch.where(whole > 0, whole, 1.0).sqrt()


GRADIENTS = {"jacobian": jacobian, "attribution": attribution}
"""How a tap that is a gradient is worked out, by its name, from a point."""
