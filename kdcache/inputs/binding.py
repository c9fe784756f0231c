"""What a transformation of inputs reads of a cache, held against what that holds."""

from __future__ import annotations

from typing import cast

from kdcache.errors import ConfigError, one_of
from kdcache.inputs.base import Inputs
from kdcache.losses.bound import Bound
from kdcache.losses.cache_spec import CacheSpec
from kdcache.plans.batch import Rows
from kdcache.signals import LOGITS, SoftSignal, SoftUse

FIELD = "inputs"
BUILD = (
    "build its cache over this plan (kdcache build PLAN --teacher MODEL --task TASK "
    "--teacher-task masked-lm) and merge the two (kdcache merge)"
)


def words_of(way: Inputs, cache: CacheSpec) -> Bound | None:
    """What a cache's masked language model says of every token; None where a way does not ask.

    Raises ConfigError, saying what would serve it, where the cache does not hold that.
    """
    if way.asks is None:
        return None
    return _soft_labels(way, way.asks.temperature, _teacher(way, way.asks.teacher, cache))


def _teacher(way: Inputs, name: str, cache: CacheSpec) -> CacheSpec:
    """The masked language model among the teachers."""
    if cache.task.selects or cache.task.causal:
        raise ConfigError(
            f"{FIELD}.kind={way.kind} lets a student read words that the whole text makes likely, "
            f"and of the task {cache.task} those are what it has to say: leave inputs out"
        )
    able = {name: spec for name, spec in cache.teachers.items() if _speaks(spec)}
    if name:
        one_of(f"teacher in {FIELD}.teacher", name, cache.teachers)
    wanted = [name] if name else list(able)
    if not able.keys() & set(wanted):
        tasks = ", ".join(f"{one or 'one'} ({spec.task})" for one, spec in cache.teachers.items())
        raise ConfigError(
            f"{FIELD}.kind={way.kind} needs what a masked language model says of every token of "
            f"the texts, unmasked; the teachers of the cache are {tasks}: {BUILD}"
        )
    if len(wanted) > 1:
        raise ConfigError(
            f"{FIELD}.kind={way.kind} asks one masked language model, and the cache has "
            f"{' and '.join(wanted)}: set {FIELD}.teacher to one of them"
        )
    return able[wanted[0]]


def _speaks(spec: CacheSpec) -> bool:
    """Whether a teacher says of every token what could stand in its place."""
    task = spec.task
    return not (task.labelled or task.causal or task.selects) and task.rows == "token"


def _soft_labels(way: Inputs, temperature: float, source: CacheSpec) -> Bound:
    """Its soft labels; ConfigError where it has none of every token."""
    for name, signal in source.signals.items():
        if LOGITS not in signal.gives():
            continue
        specs = signal.arrays(source.task, source.shape)
        if specs[0].space != "token":
            raise ConfigError(
                f"{FIELD}.kind={way.kind} reads soft labels of every token; the cache holds "
                f"{source.held()}: build one without fraction"
            )
        use = SoftUse(temperature=temperature, tail="renormalize")
        if lacks := cast(SoftSignal, signal).lacks(use, source.shape.outputs):
            raise ConfigError(f"{FIELD}: {lacks.replace('{loss}', FIELD)}")
        named = source.prefix + name
        return Bound(
            student=LOGITS,
            teacher=LOGITS,
            signal=named,
            source=source,
            outputs=None,
            space="token",
            stored="",
            positions="",
            rows=Rows("token"),
            arrays=tuple(f"{named}/{spec.name}" for spec in specs if spec.read_for(LOGITS)),
        )
    raise ConfigError(
        f"{FIELD}.kind={way.kind} needs soft labels of {source.name or 'the teacher'}; the cache "
        f"holds {source.held()}: build one with --signal logits:topk"
    )
