"""Embeddings that do not hang on context, as a classifier of documents."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from kdcache.students.checks import require_sizes


class StaticEmbeddings(nn.Module):
    """The mean of a document's word embeddings, through dense layers to its logits.

    No word is read together with another, so it is as fast as a lookup: fastText with `layers=0`
    (Joulin et al. 2016, arXiv:1607.01759), a deep averaging network with more (Iyyer et al. 2015).
    Pads are left out of the mean.

    Args:
        vocabulary: ids it has embeddings for.
        outputs: classes, or 1 for a value.
        embedding: width of the word embeddings.
        dense: width of the layers between mean and logits.
        layers: how many of those there are.
        dropout: of whole words, as deep averaging networks have it, while it trains.

    Raises ConfigError for sizes below 1 (`layers`: 0), or a dropout outside [0, 1).
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        outputs: int,
        embedding: int = 256,
        dense: int = 256,
        layers: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.settings: dict[str, Any] = require_sizes(
            "static",
            least={"layers": 0},
            vocabulary=vocabulary,
            outputs=outputs,
            embedding=embedding,
            dense=dense,
            layers=layers,
            dropout=dropout,
        )
        widths = [embedding, *[dense] * layers]
        self.taps = {"embeddings": embedding, "pooled": widths[-1]}
        self.embeddings = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(nn.Linear(ours, above) for ours, above in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], outputs)
        self.dropout = dropout

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Logits [B, outputs], `embeddings` [B, L, width] and `pooled` [B, dense]."""
        words = self.embeddings(input_ids)
        weight = attention_mask.unsqueeze(-1).to(words.dtype)
        if self.training and self.dropout:
            weight = self._some(weight)
        pooled = (words * weight).sum(1) / weight.sum(1)
        for layer in self.layers:
            pooled = torch.relu(layer(pooled))
        return {"logits": self.classifier(pooled), "embeddings": words, "pooled": pooled}

    def _some(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights [B, L, 1] without some words; the first is left in, lest none be."""
        stays = torch.rand_like(weight) >= self.dropout
        stays[:, 0] = True
        return weight * stays
