"""What is asked of a build, refused where it cannot work before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcache.building.planner import PlanOptions
from kdcache.errors import ConfigError, ModelError
from kdcache.labels import LabelKind, kind_of
from kdcache.models import Tokenizer, check_taps, load_config
from kdcache.models.auto import problem_type_of, require_label_kind
from kdcache.models.teacher import model_sizes
from kdcache.plans import Plan
from kdcache.signals import LOGITS, Signal, parse_all, taps_of
from kdcache.store import Root, locate, open_plan
from kdcache.tasks import Task, as_task, over


def wanted_signals(
    corpus: Any,
    teacher: str | Path,
    task: Task,
    reading: Task,
    signals: Sequence[str],
    trust_remote_code: bool,
    options: PlanOptions,
) -> dict[str, Signal]:
    """The signals of a build, by name; ConfigError for what cannot be served.

    `reading` is the teacher's task.
    """
    wanted = parse_all(signals or reading.signals)
    config = load_config(teacher, trust_remote_code=trust_remote_code)
    if reading.labelled:
        require_label_kind(config, teacher)
        wanted = as_given(wanted, config, teacher)
    shape = model_sizes(config, reading)
    for signal in wanted.values():
        signal.check(reading, shape)
    check_taps(config, taps_of(wanted.values()))
    if is_plan(corpus):
        if options:
            raise ConfigError(
                f"{corpus} is a plan: it fixes {', '.join(options)} already; leave that out, or "
                "build from the corpus itself"
            )
        planned = open_plan(corpus).task
        if planned != task:
            raise ConfigError(
                f"{corpus} is a plan for {planned}, not {task}: give --task {planned}, or plan anew"
            )
    return wanted


def reading_task(corpus: Any, task: Task, teacher: str | None) -> Task:
    """What the teacher is run for over a plan of `task`; ConfigError where it cannot be."""
    reading = task if teacher is None else over(task, as_task(teacher))
    if reading != task and not is_plan(corpus):
        raise ConfigError(
            f"--teacher-task {teacher} runs a teacher over a plan for {task} that is there: make "
            "it first (`kdcache plan --out PLAN`), and give its folder"
        )
    return reading


def is_plan(corpus: Any) -> bool:
    """Whether `corpus` is the folder or URL of a plan rather than documents."""
    return isinstance(corpus, (str, Root)) and (locate(corpus) / "zarr.json").is_file()


def require_planned(plan: Plan, tokens: Tokenizer) -> None:
    """Raise ModelError unless `tokens`, which the cache will keep, made the plan."""
    planned = plan.config.tokenizer
    if tokens.identity["sha256"] != planned["sha256"]:
        raise ModelError(
            f"the plan's tokenizer {planned['name']} is not that of {tokens.source} (their SHA-256 "
            "differ): plan with the teacher's own, or name the plan's with --tokenizer"
        )


def as_given(signals: dict[str, Signal], config: Any, teacher: str | Path) -> dict[str, Signal]:
    """Signals that keep outputs as what they are: those of several classes or values are raw."""
    kind = kind_of(problem_type_of(config), int(config.num_labels))
    assert kind is not None
    return {name: _as_kept(signal, kind, teacher) for name, signal in signals.items()}


def _as_kept(signal: Signal, kind: LabelKind, teacher: str | Path) -> Signal:
    """A signal as it keeps outputs of a kind: raw, where they are no softmax.

    Raises ConfigError, naming the teacher, for a codec of soft labels that keeps probabilities of
    one class alone, for what is of the odds of one class where there are several, or for a setting
    that says something else of the outputs.
    """
    if kind.wide and getattr(signal, "of_one", False):
        raise ConfigError(
            f"{signal.kind} is of the odds of one class, or of one value, and the teacher "
            f"{teacher} is a {kind.called}: take hidden states instead (hidden:layers=...)"
        )
    given = getattr(signal, "activation", "softmax")
    if given not in ("softmax", kind.activation):
        raise ConfigError(
            f"activation={given} is what the outputs of the teacher {teacher} are not: leave it "
            "out, it follows from the teacher"
        )
    if kind.activation == "softmax" or LOGITS not in signal.gives():
        return signal
    if not hasattr(signal, "activation"):
        raise ConfigError(
            f"logits:{signal.codec} keeps probabilities that sum to one over the outputs, and the "
            f"teacher {teacher} is a {kind.called}, whose outputs do not: take logits:dense"
        )
    made: Signal = replace(signal, activation=kind.activation)  # type: ignore[type-var]
    return made
