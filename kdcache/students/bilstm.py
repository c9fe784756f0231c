"""A bidirectional LSTM as a classifier of documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kdcache.students.checks import require_sizes


class BiLSTM(nn.Module):
    """Reads a document's words in both directions and classifies what both ends have seen.

    The last state of either direction, of the topmost layer, goes through a dense layer with ReLU
    to the logits. Pads are never read: a document gets the same logits in every batch.

    Source: Tang et al. 2019, arXiv:1903.12136, who take 150 or 300 states a direction and 200 or
    400 in the dense layer.

    Args:
        vocabulary: ids it has embeddings for.
        outputs: classes, or 1 for a value.
        embedding: width E of the word embeddings.
        hidden: width of a direction's states.
        layers: LSTMs on top of each other.
        dense: width of the layer before the logits.
        dropout: of the embeddings, between layers and before the logits, while it trains.

    Raises ConfigError for sizes below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        outputs: int,
        embedding: int = 300,
        hidden: int = 150,
        layers: int = 1,
        dense: int = 200,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.settings: dict[str, Any] = require_sizes(
            "bilstm",
            vocabulary=vocabulary,
            outputs=outputs,
            embedding=embedding,
            hidden=hidden,
            layers=layers,
            dense=dense,
            dropout=dropout,
        )
        self.taps = {"hidden": [embedding, *[2 * hidden] * layers], "pooled": dense}
        widths = [embedding, *[2 * hidden] * (layers - 1)]
        self.embeddings = nn.Embedding(vocabulary, embedding)
        self.forwards = nn.ModuleList(nn.LSTM(w, hidden, batch_first=True) for w in widths)
        self.backwards = nn.ModuleList(nn.LSTM(w, hidden, batch_first=True) for w in widths)
        self.dense, self.classifier = nn.Linear(2 * hidden, dense), nn.Linear(dense, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        """Logits [B, outputs], `hidden` [B, L, width] of every layer and `pooled` [B, dense]."""
        back = _turned(attention_mask)
        states = [self.embeddings(input_ids)]
        for ahead, behind in zip(self.forwards, self.backwards, strict=True):
            read = self.dropout(states[-1])
            seen, _ = ahead(read)
            turned, _ = behind(_at(read, back))
            states.append(torch.cat([seen, _at(turned, back)], -1))
        pooled = torch.relu(self.dense(_ends(states[-1], attention_mask)))
        return {
            "logits": self.classifier(self.dropout(pooled)),
            "hidden": states,
            "pooled": pooled,
        }


def _turned(mask: torch.Tensor) -> torch.Tensor:
    """[B, L], for each place of a document the place it has when read from its end; pads stay.

    Turned round like this, a document without its pads is what an LSTM reads first, so it needs no
    packing, which no exporter knows.
    """
    places = torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)
    lengths = mask.sum(1, keepdim=True)
    return torch.where(places < lengths, lengths - 1 - places, places)


def _at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """States [B, L, W] in the order of `places`, [B, L]."""
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _ends(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, 2 H]: the forward state at a document's last word, the backward state at its first."""
    half = states.shape[-1] // 2
    last = (mask.sum(1) - 1).view(-1, 1, 1).expand(-1, 1, half)
    return torch.cat([states[..., :half].gather(1, last).squeeze(1), states[:, 0, half:]], -1)
