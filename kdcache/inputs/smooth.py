"""Inputs smoothed by a masked language model: tokens are partly what could stand in their place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import embedding_bag

from kdcache.errors import ConfigError
from kdcache.inputs.base import Asked, WordsOf
from kdcache.losses.base import check_number, exact
from kdcache.signals import SoftLabels


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """Text smoothing: (lam p + (1 - lam) onehot(token)) @ table, p what the model says there.

    Of p the cache holds the likeliest words; they are given all of its mass. Special tokens are
    smoothed like all others.

    Source: Wu et al. 2020, arXiv:2005.03848, of a distribution over the whole vocabulary; as an
    augmentation Wu et al. 2022 (ACL), arXiv:2202.13840.

    Attributes:
        lam: share of what the masked language model says, in [0, 1].
        temperature: what its logits are divided by.
        k: how many of the likeliest words count; 0: all that the cache holds.
        teacher: which of the cache's teachers the model is; "": the only one that is such a model.
    """

    kind: ClassVar[str] = "smooth"
    lam: float = 0.5
    temperature: float = 1.0
    k: int = 0
    teacher: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"lam of smoothed inputs must lie in [0, 1]; got {self.lam}")
        check_number("temperature of smoothed inputs", self.temperature, positive=True)
        if self.k < 0:
            raise ConfigError(f"k of smoothed inputs must be 0 or more; got {self.k}")

    @property
    def asks(self) -> WordsOf:
        """The words at that temperature."""
        return WordsOf(self.teacher, self.temperature)

    def embed(self, asked: Asked) -> torch.Tensor:
        """The smoothed embeddings, [N, H]."""
        assert asked.words is not None
        return smoothed(
            asked.table,
            asked.ids,
            asked.words,
            lam=self.lam,
            temperature=self.temperature,
            k=self.k,
        )


def smoothed(
    table: torch.Tensor,
    ids: torch.Tensor,
    words: SoftLabels,
    *,
    lam: float,
    temperature: float = 1.0,
    k: int = 0,
) -> torch.Tensor:
    """Embeddings of N tokens and of what could stand in their place, [N, H] of the table's dtype.

    Only the rows of the table that are named are read, and their gradients are summed into it: the
    distribution over the vocabulary, [N, V], never exists.

    Args:
        table: [V, H] floating, word embeddings.
        ids: [N] int64, tokens.
        words: log-probabilities at T = 1 in nats of N rows. Ids that the table has no row for are
            left out; a row of such ids alone leaves its token as it is.
        lam: share of the words.
        temperature: p of a word is p^(1/T) over the sum of those that count.
        k: how many of the likeliest words of a row count; 0: all.
    """
    known = (words.ids >= 0) & (words.ids < len(table))
    logprobs, others = exact(words.logprobs).masked_fill(~known, -math.inf), words.ids
    if 0 < k < others.shape[1]:
        logprobs, places = logprobs.topk(k)
        others = others.gather(1, places)
    there = (logprobs > -math.inf).any(1, keepdim=True)
    share = lam * torch.where(there, (logprobs / temperature).softmax(1), 0.0)
    weights = torch.cat([share, 1 - lam * there.to(share.dtype)], 1).to(table.dtype)
    bags = torch.cat([others.clamp(0, len(table) - 1), ids.unsqueeze(1)], 1)
    return embedding_bag(bags, table, mode="sum", per_sample_weights=weights)
