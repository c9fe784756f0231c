"""Positions: which tokens of a document have a row."""

from __future__ import annotations

from typing import Any

import torch

from kdcache.errors import ConfigError
from kdcache.tasks import STORED, Space, Subset

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
        return _of_tokens(hidden, mask)
    if selected is None:
        raise ConfigError("positions=selected needs a task that selects tokens, such as masked-lm")
    return hidden.flatten(0, 1)[selected]


def _of_tokens(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The rows where there is a token: as `hidden[mask]`, whose gradient adds up value by value."""
    rows, places = hidden.flatten(0, 1), mask.flatten().nonzero().squeeze(1)
    return rows if len(places) == len(rows) else rows.index_select(0, places)


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
