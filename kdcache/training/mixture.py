"""The caches that a student learns from in one run: which, in which shares, whether they fit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from kdcache.errors import ConfigError, ModelError
from kdcache.manifest import Json
from kdcache.models.heads import heads_config, load_heads
from kdcache.models.recording import heads_of, members_of
from kdcache.models.student import StudentSpec, load_student, student_config
from kdcache.models.student_fit import require_length, require_tokens
from kdcache.models.teacher import model_sizes
from kdcache.progress import short
from kdcache.signals import ModelSizes
from kdcache.store import Cache, open_cache
from kdcache.training.mixing import MIXES
from kdcache.training.run_folder import CHECKPOINTS, STAGES, cache_identity
from kdcache.training.traits import apart, require_together

CAPTION = 110  # characters of a line under a title
HEAD_NAME = r"[A-Za-z0-9_-]+"
TAKEN = (CHECKPOINTS, STAGES)  # folders of a run
IDENTITY = ("plan", "contents", "teacher", "signals")


@dataclass(frozen=True)
class Mixture:
    """The caches of a run, in the order they are named.

    The first is what the student is made for: its teacher, tokenizer and classes are the student's.

    Attributes:
        mix: shares of the steps, which sum to 1, or a name of MIXES; None: every document comes
            once an epoch.
        heads: names of the student's heads, one for each cache; none where all have one.
        notes: what a person should know of them.
    """

    caches: tuple[Cache, ...]
    mix: tuple[float, ...] | str | None = None
    heads: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Cache:
        return self.caches[0]

    @property
    def others(self) -> tuple[Cache, ...]:
        """All but the first."""
        return self.caches[1:]

    @property
    def names(self) -> str:
        """What to call them in a label."""
        return ", ".join(short(str(cache.path)) for cache in self.caches)

    @property
    def record(self) -> Json | None:
        """What tells whether a run that is resumed learns from the same; None of one cache."""
        if not self.others:
            return None
        caches = [cache_identity(cache, None) for cache in self.caches]
        identities = [{key: identity[key] for key in IDENTITY} for identity in caches]
        heads = {"heads": list(self.heads)} if self.heads else {}
        mix = list(self.mix) if isinstance(self.mix, tuple) else self.mix
        return {"mix": mix, "caches": identities, **heads}

    @property
    def by_head(self) -> dict[str, Cache]:
        """The caches by the names of their heads; none where all have one."""
        return dict(zip(self.heads, self.caches, strict=bool(self.heads)))

    @property
    def by_name(self) -> dict[str, Cache]:
        """The caches by the names of their heads; of one head for all, the first under ""."""
        return self.by_head or {"": self.first}

    def config(self, spec: StudentSpec) -> Any:
        """The student's configuration, held against every cache."""
        if self.heads:
            return heads_config(spec, self.by_head)
        config = student_config(spec, self.first)
        _require_tokens(config, self.others)
        return config

    def sizes(self, config: Any) -> list[ModelSizes]:
        """Those of the student as it is for each cache."""
        return [
            model_sizes(own, cache.plan.task)
            for own, cache in zip(self.configs(config), self.caches, strict=True)
        ]

    def configs(self, config: Any) -> list[Any]:
        """The student's configuration as it is for each cache."""
        return list(config.members) if self.heads else [config] * len(self.caches)

    def load(self, config: Any, spec: StudentSpec, *, seed: int) -> Any:
        """Make the student."""
        if self.heads:
            return load_heads(config, spec, self.caches, seed=seed)
        student = load_student(self.first, spec, seed=seed)
        for one in members_of(student):
            for other in self.others:
                require_length(one, other)
        return student

    def readers(self, student: Any) -> list[tuple[Any, list[Cache]]]:
        """Every model that is trained, with the caches it learns from."""
        if self.heads:
            return [
                (one, [cache]) for one, cache in zip(heads_of(student), self.caches, strict=True)
            ]
        return [(one, list(self.caches)) for one in members_of(student)]

    def require_whole(self, *, allow_partial: bool) -> None:
        """Raise IncompleteError for several caches of which one lacks parts."""
        if self.others and allow_partial:
            raise ConfigError(
                "--allow-partial is for one cache: wait until all of several are built"
            )
        for cache in self.others:
            cache.require_complete()

    def caption(self, documents: Sequence[int]) -> str:
        """A line under a title: each of several caches, its contents and its share."""
        if not self.others:
            return ""
        told = (
            f"{row['cache']} {row['contents'][:8]} {row['share']:.0%}"
            for row in self.report(documents)
        )
        return "\n" + fill(", ".join(told), CAPTION)

    def report(self, documents: Sequence[int]) -> list[Json]:
        """What metrics and card say of each cache, given its documents of an epoch."""
        names = [{"head": name} for name in self.heads] or [{}] * len(self.caches)
        return [
            {
                **name,
                "cache": short(str(cache.path)),
                "plan": cache.manifest["plan"]["sha256"],
                "contents": cache_identity(cache, None)["contents"],
                "teacher": cache.manifest["teacher"]["name"],
                "documents": cache.plan.documents,
                "documents_an_epoch": count,
                "share": count / sum(documents),
            }
            for name, cache, count in zip(names, self.caches, documents, strict=True)
        ]


