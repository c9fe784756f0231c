"""The tokens of the text itself: language modelling."""

from __future__ import annotations

from kdcache.labels.base import LabelKind
from kdcache.labels.classes import cross_entropy

TOKENS = LabelKind(
    name="tokens",
    called="language model",
    hard_rows=cross_entropy,
    metric=lambda labels: "cross_entropy",
)
