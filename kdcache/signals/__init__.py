"""Signals: the kinds of teacher output a cache can hold. SIGNALS is the table of all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.labels import LabelKind
from kdcache.manifest import Json
from kdcache.records import from_texts, make, required, settings_of
from kdcache.signals.activations import Activations, Attention, Head
from kdcache.signals.attention import AttentionInputs
from kdcache.signals.attributing import Attributing
from kdcache.signals.base import (
    SAMPLED_ROWS,
    ArraySpec,
    ArtifactSources,
    AsksLabels,
    Columns,
    Differentiated,
    HasArtifacts,
    Packing,
    Signal,
    merge,
    of_signal,
    options,
)
from kdcache.signals.codecs.dense import DenseLogits
from kdcache.signals.codecs.output_layer import HeadLabels, HiddenHead
from kdcache.signals.codecs.quantised import LayerRows
from kdcache.signals.codecs.sampled import SampledLogits
from kdcache.signals.codecs.topk import TopKLogits
from kdcache.signals.codecs.topk_small import SmallTopK
from kdcache.signals.features import FEATURES, DocumentVectors, LayerVectors, TokenVectors
from kdcache.signals.gradients import Attributions, Jacobian
from kdcache.signals.positions import POSITIONS, select
from kdcache.signals.soft_labels import SoftLabels, SoftSignal, SoftUse, TeacherOutputs
from kdcache.signals.taps import EMBEDDINGS, HEAD, LOGITS, TAP_KINDS, ModelSizes, Tap, TapKind
from kdcache.tasks import Task

__all__ = [
    "EMBEDDINGS",
    "FEATURES",
    "HEAD",
    "LOGITS",
    "POSITIONS",
    "SAMPLED_ROWS",
    "SIGNALS",
    "TAP_KINDS",
    "Activations",
    "ArraySpec",
    "ArtifactSources",
    "AsksLabels",
    "Attention",
    "AttentionInputs",
    "Attributing",
    "Attributions",
    "Columns",
    "DenseLogits",
    "Differentiated",
    "DocumentVectors",
    "HasArtifacts",
    "Head",
    "HeadLabels",
    "Hidden",
    "HiddenHead",
    "Jacobian",
    "LayerRows",
    "LayerVectors",
    "ModelSizes",
    "Packing",
    "SampledLogits",
    "Signal",
    "SmallTopK",
    "SoftLabels",
    "SoftSignal",
    "SoftUse",
    "Tap",
    "TapKind",
    "TeacherOutputs",
    "TokenVectors",
    "TopKLogits",
    "artifacts",
    "check_name",
    "from_json",
    "given_by",
    "holder",
    "join",
    "merge",
    "named_arrays",
    "of_signal",
    "parse",
    "parse_all",
    "parse_named",
    "select",
    "taps_of",
    "to_record",
    "unknown_part",
    "with_artifacts",
]

SIGNALS: dict[str, dict[str, type[Any]]] = {
    "logits": {
        "dense": DenseLogits,
        "topk": TopKLogits,
        "topk-small": SmallTopK,
        "sampled": SampledLogits,
        "hidden-head": HiddenHead,
    },
    **{kind: {kind: vectors} for kind, vectors in FEATURES.items()},
    "attention": {"attention": AttentionInputs},
    "jacobian": {"jacobian": Jacobian},
    "attribution": {"attribution": Attributions},
}
"""Every signal by its kind and codec."""
Hidden = FEATURES["hidden"]


def parse(text: str) -> Signal:
    """Read a signal such as "logits:topk,k=64" or "hidden:layers=2-4-6,positions=cls".

    Raises ConfigError, with the nearest name, for anything unknown.
    """
    return parse_named(text)[1]


def parse_named(text: str) -> tuple[str, Signal]:
    """Read a signal and the name it is to have, as in "early=hidden:layers=1-2".

    Without a name it is called after its kind. Raises ConfigError as `parse` and `check_name`.
    """
    name, equals, rest = text.partition("=")
    if not equals or ":" in name or "," in name:
        name, rest = "", text
    kind, _, rest = rest.partition(":")
    codecs = SIGNALS[one_of("signal", kind.strip(), SIGNALS)]
    if len(codecs) > 1:
        codec, _, rest = rest.partition(",")
        if not codec:
            raise ConfigError(f"signal {kind!r} needs a codec, as in {kind}:{next(iter(codecs))}")
    else:
        codec = next(iter(codecs))
    made = codecs[one_of(f"codec of {kind}", codec.strip(), codecs)]
    given = options(rest, list(settings_of(made)), text)
    for option in required(made):
        if option not in given:
            raise ConfigError(f"signal {text!r} needs {option}, as in {made.example}")
    signal: Signal = from_texts(made, given, f"signal {text!r}")
    return check_name(name.strip() if equals and name else signal.kind, signal.kind), signal


def parse_all(texts: str | Iterable[str]) -> dict[str, Signal]:
    """Read signals, one or several, into a table by name; ConfigError if two have one name."""
    table: dict[str, Signal] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        name, signal = parse_named(text)
        if name.casefold() in map(str.casefold, table):
            raise ConfigError(
                f"signal {name!r} is given twice; a cache holds one of each name: give another, "
                f"as in more=hidden:layers=1"
            )
        table[name] = signal
    return table


NAME = re.compile("[A-Za-z][A-Za-z0-9_-]{0,63}")
TAKEN = ("c", "commits", "complete", "files", SAMPLED_ROWS, "plan", "teachers", "tokens")
"""What lies in a store, or in a batch, under names of its own."""


def check_name(name: str, kind: str) -> str:
    """Return the name of a signal of a kind; ConfigError if signals cannot be called so."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"a signal is named by a letter and up to 63 letters, digits, - and _; got {name!r}: "
            f"choose a name such as early, as in early={kind}:..."
        )
    if name.casefold() in TAKEN or (name != kind and name.casefold() in SIGNALS):
        raise ConfigError(
            f"a signal of kind {kind} cannot be named {name!r}, which stands for something else: "
            f"choose a name such as my-{name}"
        )
    return name


