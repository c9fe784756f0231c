"""Contrastive representation: a document's vectors against those of others, from steps before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from kdcache.errors import ConfigError
from kdcache.losses.base import Match, Over, Pair, Step, check_number, exact, weighted
from kdcache.losses.between_documents import check_vectors, products, vector_matches
from kdcache.losses.layer_maps import LayerMap
from kdcache.plans.subsample import random_below
from kdcache.signals import ModelSizes

EPSILON = 1e-7
SIDES = ("student", "teacher")
OTHER = {"student": "teacher", "teacher": "student"}

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class CRD:
    """Contrastive representation distillation (Tian et al. 2020, arXiv:1910.10699).

    Learned linear maps take the vectors of both sides to `width` columns of unit length. Of every
    document of the cache the last ones are remembered, as a running mean. The student's vector has
    to tell the document's own among the teacher's remembered of `negatives` others, and the
    teacher's among the student's: noise contrastive estimation, added up. Others are drawn from all
    documents by the seed, the step and the document; the paper's code takes those of other classes.

    Memory: two tables of [documents of the cache, width] float32, which lie in checkpoints and are
    copied in every step: 34 MB each for 67,000 documents.

    Attributes:
        weight: factor in the objective; 0 leaves the loss out. The paper takes 0.8.
        vectors: of each document: "cls", its first token's hidden state, "mean", that of all its
            tokens, or "pooled", what a classifier reads.
        layer_map: which layers' hidden states, one of each; "": the last of both.
        width: of what is compared.
        negatives: other documents for each. The paper takes 16384.
        temperature: divides products.
        momentum: share of what was remembered in what is.
        signal: name of the signal it learns from, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "crd"
    over: ClassVar[Over] = "documents"
    weight: float = 1.0
    vectors: str = "cls"
    layer_map: LayerMap = ""
    width: int = 128
    negatives: int = 1024
    temperature: float = 0.07
    momentum: float = 0.5
    signal: str = ""

    def __post_init__(self) -> None:
        check_vectors(self)
        check_number("temperature of crd", self.temperature, positive=True)
        for name in ("width", "negatives"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of crd must be 1 or more; got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum of crd is 0 or more and below 1; got {self.momentum}")

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The vectors of documents, of any widths."""
        found = vector_matches(self, student, teacher)
        if len(found) > 1:
            raise ConfigError(
                f"crd compares one layer of each; layer map {self.layer_map!r} has {len(found)} "
                f"pairs: give it one, such as '{student.layers}:{teacher.layers}'"
            )
        return found

    def learned(self, student: ModelSizes, teacher: ModelSizes) -> nn.Module:
        """The maps of both sides."""
        (match,) = self.matches(student, teacher)
        ours = student.width(match.student.name, match.student.layer)
        widths = {"student": ours, "teacher": teacher.width(match.teacher.name)}
        return nn.ModuleDict({side: nn.Linear(widths[side], self.width) for side in SIDES})

    def remembered(self, documents: int) -> State:
        """What is known of every document before the first step, and of the sums of products."""
        if documents < 2:
            raise ConfigError(f"crd tells a document from others; the cache has {documents}")
        generator = torch.Generator().manual_seed(0)
        bound = (3 / self.width) ** 0.5  # as the paper's code has it
        tables = {
            side: bound * (2 * torch.rand(documents, self.width, generator=generator) - 1)
            for side in SIDES
        }
        return {**tables, "sums": torch.zeros(2)}

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """Sum over documents; remembers their vectors."""
        ((student, teacher, _),) = pairs
        maps: Any = step.learned  # as `learned` made it
        sides = {"student": student, "teacher": teacher.dense()}
        vectors = {
            side: normalize(exact(maps[side](rows.to(maps[side].weight.dtype))), dim=1)
            for side, rows in sides.items()
        }
        docs, documents = step.places, len(step.state["student"])
        index = torch.cat([docs[:, None], self.others(step, documents)], 1)
        rows = contrast_rows(vectors, index, step.state, self.temperature)
        remember(step.state, docs[step.weight > 0], vectors, step.weight > 0, self.momentum)
        return weighted(rows, step.weight)

    def others(self, step: Step, documents: int) -> torch.Tensor:
        """Numbers of those that each document of a batch is told from, [B, negatives] int64; a loss
        of one's own may choose them otherwise.
        """
        return drawn(step.seed, step.number, step.places, documents, self.negatives)


def drawn(seed: int, step: int, docs: torch.Tensor, documents: int, number: int) -> torch.Tensor:
    """Other documents for each of some, [B, number], as likely all: whatever batch it is in."""
    (start,) = np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)
    own = docs.cpu().numpy()[:, None]
    counters = (own * number + np.arange(number)).ravel()
    found = random_below(int(start), counters, np.full(counters.size, documents - 1))
    others = found.astype(np.int64).reshape(len(own), number)
    return torch.from_numpy(others + (others >= own)).to(docs.device)


def contrast_rows(
    vectors: dict[str, torch.Tensor], index: torch.Tensor, state: State, temperature: float
) -> torch.Tensor:
    """Noise contrastive estimation in both directions, of each document in nats, [B].

    Args:
        vectors: of both sides, [B, width], of unit length.
        index: [B, 1 + K] int64: the document's number and those of K others.
        state: vectors of all documents by side, and `sums`, what products of each side add up to in
            all documents; where that is 0, before the first step, it is told from this batch.

    Source: Tian et al. 2020, arXiv:1910.10699.
    """
    documents, others = len(state["student"]), index.shape[1] - 1
    noise, found, sums = others / documents, [], []
    for place, side in enumerate(SIDES):
        known = state[OTHER[side]][index].to(vectors[side].dtype)
        likely = (products(known, vectors[side][:, None])[..., 0] / temperature).exp()
        before = state["sums"][place].to(likely.dtype)
        sums.append(torch.where(before > 0, before, likely.detach().mean() * documents))
        share = likely / sums[-1]
        own = share[:, 0] / (share[:, 0] + noise + EPSILON)
        rest = ((share[:, 1:] + EPSILON) / noise).log1p()  # of noise among both, the negative log
        found.append(rest.sum(1) - own.log())
    state["sums"] = torch.stack(sums).to(state["sums"].dtype)
    return found[0] + found[1]


def remember(
    state: State,
    docs: torch.Tensor,
    vectors: dict[str, torch.Tensor],
    which: torch.Tensor,
    momentum: float,
) -> None:
    """Let what is known of documents [n] follow those of their `vectors` [B, width] of `which`."""
    for side in SIDES:
        before = state[side][docs]
        now = vectors[side].detach()[which].to(before.dtype)
        after = normalize(momentum * before + (1 - momentum) * now, dim=1)
        state[side] = state[side].index_copy(0, docs, after)
