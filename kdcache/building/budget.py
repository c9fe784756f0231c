"""Signals and codecs that fit a budget of bytes, the truest first, by what was measured of them.

The table is that of `kdcache bench fidelity` on two language models, shipped with the package. A
codec's error on another teacher will differ; the order of codecs much less.
"""

from __future__ import annotations

import json
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from kdcache.building.describe import sizes
from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.plans import Plan
from kdcache.signals import LOGITS, SIGNALS, ModelSizes, Signal, holder, parse
from kdcache.signals.base import settings_text
from kdcache.tasks import Task

TABLE = "fidelity_table.json"
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Signals that would be stored.

    Attributes:
        signals: as `--signal` takes them.
        bytes: the most they may take, the plan's own arrays included.
        logits_error: relative error of the gradient of KL at T=1, over some thousand rows.
        hidden_error: relative error of hidden states and other vectors; None without any.
        note: what the signals do not serve.
    """

    signals: tuple[str, ...]
    bytes: int
    logits_error: float
    hidden_error: float | None = None
    note: str = ""

    @property
    def error(self) -> float:
        """What proposals are ordered by: the sum of both errors."""
        return self.logits_error + (self.hidden_error or 0.0)

    def to_json(self) -> Json:
        """The fields by name."""
        return {
            "signals": list(self.signals),
            "bytes": self.bytes,
            "logits_error": self.logits_error,
            "hidden_error": self.hidden_error,
            "note": self.note,
        }


def propose(
    plan: Plan,
    shape: ModelSizes,
    budget: int,
    wanted: Mapping[str, Signal] | None = None,
    *,
    table: Mapping[str, Json] | None = None,
) -> list[Proposal]:
    """At most SHOWN proposals of at most `budget` bytes, the smallest error first.

    Args:
        wanted: signals by name. Logits among them are taken as they are; of vectors, such as
            hidden states, the layers and positions are, and the dtype is proposed.
        table: other figures than those shipped.

    Raises ConfigError, naming the least that would do, if nothing fits; or if the teacher cannot
    give what is wanted.
    """
    wanted = dict(wanted or {})
    known = (table or load_table())[plan.task.measured]
    choices = {name: list(_rated(plan, shape, signal, known)) for name, signal in wanted.items()}
    if holder(wanted, LOGITS) is None:
        choices["logits"] = list(_logits(plan, shape, None, known))
    names = sorted(choices, key=lambda name: name in wanted and LOGITS not in wanted[name].gives())
    if not all(choices.values()):
        raise ConfigError("no codec of the table serves this teacher")
    found = _combinations(plan, shape, {name: choices[name] for name in names})  # soft labels first
    fitting = [proposal for proposal in found if proposal.bytes <= budget]
    if not fitting:
        least = min(found, key=lambda proposal: proposal.bytes)
        raise ConfigError(
            f"nothing fits {budget:,} bytes: the least is {least.bytes:,} bytes, for "
            f"{' and '.join(least.signals)}; allow more, or plan fewer documents (--limit), views "
            "or layers"
        )
    return sorted(fitting, key=lambda proposal: (proposal.error, proposal.bytes))[:SHOWN]


@cache
def load_table() -> dict[str, Json]:
    """Errors by task: `logits` and `hidden`, each from a signal's text to its relative error."""
    text = files("kdcache").joinpath(TABLE).read_text(encoding="utf-8")
    table: dict[str, Json] = json.loads(text)
    return table


def make_table(reports: Mapping[str, Json]) -> dict[str, Json]:
    """The table of reports of `kdcache bench fidelity`, by the task they were made for."""
    return {task: _entry(report) for task, report in reports.items()}


def _entry(report: Json) -> Json:
    rows = [row for row in report["rows"] if row["ours"]]
    return {
        "teacher": report["sample"]["teacher"],
        "rows": report["sample"]["rows"],
        "logits": {r["signal"]: r["error"] for r in rows if r["signal"].startswith("logits:")},
        "hidden": {
            r["signal"].removeprefix("hidden:"): r["error"]
            for r in rows
            if r["signal"].startswith("hidden:")
        },
    }


class Rated(NamedTuple):
    """A signal that would be stored: as `--signal` takes it, and what was measured of it."""

    text: str
    signal: Signal
    error: float
    note: str = ""


def _rated(plan: Plan, shape: ModelSizes, wanted: Signal, known: Json) -> Iterator[Rated]:
    """The ways to store what is wanted of a signal: as it is, if nothing like it was measured."""
    ways = WAYS.get(getattr(wanted, "measured", ""))
    if ways is None:
        yield Rated(_written(wanted), wanted, 0.0, f"nothing was measured of {wanted.kind}")
        return
    yield from ways(plan, shape, wanted, known)


def _logits(plan: Plan, shape: ModelSizes, wanted: Signal | None, known: Json) -> Iterator[Rated]:
    if plan.task.labelled:  # classes are few, and exact
        signal = wanted or parse("logits:dense,dtype=fp32")
        yield Rated(_written(signal), signal, 0.0)
        return
    measured = [Rated(text, parse(text), error) for text, error in known["logits"].items()]
    if wanted is not None:
        measured = [found for way in measured if (found := _thinned(way, wanted)).signal == wanted]
        if not measured:
            raise ConfigError(
                f"nothing was measured of the logits wanted ({wanted.to_json()}); leave them out, "
                f"or take one of {', '.join(known['logits'])}"
            )
    for way in measured:
        if _serves(way.signal, plan.task, shape):
            yield way._replace(note=_note(way.signal))


