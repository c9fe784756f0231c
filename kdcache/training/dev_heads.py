"""The documents that a student of several heads is chosen on: those of each head."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.models.recording import heads_of
from kdcache.plans import Docs
from kdcache.progress import Progress
from kdcache.store import Cache
from kdcache.training.dev import DevSet, make_dev, value_of
from kdcache.training.dev_options import DevOptions
from kdcache.training.dev_teacher import teacher_score
from kdcache.training.mixture import Mixture

MEAN = "mean_score"
COMPARABLE: Mapping[str, Callable[[float], float]] = {
    "cross_entropy": lambda nats: math.exp(-nats),
    "mse": lambda error: 1 / (1 + error),
}
"""A score that is better the lower it is, as one that lies in [0, 1] and is better the higher."""


@dataclass(frozen=True, kw_only=True)
class HeadDevs:
    """The dev sets of several heads; a student is chosen by the mean of their scores.

    Scores are accuracies, F1 and correlations as they are, as in the average of GLUE (Wang et al.
    2018, arXiv:1804.07461). A language model's is exp(-cross-entropy), the geometric mean of the
    probabilities of the right tokens, which lies in [0, 1] too.

    Attributes:
        sets: by name of the head; a head without labels has none.
        heads: names of all heads.
    """

    sets: Mapping[str, DevSet]
    heads: tuple[str, ...]
    metric: str = MEAN

    @property
    def record(self) -> Json:
        """What tells whether a run that is resumed is scored on the same documents."""
        return {name: dev.record for name, dev in self.sets.items()}

    @property
    def notes(self) -> list[str]:
        """What a person should know of them."""
        return [f"{name}: {note}" for name, dev in self.sets.items() for note in dev.notes]

    @property
    def documents(self) -> int:
        """How many a student is scored on."""
        return sum(dev.documents for dev in self.sets.values())

    @property
    def withheld(self) -> int:
        """How many of the caches' are not trained on."""
        return sum(dev.withheld for dev in self.sets.values())

    @property
    def source(self) -> str:
        """Where they come from, in words."""
        return ", ".join(f"{name}: {dev.source}" for name, dev in self.sets.items())

    @property
    def each(self) -> dict[int, DevSet]:
        """The dev set of each model that is scored, by its number among the heads."""
        return {self.heads.index(name): dev for name, dev in self.sets.items()}

    def score(self, model: Any, *, batch_size: int, rank: int = 0, ranks: int = 1) -> Json:
        """Every metric of every head as "HEAD_METRIC", and the mean of those they are chosen by."""
        where: Any = {"batch_size": batch_size, "rank": rank, "ranks": ranks}
        told: Json = {}
        values = {}
        for number, dev in self.each.items():
            name = self.heads[number]
            scored = dev.score(heads_of(model)[number], **where)
            values[name] = scored[dev.metric] = value_of(scored, dev.metric)
            told |= {f"{name}_{metric}": value for metric, value in scored.items()}
        return {self.metric: self.mean(values), **told}

    def mean(self, values: Mapping[str, float]) -> float:
        """The mean of the scores of all heads, each by its metric, made comparable."""
        compared = [comparable(self.sets[name].metric, value) for name, value in values.items()]
        return math.fsum(compared) / len(compared)

    def teacher(self, caches: Mapping[str, Cache], teachers: Any, **options: Any) -> Json | None:
        """What the teachers score by the same mean, from `teachers` or the caches' soft labels."""
        named: Mapping[str, str | Path] = teachers or {}
        found = {
            name: teacher_score(dev, caches[name], named.get(name), **options)
            for name, dev in self.sets.items()
        }
        known = {name: score for name, score in found.items() if score is not None}
        if len(known) < len(found):
            return None
        values = {name: score["value"] for name, score in known.items()}
        guess = {"estimate": True} if any(s.get("estimate") for s in known.values()) else {}
        source = "the mean of the heads' teachers"
        return {"value": self.mean(values), "source": source, "heads": known, **guess}

    def report(self, entry: Json) -> Json:
        """What a run tells of every head, given what was logged where the best weights scored."""
        return {
            name: {
                "metric": dev.metric,
                "value": entry[f"eval_{name}_{dev.metric}"],
                "documents": dev.documents,
                "source": dev.source,
            }
            for name, dev in self.sets.items()
        }


