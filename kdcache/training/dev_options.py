"""How a student is chosen while it trains: by its score on a dev set, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from kdcache.errors import ConfigError
from kdcache.manifest import Json

EPOCH = "epoch"


@dataclass(frozen=True, kw_only=True)
class DevOptions:
    """The [dev] table of a recipe: one of `file`, `files` and `split`, and when to look.

    Attributes:
        file: labelled documents that are not trained on.
        files: in its place one for each head of a student, by the name of the head.
        split: share of the cache's documents that is held out from training, in (0, 1).
        every: steps between two scores, or "epoch".
        patience: scores in a row without a better one after which training stops; None: never.
    """

    file: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    split: float | None = None
    every: int | str = EPOCH
    patience: int | None = None

    def __post_init__(self) -> None:
        given = sum([self.file is not None, self.split is not None, bool(self.files)])
        if given != 1:
            raise ConfigError(
                "a dev set is a file (--dev FILE) or a share of the cache (--dev-split 10%); got "
                f"{'both' if given else 'neither'}: give one of the two"
            )
        for head, file in self.files.items():
            if not isinstance(file, str):
                raise ConfigError(f"dev.files.{head} is the name of a file; got {file!r}")
        if self.split is not None and not 0 < self.split < 1:
            raise ConfigError(
                f"--dev-split is a share above 0 and below 1, such as 10% or 0.1; got {self.split}"
            )
        if self.every != EPOCH and (isinstance(self.every, str) or self.every < 1):
            raise ConfigError(f"--dev-every is epoch or a number of steps; got {self.every!r}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"--patience is a number of scores, 1 or more; got {self.patience}")

    @property
    def strategy(self) -> str:
        """The strategy of transformers that scores so often."""
        return EPOCH if self.every == EPOCH else "steps"


def dev_table(values: Json) -> Json:
    """A [dev] table, or what a call says of it, with shares and steps as numbers."""
    read = {"split": share_of, "every": _steps}
    return {name: read[name](value) if name in read else value for name, value in values.items()}


def share_of(value: Any) -> Any:
    """10%, "0.1" and 0.1 as 0.1."""
    if not isinstance(value, str):
        return value
    text, percent = value.strip().removesuffix("%"), value.strip().endswith("%")
    try:
        number = float(text) / (100 if percent else 1)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"--dev-split is a share such as 10% or 0.1; got {value!r}")
    return number


def _steps(value: Any) -> Any:
    """A number of steps in words as a number."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value
