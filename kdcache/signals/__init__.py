"""Signals: the kinds of teacher output a cache can hold. SIGNALS is the table of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.signals.base import (
    POSITIONS,
    ArraySpec,
    Outputs,
    Signal,
    TeacherShape,
    merge,
    options,
    select,
)
from kdcache.signals.hidden import Hidden, LayerRows
from kdcache.signals.logits import DenseLogits, SoftLabels, TopKLogits

__all__ = [
    "POSITIONS",
    "SIGNALS",
    "ArraySpec",
    "DenseLogits",
    "Hidden",
    "LayerRows",
    "Outputs",
    "Signal",
    "SoftLabels",
    "TeacherShape",
    "TopKLogits",
    "from_json",
    "merge",
    "parse",
    "parse_all",
    "select",
]

SIGNALS: dict[str, dict[str, type[Any]]] = {
    "logits": {"dense": DenseLogits, "topk": TopKLogits},
    "hidden": {"hidden": Hidden},
}


def parse(text: str) -> Signal:
    """Read a signal such as "logits:topk,k=64" or "hidden:layers=2-4-6,positions=cls".

    Raises ConfigError, with the nearest name, for anything unknown.
    """
    name, _, rest = text.partition(":")
    codecs = SIGNALS[one_of("signal", name.strip(), SIGNALS)]
    if len(codecs) > 1:
        codec, _, rest = rest.partition(",")
        if not codec:
            raise ConfigError(f"signal {name!r} needs a codec, as in {name}:{next(iter(codecs))}")
    else:
        codec = name
    kind = codecs[one_of(f"codec of {name}", codec.strip(), codecs)]
    known = [field.name for field in fields(kind)]
    return _make(kind, text, options(rest, known, text))


def _make(kind: type[Any], text: str, given: Mapping[str, str]) -> Signal:
    values: dict[str, Any] = dict(given)
    try:
        for name in ("k", "group"):
            if name in values:
                values[name] = int(values[name])
        if "layers" in values:
            values["layers"] = _layers(values["layers"])
    except ValueError as error:
        raise ConfigError(f"signal {text!r}: not a whole number: {error}") from error
    if kind is Hidden and "layers" not in values:
        raise ConfigError(f"signal {text!r} needs layers, as in hidden:layers=2-4-6")
    signal: Signal = kind(**values)
    return signal


def _layers(text: str) -> tuple[int, ...]:
    return tuple(int(layer) for layer in text.split("-"))


def parse_all(texts: Iterable[str]) -> dict[str, Signal]:
    """Read several signals into a table by name; ConfigError if two have one name."""
    table: dict[str, Signal] = {}
    for text in texts:
        signal = parse(text)
        if signal.name in table:
            raise ConfigError(f"signal {signal.name!r} is given twice; a cache holds one of each")
        table[signal.name] = signal
    return table


def from_json(name: str, record: Mapping[str, Any]) -> Signal:
    """Read a signal back from the manifest."""
    values = dict(record)
    codecs = SIGNALS[one_of("signal", name, SIGNALS)]
    kind = codecs[one_of(f"codec of {name}", str(values.pop("codec", "")), codecs)]
    if "layers" in values:
        values["layers"] = tuple(values["layers"])
    try:
        signal: Signal = kind(**values)
    except TypeError as error:
        raise ConfigError(f"signal {name!r} of the manifest: {error}") from error
    return signal
