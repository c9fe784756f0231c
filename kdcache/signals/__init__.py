"""Signals: the kinds of teacher output a cache can hold. SIGNALS is the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.signals.base import (
    POSITIONS,
    ArraySpec,
    Assisted,
    Head,
    Origins,
    Outputs,
    Packing,
    Signal,
    TeacherShape,
    at_rows,
    merge,
    options,
    select,
)
from kdcache.signals.codecs.dense import DenseLogits
from kdcache.signals.codecs.output_layer import HeadLabels, HiddenHead
from kdcache.signals.codecs.quantised import LayerRows
from kdcache.signals.codecs.sampled import SampledLogits
from kdcache.signals.codecs.topk import TopKLogits
from kdcache.signals.codecs.topk_small import SmallTopK
from kdcache.signals.features import Hidden
from kdcache.signals.soft_labels import SoftLabels
from kdcache.tasks import Task

__all__ = [
    "POSITIONS",
    "SIGNALS",
    "ArraySpec",
    "Assisted",
    "DenseLogits",
    "Head",
    "HeadLabels",
    "Hidden",
    "HiddenHead",
    "LayerRows",
    "Origins",
    "Outputs",
    "Packing",
    "SampledLogits",
    "Signal",
    "SmallTopK",
    "SoftLabels",
    "TeacherShape",
    "TopKLogits",
    "artefacts",
    "assist",
    "at_rows",
    "from_json",
    "merge",
    "parse",
    "parse_all",
    "select",
]

SIGNALS: dict[str, dict[str, type[Any]]] = {
    "logits": {
        "dense": DenseLogits,
        "topk": TopKLogits,
        "topk-small": SmallTopK,
        "sampled": SampledLogits,
        "hidden-head": HiddenHead,
    },
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
    known = [field.name for field in fields(kind) if field.compare]
    return _make(kind, text, options(rest, known, text))


def _make(kind: type[Any], text: str, given: Mapping[str, str]) -> Signal:
    values: dict[str, Any] = dict(given)
    for name in ("k", "draws", "group", "levels", "n", "seed"):
        if name in values:
            values[name] = _whole(values[name], f"signal {text!r}: {name}")
    if "layers" in values:
        values["layers"] = _layers(values["layers"], text)
    if "fraction" in values:
        values["fraction"] = _number(values["fraction"], text)
    if kind is Hidden and "layers" not in values:
        raise ConfigError(f"signal {text!r} needs layers, as in hidden:layers=2-4-6")
    signal: Signal = kind(**values)
    return signal


def _whole(value: str, what: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{what} is a whole number; got {value!r}") from error


def _layers(value: str, text: str) -> tuple[int, ...]:
    what = f"signal {text!r}: a layer, as in layers=2-4-6,"
    return tuple(_whole(layer, what) for layer in value.split("-"))


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(f"signal {text!r}: {value!r} is not a number, as in 0.2") from error


def parse_all(texts: str | Iterable[str]) -> dict[str, Signal]:
    """Read signals, one or several, into a table by name; ConfigError if two have one name."""
    table: dict[str, Signal] = {}
    for text in [texts] if isinstance(texts, str) else texts:
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
        for hidden in ("vocabulary", "layer"):  # fields, but none of the configuration
            if hidden in values:
                raise TypeError(f"unexpected {hidden!r}")
        signal: Signal = kind(**values)
    except TypeError as error:
        raise ConfigError(f"signal {name!r} of the manifest: {error}") from error
    return signal


def artefacts(
    signals: Iterable[Signal], task: Task, shape: TeacherShape, origins: Origins
) -> dict[str, bytes]:
    """The files that signals need in a cache beside their arrays, by name."""
    files: dict[str, bytes] = {}
    for signal in signals:
        if isinstance(signal, Assisted):
            files |= signal.artefacts(task, shape, origins)
    return files


def assist(
    signals: Mapping[str, Signal], shape: TeacherShape, read: Callable[[str], bytes]
) -> dict[str, Signal]:
    """Signals ready to encode and decode; `read` gives a file of the cache by its name."""
    return {
        name: signal.assisted(shape, read) if isinstance(signal, Assisted) else signal
        for name, signal in signals.items()
    }