def to_record(name: str, signal: Signal) -> Json:
    """A signal as the manifest has it: its kind is told where the name does not tell it."""
    return signal.to_json() if name == signal.kind else {"kind": signal.kind, **signal.to_json()}


def from_json(name: str, record: Mapping[str, Any]) -> Signal:
    """Read a signal back from the manifest."""
    values = dict(record)
    kind = str(values.pop("kind", name))
    codecs = SIGNALS[one_of("signal", kind, SIGNALS)]
    made = codecs[one_of(f"codec of {kind}", str(values.pop("codec", "")), codecs)]
    signal: Signal = make(made, values, f"signal {check_name(name, kind)!r} of the manifest")
    return signal


def unknown_part(name: str, record: Mapping[str, Any]) -> str:
    """What of a signal of a manifest this version does not know: only a newer one wrote it.

    Empty where all of it is known, be it sound or not.
    """
    values = {name: value for name, value in record.items() if name not in ("kind", "codec")}
    kind, codec = record.get("kind", name), record.get("codec")
    if not (isinstance(kind, str) and isinstance(codec, str)):
        return ""
    if kind not in SIGNALS:
        return f"a signal {kind!r}"
    if codec not in SIGNALS[kind]:
        return f"the codec {codec!r} of {kind}"
    news = sorted(values.keys() - settings_of(SIGNALS[kind][codec]).keys())
    return f"the setting {news[0]!r} of {kind}" if news else ""


def as_outputs(signal: Signal, kind: LabelKind, teacher: str) -> Signal:
    """A signal as it keeps outputs of a kind: raw, where they are no softmax.

    Raises ConfigError, naming the teacher, for a codec of soft labels that keeps probabilities of
    one class alone, for what is of the odds of one class where there are several, or for a setting
    that says something else of the outputs.
    """
    if kind.wide and getattr(signal, "of_one", False):
        raise ConfigError(
            f"{signal.kind} is of the odds of one class, or of one value, and {teacher} is a "
            f"{kind.called}: take hidden states instead (hidden:layers=...)"
        )
    given = getattr(signal, "activation", "softmax")
    if given not in ("softmax", kind.activation):
        raise ConfigError(
            f"activation={given} is what the outputs of {teacher} are not: leave it out, it "
            "follows from the teacher"
        )
    if kind.activation == "softmax" or LOGITS not in signal.gives():
        return signal
    if not hasattr(signal, "activation"):
        raise ConfigError(
            f"logits:{signal.codec} keeps probabilities that sum to one over the outputs, and "
            f"{teacher} is a {kind.called}, whose outputs do not: take logits:dense"
        )
    made: Signal = replace(signal, activation=kind.activation)  # type: ignore[type-var]
    return made


def named_arrays(signals: Mapping[str, Signal], task: Task, shape: ModelSizes) -> list[ArraySpec]:
    """The arrays of signals as they are named in a cache: under the name of each."""
    return [
        replace(spec, name=f"{name}/{spec.name}")
        for name, signal in signals.items()
        for spec in signal.arrays(task, shape)
    ]


def join(one: Any, other: Any) -> Signal:
    """One signal with the layers of two; ConfigError, saying why, where they are not of one kind.

    Everything but the layers has to be the same, and no layer may be in both.
    """
    layers = getattr(one, "layers", ()), getattr(other, "layers", ())
    if type(one) is not type(other) or not all(layers):
        raise ConfigError("a cache holds one of each")
    both = sorted(set(layers[0]) & set(layers[1]))
    if both:
        raise ConfigError(f"both have layer {both[0]}")
    have, want = one.to_json(), other.to_json()
    for name in sorted((have.keys() | want.keys()) - {"layers"}):
        if have.get(name) != want.get(name):
            difference = (
                f"{name} is {have.get(name)} in the first and {want.get(name)} in the other"
            )
            raise ConfigError(f"their layers would be one signal, but {difference}")
    made: Signal = replace(one, layers=tuple(sorted(layers[0] + layers[1])))
    return made


def taps_of(signals: Iterable[Signal]) -> set[Tap]:
    """All that some signals are made of."""
    return {tap for signal in signals for tap in signal.taps()}


def given_by(signals: Iterable[Signal]) -> set[Tap]:
    """All that some signals can be asked for."""
    return {tap for signal in signals for tap in signal.gives()}


def holder(signals: Mapping[str, Signal], tap: Tap) -> str | None:
    """Name of the signal that gives a tap: the one that is called so, or else the first."""
    able = [name for name, signal in signals.items() if tap in signal.gives()]
    return tap.name if tap.name in able else next(iter(able), None)


def artifacts(
    signals: Iterable[Signal], task: Task, shape: ModelSizes, sources: ArtifactSources
) -> dict[str, bytes]:
    """The files that signals need in a cache beside their arrays, by name."""
    files: dict[str, bytes] = {}
    for signal in signals:
        if isinstance(signal, HasArtifacts):
            files |= signal.artifacts(task, shape, sources)
    return files


def with_artifacts(
    signals: Mapping[str, Signal], shape: ModelSizes, read: Callable[[str], bytes]
) -> dict[str, Signal]:
    """Signals ready to encode and decode; `read` gives a file of the cache by its name."""
    return {
        name: signal.with_artifacts(shape, read) if isinstance(signal, HasArtifacts) else signal
        for name, signal in signals.items()
    }
