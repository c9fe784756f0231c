"""Signals and codecs that fit a budget of bytes, the truest first, by what was measured of them.

The table is that of `kdcache bench fidelity` on two language models, shipped with the package. A
codec's error on another teacher will differ; the order of codecs much less.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from kdcache.building.describe import describe_bytes
from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.plans import Plan
from kdcache.signals import Hidden, SampledLogits, Signal, TeacherShape, parse
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
        hidden_error: relative error of the hidden states; None without any.
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
    shape: TeacherShape,
    budget: int,
    wanted: Mapping[str, Signal] | None = None,
    *,
    table: Mapping[str, Json] | None = None,
) -> list[Proposal]:
    """At most SHOWN proposals of at most `budget` bytes, the smallest error first.

    Args:
        wanted: signals by name. Logits among them are taken as they are; of hidden states the
            layers and positions are, and the dtype is proposed.
        table: other figures than those shipped.

    Raises ConfigError, naming the least that would do, if nothing fits; or if the teacher cannot
    give what is wanted.
    """
    wanted = wanted or {}
    known = (table or load_table())[_measured(plan.config.task)]
    found = [
        _sized(plan, shape, logits, hidden, known)
        for logits in _logits(plan, shape, wanted.get("logits"), known)
        for hidden in _hidden(shape, wanted.get("hidden"), known)
    ]
    if not found:
        raise ConfigError("no codec of the table serves this teacher")
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


def make_table(reports: Mapping[Task, Json]) -> dict[str, Json]:
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


def _measured(task: Task) -> Task:
    """Classes were not measured: dense logits are small and exact there."""
    return "masked-lm" if task == "text-classification" else task


def _logits(
    plan: Plan, shape: TeacherShape, wanted: Signal | None, known: Json
) -> Iterator[tuple[str, Signal, float]]:
    if plan.config.task == "text-classification":
        text = "logits:dense,dtype=fp32"
        yield text, wanted or parse(text), 0.0
        return
    measured = [(text, parse(text), error) for text, error in known["logits"].items()]
    if wanted is not None:
        measured = [found for entry in measured if (found := _thinned(*entry, wanted))[1] == wanted]
        if not measured:
            raise ConfigError(
                f"nothing was measured of the logits wanted ({wanted.to_json()}); leave them out, "
                f"or take one of {', '.join(known['logits'])}"
            )
    yield from (entry for entry in measured if _serves(entry[1], plan.config.task, shape))


def _thinned(text: str, signal: Any, error: float, wanted: Any) -> tuple[str, Signal, float]:
    """An entry of the table at the fraction of rows that is wanted: their error is the same."""
    return text + _fraction(wanted), replace(signal, fraction=wanted.fraction), error


def _fraction(wanted: Any) -> str:
    return f",fraction={wanted.fraction}" if wanted.fraction < 1 else ""


def _hidden(
    shape: TeacherShape, wanted: Signal | None, known: Json
) -> Iterator[tuple[str, Signal | None, float | None]]:
    if wanted is None:
        yield "", None, None
        return
    assert isinstance(wanted, Hidden)
    place = f"hidden:layers={'-'.join(map(str, wanted.layers))},positions={wanted.positions}"
    place += _fraction(wanted)
    for options, error in known["hidden"].items():
        measured: Any = parse(f"hidden:layers=0,{options}")
        signal = replace(
            measured,
            layers=wanted.layers,
            positions=wanted.positions,
            fraction=wanted.fraction,
        )
        if _serves(signal, "masked-lm" if wanted.positions == "masked" else "causal-lm", shape):
            yield f"{place},{options}", signal, error


def _serves(signal: Signal, task: Task, shape: TeacherShape) -> bool:
    """Whether a teacher of that shape can give a signal: k or a group may not fit it."""
    try:
        signal.check(task, shape)
    except ConfigError:
        return False
    return True


def _sized(
    plan: Plan,
    shape: TeacherShape,
    logits: tuple[str, Signal, float],
    hidden: tuple[str, Signal | None, float | None],
    known: Json,
) -> Proposal:
    signals = {"logits": logits[1]} | ({} if hidden[1] is None else {"hidden": hidden[1]})
    return Proposal(
        signals=tuple(filter(None, (logits[0], hidden[0]))),
        bytes=describe_bytes(plan, signals, shape)["total"],
        logits_error=logits[2],
        hidden_error=hidden[2],
        note=_note(logits[1]),
    )


def _note(logits: Signal) -> str:
    if isinstance(logits, SampledLogits):
        return "temperature 1 only"
    return "with tail=drawn at temperature 1" if logits.to_json().get("draws") else ""
