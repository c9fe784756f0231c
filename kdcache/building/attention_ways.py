"""Which way to keep what attention reads takes fewer bytes: as it is, or to be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.records import required, settings_of
from kdcache.signals import FEATURES, AttentionInputs, Signal
from kdcache.signals.attention import PROJECTED
from kdcache.signals.base import settings_text

Signals = dict[str, Signal]
Total = Callable[[Signals], int]
Way = tuple[list[str], Signals, str]


def smaller_ways(signals: Mapping[str, Signal], now: int, total: Total) -> list[Json]:
    """Other signals that would say the same of queries, keys and values in fewer bytes than `now`.

    `total` is the bytes of a cache of some signals, at most; ConfigError if the teacher cannot give
    them. Each entry has the names of the `signals`, what to take `instead`, a `note` of what to
    know first, and how many `bytes` that saves.
    """
    found = []
    for names, instead, note in (*_as_made(signals), *_as_they_are(signals)):
        others = {name: signal for name, signal in signals.items() if name not in names}
        if others.keys() & instead.keys():
            continue
        try:
            saved = now - total(others | instead)
        except ConfigError:  # a group may divide one width and not the other
            continue
        if saved > 0:
            texts = [text_of(signal) for signal in instead.values()]
            found.append({"signals": names, "instead": texts, "note": note, "bytes": saved})
    return found


def _as_made(signals: Mapping[str, Signal]) -> Iterator[Way]:
    """All queries, keys and values of every token, made of hidden states in their place."""
    stored = {name: signal for name, signal in signals.items() if signal.kind in PROJECTED}
    whole = [s for s in stored.values() if all(getattr(s, n) == v for n, v in WHOLE.items())]
    alike = bool(whole) and all(_coding(signal) == _coding(whole[0]) for signal in whole)
    if alike and len(whole) == len(stored):
        layers = sorted({tap.layer for signal in whole for tap in signal.taps() if tap.layer})
        made = AttentionInputs(layers=tuple(layers), **_coding(whole[0]))
        note = "only for BERT, RoBERTa, XLM-R, ELECTRA and DistilBERT"
        yield list(stored), {"attention": made}, note


def _as_they_are(signals: Mapping[str, Signal]) -> Iterator[Way]:
    """Queries, keys and values of every token in the place of what they are made of."""
    for name, signal in signals.items():
        if isinstance(signal, AttentionInputs):
            given = {"layers": signal.layers, **WHOLE, **_coding(signal)}
            instead: Signals = {kind: FEATURES[kind](**given) for kind in PROJECTED}
            yield [name], instead, "without the hidden states they are made of"


WHOLE = {"positions": "all", "fraction": 1.0}
CODING = ("dtype", "group", "compress")


def _coding(signal: Signal) -> Json:
    return {name: getattr(signal, name) for name in CODING}


def text_of(signal: Signal) -> str:
    """A vector signal as `--signal` takes it: what has no default, then what is not its default."""
    known = settings_of(type(signal))
    chosen = {
        name: getattr(signal, name)
        for name in dict.fromkeys([*required(type(signal)), *known])
        if getattr(signal, name) != known[name].default
    }
    return f"{signal.kind}:{settings_text(chosen)}"
