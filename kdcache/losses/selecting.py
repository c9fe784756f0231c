"""Documents that a policy keeps, by what the cache knows of them. FEATURES is the table of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn.functional import normalize, softplus

from kdcache.errors import one_of
from kdcache.losses.base import exact
from kdcache.losses.between_documents import VECTORS
from kdcache.losses.selector import Selector
from kdcache.losses.weighed import Asked
from kdcache.plans.subsample import uniforms
from kdcache.signals import ModelSizes

SELECTED = 0x5E1
"""Sets the draws of a selector apart from those of teachers."""
FIRST = ("kept", "chosen")
"""What becomes of the documents of the first of several caches."""
LEAST = -1e4  # the logarithm of a probability that is as good as 0


def confidence(asked: Asked) -> torch.Tensor:
    """The teacher's largest probability, [B]; of several rows the mean."""
    soft = asked.soft_labels
    if hasattr(soft, "logprobs"):
        return asked.mean(exact(soft.logprobs).amax(-1).exp())
    return asked.mean(exact(soft.values).abs().sigmoid().mean(-1))  # each class decided by itself


def entropy(asked: Asked) -> torch.Tensor:
    """Of what the teacher says, in nats, [B], over the classes that are stored; of several rows, or
    classes decided by themselves, the mean."""
    soft = asked.soft_labels
    if hasattr(soft, "logprobs"):
        logprobs = exact(soft.logprobs)
        return asked.mean(-(logprobs.exp() * logprobs.clamp(min=LEAST)).sum(-1))
    values = exact(soft.values)
    return asked.mean((softplus(values) - values * values.sigmoid()).mean(-1))


def length(asked: Asked) -> torch.Tensor:
    """Natural logarithm of the number of tokens, [B]."""
    return asked.batch["attention_mask"].sum(1).double().log()


FEATURES: dict[str, Callable[[Asked], torch.Tensor]] = {
    "confidence": confidence,
    "entropy": entropy,
    "cross-entropy": lambda asked: asked.nats,
    "length": length,
}
"""What a selector may know of a document beside a vector: [B] each."""


def selector(
    asked: Asked,
    *,
    features: tuple[str, ...] = ("confidence", "entropy"),
    vectors: str = "",
    first: str = "kept",
    keep: float = 0.5,
    rate: float = 0.1,
    memory: float = 0.5,
    teacher: str = "",
) -> torch.Tensor:
    """1 or 0, drawn by a policy that learns from scores on the dev set, of which more is better:
    L2A (Feng et al. 2021, arXiv:2101.08106).

    `features` are of FEATURES, and `vectors`, "cls", "mean" or "pooled", are the teacher's behind
    them, scaled to unit length. Of several caches the documents of the first are all "kept", or
    "chosen" from like the others. `keep`, `rate` and `memory` are the policy's, see Selector.
    """
    assert asked.selector is not None
    if first == FIRST[0] and asked.pool.caches > 1 and asked.pool.number == 0:
        return torch.ones(len(asked.batch["docs"]), dtype=torch.float64)
    known = [FEATURES[name](asked).double()[:, None] for name in features]
    if asked.vectors is not None:
        known.append(normalize(asked.document_vectors.double(), dim=1))
    draws = uniforms(asked.batch["docs"].numpy(), asked.seed, asked.step, SELECTED)
    return asked.selector.decide(torch.cat(known, 1), torch.from_numpy(draws))


def make_selector(teacher: ModelSizes, options: Mapping[str, Any]) -> Selector:
    """The policy of `selector`, for features of documents of a teacher of these sizes."""
    for name in options["features"]:
        one_of("feature of a selector", name, FEATURES)
    one_of("first of a selector", options["first"], FIRST)
    vectors, wide = options["vectors"], 0
    if vectors:
        one_of("vectors of a selector", vectors, VECTORS)
        wide = teacher.width("pooled" if vectors == "pooled" else "hidden")
    policy = {name: options[name] for name in ("keep", "rate", "memory")}
    return Selector(len(options["features"]) + wide, **policy)
