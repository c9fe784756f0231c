"""The table of all signals, and reading one of its texts and of a manifest's records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.records import from_texts, make, required, settings_of
from kdcache.signals.attention import AttentionInputs
from kdcache.signals.base import SAMPLED_ROWS, Signal, options
from kdcache.signals.codecs.dense import DenseLogits
from kdcache.signals.codecs.output_layer import HiddenHead
from kdcache.signals.codecs.sampled import SampledLogits
from kdcache.signals.codecs.topk import TopKLogits
from kdcache.signals.codecs.topk_small import SmallTopK
from kdcache.signals.features import FEATURES
from kdcache.signals.gradients import Attributions, Jacobian

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