def comparable(metric: str, value: float) -> float:
    """A score of which more is better, in [0, 1]; correlations lie in [-1, 1]."""
    return COMPARABLE[metric](value) if metric in COMPARABLE else value


def make_devs(
    options: DevOptions, mixture: Mixture, config: Any, docs: Sequence[Docs], **given: Any
) -> DevSet | HeadDevs:
    """The dev set of a run that would train on `docs` of each cache, or those of its heads.

    `config` is the student's, `given` are seed and progress. Raises as `make_dev`.
    """
    caches = mixture.by_head
    if not caches:
        return make_dev(options, mixture.first, docs[0], config=config, **given)
    each = (dict(zip(caches, of, strict=True)) for of in (docs, mixture.configs(config)))
    return make_head_devs(options, caches, *each, **given)


def make_head_devs(
    options: DevOptions,
    caches: Mapping[str, Cache],
    docs: Mapping[str, Docs],
    configs: Mapping[str, Any],
    *,
    seed: int,
    progress: Progress,
) -> HeadDevs:
    """The dev sets of a run: a share of each cache, or the file that is named for its head.

    Raises ConfigError or CorpusError where one would be empty, or leave nothing to train on.
    """
    made = {
        name: make_dev(own, cache, docs[name], seed=seed, config=configs[name], progress=progress)
        for name, cache in caches.items()
        if cache.plan.read_for is None and (own := options_of(options, name)) is not None
    }
    if not made:
        raise ConfigError(
            f"no head of {', '.join(caches)} has labels to be chosen by: train without --dev and "
            "--dev-split"
        )
    return HeadDevs(sets=made, heads=tuple(caches))


def options_of(options: DevOptions | None, head: str) -> DevOptions | None:
    """The dev options of one head; None of one that has no dev file."""
    if options is None or not options.files:
        return options
    file = options.files.get(head)
    return None if file is None else replace(options, file=file, files={})


def require_dev_files(options: DevOptions | None, caches: Mapping[str, Cache]) -> None:
    """Raise ConfigError unless a dev file is named for each head that can be scored, and no more.

    `caches` are those of the heads; none where all have one.
    """
    heads = [name for name, cache in caches.items() if cache.plan.read_for is None]
    if options is None or options.split is not None:
        return
    if not heads and options.files:
        name = next(iter(options.files))
        raise ConfigError(
            f"--dev {name}=FILE names a head, and the student has one for all: give a file alone"
        )
    if heads and set(heads) != options.files.keys():
        wanted = " ".join(f"--dev {name}=FILE" for name in heads)
        raise ConfigError(
            f"the student has heads {', '.join(heads)}, and is chosen by the mean of their scores: "
            f"name a dev file for each ({wanted}), or hold a share of each cache out (--dev-split)"
        )


def require_scored(files: Mapping[str, Any], caches: Mapping[str, Cache]) -> None:
    """Raise ConfigError for documents to score a head on whose cache has no labels of its kind."""
    for name in files:
        plan = caches[name].plan
        if plan.read_for is not None:
            who, which, where = (
                (f"head {name}", f" {name}", f"/{name}") if name else ("the student", "", "")
            )
            raise ConfigError(
                f"{who} learns from a teacher for {plan.task} over a plan for {plan.own_task}, and "
                f"is not scored here: leave --eval{which} out, and score the model when it is done "
                f"(kdcache evaluate OUT{where} FILE)"
            )


def of_heads(given: Any, heads: Sequence[str], flag: str) -> dict[str, Any]:
    """What is given for each head, by its name; of a student with one, under "".

    Raises ConfigError where it is not said for which head something is.
    """
    if given is None:
        return {}
    if not heads and not isinstance(given, Mapping):
        return {"": given}
    if not heads:
        raise ConfigError(
            f"{flag} {next(iter(given), 'NAME')}=... names a head, and the student has one for "
            "all: leave the name out"
        )
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"the student has heads {', '.join(heads)}: say which one {flag} is for, as in "
            f"{flag} {heads[0]}={given}"
        )
    for name in given:
        one_of(f"head in {flag}", name, heads)
    return dict(given)
