"""The weights of documents that a recipe asks for."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.losses.example_weights import EXAMPLE_WEIGHTS, Way
from kdcache.records import make

FIELD = "data.example_weights"
MEANS = ("weights", "documents")


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """What documents count for, as [data] of a recipe says.

    Attributes:
        name: a way of EXAMPLE_WEIGHTS.
        mean: what a loss's mean over a step divides by: the sum of the "weights", or the number of
            "documents", whatever these weigh.
        options: arguments of the way.
    """

    name: str
    mean: str = "weights"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of(FIELD, self.name, EXAMPLE_WEIGHTS)
        one_of(f"{FIELD}.mean", self.mean, MEANS)
        self.checked()

    @property
    def way(self) -> Way:
        return EXAMPLE_WEIGHTS[self.name]

    @property
    def teacher(self) -> str:
        """The teacher whose soft labels it asks for; "": the first."""
        return str(self.options.get("teacher", ""))

    @property
    def lacking(self) -> str:
        """The column of the corpus that it reads, if no file is said to have it; ""."""
        asked = [str(self.options.get(name, "")) for name in self.way.columns]
        return "" if self.options.get("file") else next(filter(None, asked), "")

    def checked(self) -> dict[str, Any]:
        """The arguments as the way takes them; ConfigError for one that it does not."""
        made = make(_options(self.way), self.options, FIELD)
        return {entry.name: getattr(made, entry.name) for entry in dataclasses.fields(made)}

    def __str__(self) -> str:
        told = {**self.options, **({} if self.mean == MEANS[0] else {"mean": self.mean})}
        options = ", ".join(f"{name}={value}" for name, value in told.items() if name != "file")
        return f"{self.name} ({options})" if options else self.name


def _options(way: Way) -> Any:
    """The keyword arguments of a way, as a configuration of that many fields."""
    hints = typing.get_type_hints(way.weights)
    found = []
    for name, one in inspect.signature(way.weights).parameters.items():
        if one.kind is one.KEYWORD_ONLY:
            default = () if one.default is one.empty else (field(default=one.default),)
            found.append((name, hints.get(name, object), *default))
    return dataclasses.make_dataclass("Options", found, frozen=True, kw_only=True)


def weighting_of(value: str | Mapping[str, Any]) -> Weighting | None:
    """What [data] says of weights: a name, or a table of it and its options; "": nothing."""
    if not value:
        return None
    table = {"name": value} if isinstance(value, str) else dict(value)
    if not isinstance(table.get("name"), str):
        raise ConfigError(
            f"{FIELD} needs the name of a way ({', '.join(EXAMPLE_WEIGHTS)}); got {value!r}"
        )
    own = {key: table.pop(key) for key in ("name", "mean") if key in table}
    return Weighting(**own, options=table)
