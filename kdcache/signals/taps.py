"""Taps: what can be read out of a model, teacher or student, by name and layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import total_ordering
from typing import Literal

from kdcache.errors import ConfigError
from kdcache.signals.attributing import Attributing


@total_ordering
@dataclass(frozen=True)
class Tap:
    """A value that a model computes for B documents of up to L tokens, by name and layer.

    | name         | layer  | shape                | what it is                                    |
    |--------------|--------|----------------------|-----------------------------------------------|
    | `logits`     |        | [rows, outputs]      | a row per document, token or selected token  |
    | `head`       |        | [rows, H]            | what a language model's output layer reads    |
    | `hidden`     | 0 to N | [B, L, H]            | hidden states; layer 0: the embedding output  |
    | `embeddings` |        | [B, L, H]            | the same as layer 0 of `hidden`               |
    | `pooled`     |        | [B, W]               | what a classifier reads of each document      |
    | `query`      | 1 to N | [B, heads, L, D]     | as block `layer` multiplies it with the keys  |
    | `key`        | 1 to N | [B, key heads, L, D] | likewise; grouped-query models have fewer     |
    | `value`      | 1 to N | [B, key heads, L, D] | what that block's attention takes the mean of |
    | `jacobian`   |        | [B, L, C H]          | the gradient of each of a classifier's C      |
    |              |        |                      | logits at the embedding output, side by side  |
    | `attribution`|        | [B, L, views]        | how much of that gradient lies along each     |
    |              |        |                      | token's embedding: see below                  |

    An attribution is the length of the product, value by value, of a token's embedding with the
    gradient of the negative log-probability of a class at it, over the length of those of all
    tokens of the document; 0 at pads. Up to that length the gradient is that of the class's odds,
    which has digits where the probability has come to 1. Of a single output it is its own gradient.
    What of it is taken, `how` says (AD-KD, Wu et al. 2023, arXiv:2305.10010).

    Query and key are taken after rotary embedding and norms, before scaling. At padded positions
    there is what the model computes for its pads, or zeros where it gets documents of one length
    at a time: finite, and of no meaning. Without a layer, a tap that has layers is all of them.

    Attributes:
        how: the way that one with several ways is taken; None: as `TapKind` says.
    """

    name: str
    layer: int | None = None
    how: Attributing | None = None

    def __lt__(self, other: Tap) -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[str, int, str]:
        return self.name, -1 if self.layer is None else self.layer, repr(self.how)

    def __str__(self) -> str:
        return self.name if self.layer is None else f"{self.name} of layer {self.layer}"


LOGITS, HEAD, EMBEDDINGS = Tap("logits"), Tap("head"), Tap("embeddings")


@dataclass(frozen=True, kw_only=True)
class TapKind:
    """What is the same of a tap in every model.

    Attributes:
        per: what its values have a row for: one of the task's logits, a document or a token.
        width: names of the `ModelSizes` whose product is the width of a row.
        first: number of its first layer; None: it has no layers.
        gradient: whether it is a gradient of a classifier's logits at its embedding output.
        how: the way it is taken where a `Tap` does not say.
    """

    per: Literal["row", "document", "token"]
    width: tuple[str, ...] = ("hidden",)
    first: int | None = None
    gradient: bool = False
    how: Attributing | None = None


KEYS = ("key_heads", "head_width")
TAP_KINDS: dict[str, TapKind] = {
    "logits": TapKind(per="row", width=("outputs",)),
    "head": TapKind(per="row"),
    "hidden": TapKind(per="token", first=0),
    "embeddings": TapKind(per="token"),
    "pooled": TapKind(per="document"),
    "query": TapKind(per="token", first=1, width=("heads", "head_width")),
    "key": TapKind(per="token", first=1, width=KEYS),
    "value": TapKind(per="token", first=1, width=KEYS),
    "jacobian": TapKind(per="token", width=("outputs", "hidden"), gradient=True),
    "attribution": TapKind(per="token", width=("outputs",), gradient=True, how=Attributing()),
}
"""Every tap there is; `kdcache.models.TAPS` says how each is read."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a model, teacher or student, as its configuration tells them.

    Attributes:
        outputs: classes or vocabulary.
        hidden: width of the hidden states.
        layers: blocks.
        heads: of every block's attention. What a configuration, or a cache that stores nothing of
            attention, does not tell is None, here and in the next two.
        key_heads: fewer than `heads` in models with grouped queries.
        head_width: width of a query, a key or a value of one head.
        declared: widths of the layers of each tap, of a model that declares them and gives no
            others; None: they are products of the sizes.
        peers: how many students are trained with it as one module.
    """

    outputs: int
    hidden: int
    layers: int
    heads: int | None = None
    key_heads: int | None = None
    head_width: int | None = None
    declared: Mapping[str, Sequence[int]] | None = field(default=None, hash=False)
    peers: int = 0

    def width(self, tap: str, layer: int | None = None) -> int:
        """Values of a row of a tap; ConfigError if the configuration does not tell."""
        if self.declared is not None and tap != LOGITS.name:
            if not TAP_KINDS[tap].gradient:
                return self._declared(tap, layer)
            known = replace(self, declared=None, hidden=self._declared(EMBEDDINGS.name, None))
            return known.width(tap)
        factors = {name: getattr(self, name) for name in TAP_KINDS[tap].width}
        unknown = [name for name, size in factors.items() if size is None]
        if unknown:
            raise ConfigError(
                f"{tap}: the configuration of the model does not tell its {unknown[0]}; take "
                "hidden states instead (hidden:layers=...)"
            )
        return math.prod(factors.values())

    def _declared(self, tap: str, layer: int | None) -> int:
        declared = self.declared or {}
        first = TAP_KINDS[tap].first or 0
        widths = dict(enumerate(declared.get(tap, ()), first))
        if not widths or (layer is not None and layer not in widths):
            names = ", ".join((LOGITS.name, *declared))
            raise ConfigError(
                f"the model gives no {Tap(tap, layer)}: it declares {names} (the widths of further "
                "taps go into its attribute `taps`)"
            )
        return widths[max(widths) if layer is None else layer]

    def to_json(self, taps: Iterable[Tap] = ()) -> dict[str, int]:
        """Outputs, hidden and layers, and what the width of `taps` depends on beside them."""
        names = [name for tap in taps for name in TAP_KINDS[tap.name].width]
        return {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.default is MISSING or entry.name in names
        }