def open_mixture(caches: Any, mix: Sequence[float] | str | None) -> Mixture:
    """The caches that a call of `train` names, opened.

    Those of a mapping get a head each, by its names, and so do others of which two differ in what
    a head is made for. Raises ConfigError for shares that do not fit, or a cache named twice;
    MismatchError for caches that do not go together.
    """
    given = list(caches.values()) if isinstance(caches, Mapping) else caches
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ConfigError("train takes a cache, or several in a list; got an empty list")
    opened = tuple(c if isinstance(c, Cache) else open_cache(c) for c in several)
    shares = None if mix is None else _shares(mix, opened)
    for number, cache in enumerate(opened):
        if any(_place(cache) == _place(other) for other in opened[:number]):
            raise ConfigError(f"{cache.path} is named twice: name it once, or weigh it with --mix")
        require_together(opened[0], cache)
    if isinstance(caches, Mapping):
        return Mixture(opened, shares, head_names(list(caches), opened))
    why = next((told for cache in opened if (told := apart(opened[0], cache))), "")
    if not why:
        return Mixture(opened, shares)
    names = head_names([_name(cache) for cache in opened], opened)
    note = f"{why}: the student has a head for each cache, {' and '.join(names)}"
    return Mixture(opened, shares, names, (note,))


def head_names(names: Sequence[str], caches: Sequence[Cache]) -> tuple[str, ...]:
    """Names of heads as folders are called by them; ConfigError for one that will not do."""
    if len(caches) == 1:
        raise ConfigError(
            f"heads are named where a student learns from several caches, and {names[0]} is the "
            "only one: leave the name out"
        )
    for number, name in enumerate(names):
        if not re.fullmatch(HEAD_NAME, str(name)) or name in TAKEN:
            raise ConfigError(
                f"a head is called by letters, digits, - and _, and none of {', '.join(TAKEN)}; "
                f"got {name!r} for {caches[number].path}: name it, as in sst2=sst2.cache"
            )
        if name in names[:number]:
            raise ConfigError(f"two heads are called {name}: name each, as in one={caches[0].path}")
    return tuple(names)


def _place(cache: Cache) -> tuple[str, str]:
    """What is learned from: a cache as one of its teachers."""
    return str(cache.path), cache.teacher or cache.first


def _name(cache: Cache) -> str:
    """What the head of a cache is called that nobody has named."""
    if cache.teacher:
        return re.sub(r"[^\w-]+", "-", cache.teacher)
    last = str(cache.path).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w-]+", "-", last.removesuffix(".cache"))


def _shares(mix: Sequence[float] | str, caches: Sequence[Cache]) -> tuple[float, ...] | str:
    values = [] if mix in MIXES else _numbers(mix)
    if len(caches) == 1:
        raise ConfigError("--mix shares the steps out among several caches, and there is one")
    if isinstance(mix, str) and mix in MIXES:
        return mix
    if len(values) != len(caches):
        raise ConfigError(
            f"--mix has {len(values)} shares, and there are {len(caches)} caches: give one for each"
        )
    return tuple(value / math.fsum(values) for value in values)


def _numbers(mix: Sequence[float] | str) -> list[float]:
    try:
        values = [float(v) for v in (mix.split(",") if isinstance(mix, str) else mix)]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--mix takes shares as in 0.7,0.3; got {mix!r} (or one of {', '.join(MIXES)})"
        ) from error
    if not all(0 < value < math.inf for value in values):
        raise ConfigError(f"shares (--mix) are more than 0 and finite; got {mix!r}")
    return values


def _require_tokens(config: Any, others: Sequence[Cache]) -> None:
    """Raise ModelError, naming the cache, if the student lacks a token of one behind the first."""
    for other in others:
        try:
            for one in (config, *getattr(config, "members", ())):
                require_tokens(one, other)
        except ModelError as error:
            raise ModelError(f"{other.path}: {error}") from error