def _thinned(way: Rated, wanted: Any) -> Rated:
    """An entry of the table at the fraction of rows that is wanted: their error is the same."""
    signal: Any = way.signal
    fraction = getattr(wanted, "fraction", 1.0)  # not every codec has one
    text = way.text + (f",fraction={fraction}" if fraction < 1 else "")
    return Rated(text, replace(signal, fraction=fraction), way.error)


CODED = ("dtype", "group", "compress")
"""How vectors are stored, rather than which."""


def _vectors(plan: Plan, shape: ModelSizes, wanted: Any, known: Json) -> Iterator[Rated]:
    """Of vectors, which are stored is taken as it is wanted, and how is proposed."""
    place = _text(wanted.to_json(), leave=("codec", *CODED))
    note = "" if wanted.kind == "hidden" else f"{wanted.kind}: the error is that of hidden states"
    for options, error in known["hidden"].items():
        measured = parse(f"hidden:layers=0,{options}")
        signal = replace(wanted, **{name: getattr(measured, name) for name in CODED})
        if _serves(signal, plan.task, shape):
            text = f"{wanted.kind}:{','.join(filter(None, (place, options)))}"
            yield Rated(text, signal, error, note)


WAYS: dict[str, Callable[[Plan, ModelSizes, Any, Json], Iterator[Rated]]] = {
    "logits": _logits,
    "hidden": _vectors,
}
"""How a signal may be stored, by the part of the table that tells of its like (`measured`)."""


def _written(signal: Signal) -> str:
    """A signal as `--signal` takes it, all its settings spelled out."""
    codec = signal.codec if len(SIGNALS[signal.kind]) > 1 else ""
    inner = filter(None, (codec, _text(signal.to_json(), leave=("codec",))))
    return f"{signal.kind}:{','.join(inner)}"


def _text(settings: Json, leave: Sequence[str]) -> str:
    """Settings as `--signal` takes them, without some."""
    return settings_text({name: value for name, value in settings.items() if name not in leave})


def _serves(signal: Signal, task: Task, shape: ModelSizes) -> bool:
    """Whether a teacher of that shape can give a signal: k or a group may not fit it."""
    try:
        signal.check(task, shape)
    except ConfigError:
        return False
    return True


class Chosen(NamedTuple):
    """Some signals by name, each stored in one way, and what they take together at most."""

    ways: Mapping[str, Rated]
    error: float
    bytes: int
    needs: frozenset[tuple[str, int]]
    """Files of the cache and their bytes: signals that need the same one share it."""


def _combinations(
    plan: Plan, shape: ModelSizes, choices: Mapping[str, Sequence[Rated]]
) -> list[Proposal]:
    """All that may be among the SHOWN truest for some budget, of a way for each signal.

    Bytes of signals add up, so each way is sized once, and what is worse than others of some
    signals is worse beside all the rest.
    """
    plain = sizes(plan, {}, shape)["total"]
    found = [Chosen({}, 0.0, plain, frozenset())]
    for name, ways in choices.items():
        sized = [(way, *_sized(plan, shape, way, plain)) for way in ways]
        found = _truest(
            Chosen(
                ways={**one.ways, name: way},
                error=one.error + way.error,
                bytes=one.bytes + own + sum(size for _, size in needed - one.needs),
                needs=one.needs | needed,
            )
            for one in found
            for way, own, needed in sized
        )
    return [_proposal(one) for one in found]


def _sized(
    plan: Plan, shape: ModelSizes, way: Rated, plain: int
) -> tuple[int, frozenset[tuple[str, int]]]:
    """Bytes of a signal's arrays alone, and the files it needs."""
    plan_sizes = sizes(plan, {way.signal.kind: way.signal}, shape)
    estimates = plan_sizes["estimates"].items()
    needed = frozenset((name, most) for name, (_, most) in estimates if name.startswith("files/"))
    return plan_sizes["total"] - plain - sum(size for _, size in needed), needed


def _truest(found: Iterable[Chosen]) -> list[Chosen]:
    """Those that fewer than SHOWN others with the same files beat in both error and bytes."""
    best: list[Chosen] = []
    least: defaultdict[frozenset[tuple[str, int]], list[int]] = defaultdict(list)
    for one in sorted(found, key=lambda one: (one.error, one.bytes)):
        smallest = least[one.needs]
        if len(smallest) < SHOWN or one.bytes < smallest[-1]:
            best.append(one)
            insort(smallest, one.bytes)
            del smallest[SHOWN:]
    return best


def _proposal(chosen: Chosen) -> Proposal:
    errors: dict[bool, list[float]] = {True: [], False: []}
    for way in chosen.ways.values():
        errors[LOGITS in way.signal.gives()].append(way.error)
    return Proposal(
        signals=tuple(
            way.text if name == way.signal.kind else f"{name}={way.text}"
            for name, way in chosen.ways.items()
        ),
        bytes=chosen.bytes,
        logits_error=sum(errors[True]),
        hidden_error=sum(errors[False]) if errors[False] else None,
        note="; ".join(dict.fromkeys(way.note for way in chosen.ways.values() if way.note)),
    )


def _note(logits: Signal) -> str:
    if logits.codec == "sampled":
        return "temperature 1 only"
    return "with tail=drawn at temperature 1" if logits.to_json().get("draws") else ""
