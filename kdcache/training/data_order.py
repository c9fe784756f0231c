"""The [data] table of a recipe: the order of documents, and what each counts for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcache.errors import ConfigError
from kdcache.training.weighting import Weighting, weighting_of


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """Order of the documents of an epoch, and their weights.

    Attributes:
        group_by_length: put documents of like length into a batch, so that it needs little padding.
        window: batches among which documents are sorted by length.
        split_pairs: let a loss that compares the documents of a batch with each other see those of
            a micro-batch alone, where a step is cut into several or dealt out to ranks.
        example_weights: what each document counts for: a name of EXAMPLE_WEIGHTS, or a table of its
            `name`, its options and `mean`; "": all count alike.
        points: whether one of the caches has to be of points (`kdcache.ascend`), without which a
            recipe would be another one.
    """

    group_by_length: bool = False
    window: int = 50
    split_pairs: bool = False
    example_weights: str | dict[str, Any] = ""
    points: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"data.window must be 1 or more; got {self.window}")
        _ = self.weighting  # which checks itself

    @property
    def weighting(self) -> Weighting | None:
        """How documents are weighed; None: all count alike."""
        return weighting_of(self.example_weights)
