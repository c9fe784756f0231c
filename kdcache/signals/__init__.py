"""Signals: the kinds of teacher output a cache can hold. SIGNALS is the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.records import from_texts, make, required, settings_of
from kdcache.signals.base import (
    ArraySpec,
    Assisted,
    Origins,
    Packing,
    Signal,
    TeacherShape,
    merge,
    options,
)
from kdcache.signals.codecs.dense import DenseLogits
from kdcache.signals.codecs.output_layer import HeadLabels, HiddenHead
from kdcache.signals.codecs.quantised import LayerRows
from kdcache.signals.codecs.sampled import SampledLogits
from kdcache.signals.codecs.topk import TopKLogits
from kdcache.signals.codecs.topk_small import SmallTopK
from kdcache.signals.features import Hidden
from kdcache.signals.soft_labels import SoftLabels, SoftUse
from kdcache.signals.taps import (
    HEAD,
    LOGITS,
    POSITIONS,
    TAP_KINDS,
    Activations,
    Attention,
    Head,
    Tap,
    select,
)
from kdcache.tasks import Task

__all__ = [
    "HEAD",
    "LOGITS",
    "POSITIONS",
    "SIGNALS",
    "TAP_KINDS",
    "Activations",
    "ArraySpec",
    "Assisted",
    "Attention",
    "DenseLogits",
    "Head",
    "HeadLabels",
    "Hidden",
    "HiddenHead",
    "LayerRows",
    "Origins",
    "Packing",
    "SampledLogits",
    "Signal",
    "SmallTopK",
    "SoftLabels",
    "SoftUse",
    "Tap",
    "TeacherShape",
    "TopKLogits",
    "artefacts",
    "assist",
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
    given = options(rest, list(settings_of(kind)), text)
    for name in required(kind):
        if name not in given:
            raise ConfigError(f"signal {text!r} needs {name}, as in {kind.example}")
    signal: Signal = from_texts(kind, given, f"signal {text!r}")
    return signal


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
    signal: Signal = make(kind, values, f"signal {name!r} of the manifest")
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
