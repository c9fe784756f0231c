"""Taps: what can be read out of a model, teacher or student, by name and layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import total_ordering
from typing import Any, Literal

import torch

from kdcache.errors import ConfigError
from kdcache.signals.attributing import Attributing
from kdcache.tasks import STORED, RowSpace, Space, Subset, Task

POSITIONS: dict[str, Space] = {
    "cls": "document",
    "mean": "document",
    "all": "token",
    "selected": "selected",
}
"""Which tokens of a document are stored, and the row space they make."""
OTHER_NAMES = {STORED["selected"]: "selected"}
"""What positions may also be called: their names in manifests, which masked-lm has given them."""


def positions_of(name: str) -> str:
    """Positions by their name, given that or what they are called in manifests."""
    return OTHER_NAMES.get(name, name)


def stored_positions(positions: str) -> str:
    """What manifests call positions."""
    return next((old for old, name in OTHER_NAMES.items() if name == positions), positions)


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


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How a block turns queries and keys into attention, as it did for one batch.

    Attributes:
        scaling: factor of query times key.
        softcap: bound on the scores, as Gemma 2 has it; None: no bound.
        causal: whether, without a mask, a token attends to none behind it.
        mask: as the attention got it, [B or 1, heads or 1, L, L]: bool, True where a token attends,
            or floats to add; None: no mask.
    """

    scaling: float
    softcap: float | None = None
    causal: bool = False
    mask: torch.Tensor | None = None

    def scores(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """What the block takes the softmax of, [B, heads, L, L]: rows are queries.

        `query` is [B, heads, L, D] and `key` [B, key heads, L, D]. Where a token does not attend
        there is the least number of the dtype.
        """
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ key.transpose(-1, -2) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        mask = self.full_mask(len(query), query.shape[2], query.device)
        if mask.dtype != torch.bool:
            return scores + mask
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)

    def full_mask(self, documents: int, length: int, device: torch.device) -> torch.Tensor:
        """The mask for every document, [documents, heads or 1, length, length], whatever it is."""
        mask = self.mask
        if mask is None:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
            mask = mask.tril() if self.causal else mask
        return mask.expand(documents, -1, -1, -1)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a language model, not applied: logits are `hidden @ weight.T + bias`.

    Attributes:
        hidden: [rows of the task's logits, H].
        weight: [V, H].
        bias: [V].
        autocast: dtype in which the model would have applied it; None: that of `hidden`.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    autocast: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """That of the logits."""
        return len(self.hidden), len(self.weight)

    def first(self, outputs: int) -> Head:
        """The head of the first `outputs` alone: others get no mass, and no gradient."""
        bias = None if self.bias is None else self.bias[:outputs]
        return replace(self, weight=self.weight[:outputs], bias=bias)

    def as_in_model(self) -> AbstractContextManager[Any]:
        """The autocast in which the model would have applied it."""
        kind, on = self.hidden.device.type, self.autocast is not None
        return torch.autocast(kind, dtype=self.autocast, enabled=on)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a model computed for one padded batch of B documents of up to L tokens.

    Attributes:
        values: the tensors that were asked for; `Tap` says their shapes.
        mask: [B, L] bool, True where there is a token.
        selected: flat indices into B * L of the positions that the task selects, if it does.
        head: where `head` was asked for, that and the weights it would have met.
        attention: by layer, how queries and keys make scores, where one of them was asked for.
        peers: what the students computed that are trained with this one.
        moved: what the model computed at the points of another teacher, if it was run there too.
    """

    values: Mapping[Tap, torch.Tensor]
    mask: torch.Tensor
    selected: torch.Tensor | None = None
    head: Head | None = None
    attention: Mapping[int, Attention] = field(default_factory=dict)
    peers: tuple[Activations, ...] = ()
    moved: Activations | None = None

    @property
    def students(self) -> list[Activations]:
        """These and those of the peers, each with all others as its peers."""
        if not self.peers:
            return [self]
        every = [replace(one, peers=()) for one in (self, *self.peers)]
        return [
            replace(one, peers=(*every[:place], *every[place + 1 :]))
            for place, one in enumerate(every)
        ]

    def __getitem__(self, tap: Tap) -> torch.Tensor:
        return self.values[tap]

    @property
    def logits_or_head(self) -> torch.Tensor | Head:
        """The logits, [rows, outputs]; of a language model asked for its head alone, that."""
        return self.values[LOGITS] if LOGITS in self.values or self.head is None else self.head

    def layers(self, name: str) -> list[torch.Tensor]:
        """The values of a tap at every layer there is, the lowest first."""
        return [self.values[tap] for tap in sorted(self.values) if tap.name == name]

    def states(self, tap: Tap) -> torch.Tensor:
        """A tap of tokens as [B, L, width]: the heads of a query side by side."""
        value = self.values[tap]
        return value.transpose(1, 2).flatten(2) if value.dim() == 4 else value

    def rows(self, tap: Tap, positions: str = "all") -> torch.Tensor:
        """Rows of a tap as a cache stores them, pads left out.

        Of a tap of tokens those at `positions`, as `select` takes them: [tokens, width] of all.
        Others are rows already: [B, W] of `pooled`, [rows, outputs] of `logits`.
        """
        states = self.states(tap)
        if states.dim() == 2:
            return states
        return select(states, positions, self.mask, self.selected)

    def at_rows(self, task: Task, space: RowSpace, rows: torch.Tensor | None) -> Activations:
        """These at the rows of a subset of a space: `mask` or `selected` has only those.

        `rows` [n] int64 are numbers among all rows of the batch, as `Plan.sampled_rows` gives them.
        Where `space` is no subset nothing changes.
        """
        if not isinstance(space, Subset):
            return self
        assert rows is not None, "which rows a subset keeps is to be read with it"
        chosen = of_subset(self.mask, self.selected, space, rows)
        if task.rows != space.of:
            return replace(self, **chosen)
        values = {
            tap: value[rows] if TAP_KINDS[tap.name].per == "row" else value
            for tap, value in self.values.items()
        }
        head = self.head and replace(self.head, hidden=values[HEAD])
        return replace(self, values=values, head=head, **chosen)


def select(
    hidden: torch.Tensor, positions: str, mask: torch.Tensor, selected: torch.Tensor | None
) -> torch.Tensor:
    """Rows of a layer [B, L, H] at `positions`: [B, H], [tokens, H] or [selected, H].

    Means are float32 at least: what half precision holds of a token it need not hold of their sum.
    """
    if positions == "cls":
        return hidden[:, 0]
    if positions == "mean":
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = mask.unsqueeze(-1).to(wide)
        return (hidden.to(wide) * weights).sum(1) / weights.sum(1)
    if positions == "all":
        return hidden[mask]
    if selected is None:
        raise ConfigError("positions=selected needs a task that selects tokens, such as masked-lm")
    return hidden.flatten(0, 1)[selected]


def of_subset(
    mask: torch.Tensor, selected: torch.Tensor | None, space: Subset, rows: torch.Tensor
) -> dict[str, Any]:
    """`mask` [B, L], or `selected`, with no more than the `rows` of a subset, by its name."""
    if space.of == "token":
        flat = mask.flatten().nonzero().squeeze(1)[rows]
        mask_of_rows = torch.zeros_like(mask).flatten().index_fill(0, flat, True)
        return {"mask": mask_of_rows.view_as(mask)}
    assert selected is not None
    return {"selected": selected[rows]}
