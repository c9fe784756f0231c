"""The [data] table of a recipe: the order of documents, and what each counts for."""

from __future__ import annotations

from dataclasses import dataclass

from kdcache.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataOrder:
    """Order of the documents of an epoch.

    Attributes:
        group_by_length: put documents of like length into a batch, so that it needs little padding.
        window: batches among which documents are sorted by length.
        split_pairs: let a loss that compares the documents of a batch with each other see those of
            a micro-batch alone, where a step is cut into several or dealt out to ranks.
    """

    group_by_length: bool = False
    window: int = 50
    split_pairs: bool = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"data.window must be 1 or more; got {self.window}")
