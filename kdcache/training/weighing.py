"""The weights of documents that a recipe asks for, and those of the batches of a run."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kdcache.errors import ConfigError, KdcacheError, one_of
from kdcache.losses import CacheSpec, SoftKL
from kdcache.losses.binding import bind
from kdcache.losses.bound import Bound
from kdcache.losses.example_weights import EXAMPLE_WEIGHTS, Asked, Way
from kdcache.losses.pairs import Pairs
from kdcache.losses.pool import Pool
from kdcache.losses.teachers import Teaching
from kdcache.manifest import Json
from kdcache.plans import Docs
from kdcache.plans.batch import Batch
from kdcache.records import make
from kdcache.signals import ModelSizes
from kdcache.store import Cache

FIELD = "data.example_weights"
MEANS = ("weights", "documents")
SAMPLE = 8  # documents that are weighed before anything loads


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """What documents count for, as [data] of a recipe says.

    Attributes:
        name: a way of EXAMPLE_WEIGHTS.
        mean: what a loss's mean over a step divides by: the sum of the "weights", or the number of
            "documents", whatever these weigh.
        options: arguments of the way.
    """

    name: str
    mean: str = "weights"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of(FIELD, self.name, EXAMPLE_WEIGHTS)
        one_of(f"{FIELD}.mean", self.mean, MEANS)
        self.checked()

    @property
    def way(self) -> Way:
        return EXAMPLE_WEIGHTS[self.name]

    @property
    def teacher(self) -> str:
        """The teacher whose soft labels it asks for; "": the first."""
        return str(self.options.get("teacher", ""))

    def checked(self) -> dict[str, Any]:
        """The arguments as the way takes them; ConfigError for one that it does not."""
        made = make(_options(self.way), self.options, FIELD)
        return {entry.name: getattr(made, entry.name) for entry in dataclasses.fields(made)}

    def __str__(self) -> str:
        told = {**self.options, **({} if self.mean == MEANS[0] else {"mean": self.mean})}
        options = ", ".join(f"{name}={value}" for name, value in told.items() if name != "file")
        return f"{self.name} ({options})" if options else self.name


def _options(way: Way) -> Any:
    """The keyword arguments of a way, as a configuration of that many fields."""
    hints = typing.get_type_hints(way.weights)
    found = []
    for name, one in inspect.signature(way.weights).parameters.items():
        if one.kind is one.KEYWORD_ONLY:
            default = () if one.default is one.empty else (field(default=one.default),)
            found.append((name, hints.get(name, object), *default))
    return dataclasses.make_dataclass("Options", found, frozen=True, kw_only=True)


def weighting_of(value: str | Mapping[str, Any]) -> Weighting | None:
    """What [data] says of weights: a name, or a table of it and its options; "": nothing."""
    if not value:
        return None
    table = {"name": value} if isinstance(value, str) else dict(value)
    if not isinstance(table.get("name"), str):
        raise ConfigError(
            f"{FIELD} needs the name of a way ({', '.join(EXAMPLE_WEIGHTS)}); got {value!r}"
        )
    own = {key: table.pop(key) for key in ("name", "mean") if key in table}
    return Weighting(**own, options=table)


class Weigher:
    """Weighs the documents of one cache in the batches of a run; checked in full when made.

    Attributes:
        arrays: what has to be read of the cache for it.
        pool: the documents.

    Raises ConfigError, CorpusError or MismatchError where the cache cannot serve it.
    """

    def __init__(
        self,
        weighting: Weighting,
        cache: Cache,
        spec: CacheSpec,
        pool: Pool,
        student: ModelSizes,
        *,
        seed: int,
    ) -> None:
        self.weighting, self.spec, self.pool, self.seed = weighting, spec, pool, seed
        self.options = weighting.checked()
        self.soft = self._soft(student) if weighting.way.soft else None
        if weighting.way.labels and not spec.labelled:
            raise ConfigError(f"{FIELD}={weighting.name} asks for labels, and the corpus has none")
        self.arrays = [] if self.soft is None else list(self.soft.arrays)
        if len(pool.docs):
            self._try(cache.batch(pool.docs[:SAMPLE], self.arrays))

    def _soft(self, student: ModelSizes) -> Bound:
        """The soft labels of the teacher that is asked for."""
        name, spec = self.weighting.name, self.spec
        if self.weighting.teacher:
            one_of(f"teacher in {FIELD}", self.weighting.teacher, spec.teachers)
            spec = spec.teachers[self.weighting.teacher]
        taps = {tap.name for signal in spec.signals.values() for tap in signal.gives()}
        if "logits" not in taps:
            raise ConfigError(
                f"{FIELD}={name} needs soft labels; the cache holds {spec.held()}: build one with "
                "--signal logits:dense or logits:topk"
            )
        if spec.labels.no_divergence:
            raise ConfigError(
                f"{FIELD}={name} asks for a teacher's probabilities, and this one gives values"
            )
        teaching = Teaching(teachers=self.weighting.teacher)
        return bind(FIELD, SoftKL(), self.spec, student, teaching).matches[0]

    def _try(self, batch: Batch) -> None:
        """Weigh some documents before anything loads."""
        try:
            self.weigh(batch, 0)
        except KdcacheError as error:
            text = str(error)
            raise type(error)(text if FIELD in text else f"{self._named}: {text}") from error
        except Exception as error:  # of a function of a user's own
            text = " ".join(str(error).split())
            raise ConfigError(f"{self._named}: {type(error).__name__}: {text}") from error

    def weigh(self, batch: Batch, step: int) -> float:
        """Give the documents of a batch their weights, and return the sum of these.

        `step` counts the steps before its own.

        Raises ConfigError for weights that are none.
        """
        if batch.idle:
            return 0.0
        host = batch.on_host
        nothing: Any = None
        asked = Asked(
            batch=host,
            pool=self.pool,
            seed=self.seed,
            step=step,
            soft=self.soft,
            pairs=Pairs(self.spec, host, nothing, project=nothing),
        )
        found = self.weighting.way.weights(asked, **self.options)
        self._check(found, len(host["docs"]))
        batch.weigh(found.double(), counted=self.weighting.mean == "documents")
        return float(found.sum())

    def _check(self, found: Any, documents: int) -> None:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if shape != (documents,):
            raise ConfigError(
                f"{self._named} gives a weight for each of {documents} documents, a tensor "
                f"({documents},); got {shape}"
            )
        bad = ~(found.isfinite() & (found >= 0))
        if bad.any():
            raise ConfigError(
                f"{self._named} gives weights that are finite and 0 or more; got "
                f"{float(found[bad][0])}"
            )

    @property
    def _named(self) -> str:
        return f"{FIELD}={self.weighting.name}"


def weighers_of(
    weighting: Weighting | None,
    caches: Sequence[Cache],
    specs: Sequence[CacheSpec],
    docs: Sequence[Docs],
    sizes: Sequence[ModelSizes],
    *,
    seed: int,
) -> list[Weigher]:
    """What weighs the documents of each cache of a run; nothing where all count alike.

    `docs` are those of each cache that it trains on, and `sizes` those of the student as each of
    them has it. Raises as `Weigher`, naming the cache.
    """
    if weighting is None:
        return []
    made: list[Weigher] = []
    many = len(caches)
    each = zip(caches, specs, docs, sizes, strict=True)
    for number, (cache, spec, there, student) in enumerate(each):
        pool = Pool(cache.plan, there, cache=str(cache.path), number=number, caches=many)
        try:
            made.append(Weigher(weighting, cache, spec, pool, student, seed=seed))
        except KdcacheError as error:
            if number == 0:
                raise
            raise type(error)(f"{cache.path}: {error}") from error
    return made


def weights_record(weighers: Sequence[Weigher]) -> list[Json]:
    """What tells whether a run that is resumed weighs by the same columns: of each cache."""
    found = [dict(one.pool.record) for one in weighers]
    return found if any(found) else []
