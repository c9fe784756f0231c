"""What weighs the documents of the batches of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kdcache.errors import ConfigError, KdcacheError, one_of
from kdcache.losses import SP, CacheSpec, Loss, SoftKL
from kdcache.losses.between_documents import VECTORS
from kdcache.losses.binding import bind
from kdcache.losses.bound import Bound
from kdcache.losses.pairs import Pairs
from kdcache.losses.pool import Pool
from kdcache.losses.selector import Selector
from kdcache.losses.teachers import Teaching
from kdcache.losses.weighed import Asked
from kdcache.manifest import Json
from kdcache.plans import Docs
from kdcache.plans.batch import Batch
from kdcache.signals import Activations, ModelSizes
from kdcache.store import Cache
from kdcache.training.weighting import FIELD, Weighting

SAMPLE = 8  # documents that are weighed before anything loads
READ = 256  # documents that are read at once where all are


class Weigher:
    """Weighs the documents of one cache in the batches of a run; checked in full when made.

    Attributes:
        arrays: what has to be read of the cache for it.
        selector: what it learns from scores on the dev set, if it learns; caches of a run share it.
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
        self.selector = self._learner()
        self.vectors = self._vectors(student)
        read = [one for one in (self.soft, self.vectors) if one is not None]
        self.arrays = list(dict.fromkeys(name for one in read for name in one.arrays))
        self._read = cache.batch
        if len(pool.docs):
            self._try(cache.batch(pool.docs[:SAMPLE], self.arrays))

    def _soft(self, student: ModelSizes) -> Bound:
        """The soft labels of the teacher that is asked for."""
        name, spec = self.weighting.name, self._teacher
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
        return self._bound(SoftKL(), student)

    def _learner(self) -> Selector | None:
        """What the way learns."""
        if self.weighting.way.learns is None:
            return None
        return self.weighting.way.learns(self._teacher.shape, self.options)

    def _vectors(self, student: ModelSizes) -> Bound | None:
        """The teacher's vectors of documents, if the way asks for some."""
        vectors = self.weighting.way.vectors(self.options)
        if not vectors:
            return None
        one_of(f"vectors of {FIELD}", vectors, VECTORS)
        loss = SP(vectors=vectors, signal=str(self.options.get("signal", "")))
        return self._bound(loss, student)

    @property
    def _teacher(self) -> CacheSpec:
        """The cache as the teacher that is asked for."""
        if not self.weighting.teacher:
            return self.spec
        one_of(f"teacher in {FIELD}", self.weighting.teacher, self.spec.teachers)
        return self.spec.teachers[self.weighting.teacher]

    def _bound(self, loss: Loss, student: ModelSizes) -> Bound:
        """What a loss would learn from that teacher."""
        teaching = Teaching(teachers=self.weighting.teacher)
        try:
            return bind(FIELD, loss, self.spec, student, teaching).matches[0]
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"losses.{FIELD}", FIELD)) from error

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
        found = self.weighting.way.weights(self._asked(host, step), **self.options)
        self._check(found, len(host["docs"]))
        batch.weigh(found.double(), counted=self.weighting.mean == "documents")
        return float(found.sum())

    def _asked(self, batch: Batch, step: int) -> Asked:
        """What a way is told of documents on the host."""
        nothing: Any = None
        known = Activations(values={}, mask=batch.mask)
        return Asked(
            batch=batch,
            pool=self.pool,
            seed=self.seed,
            step=step,
            soft=self.soft,
            pairs=Pairs(self.spec, batch, known, project=nothing),
            vectors=self.vectors,
            selector=self.selector,
            every=self._every,
        )

    def _every(self) -> Iterator[Asked]:
        """All documents, a batch at a time, in the order in which they lie."""
        docs = self.pool.docs
        for start in range(0, len(docs), READ):
            yield self._asked(self._read(docs[start : start + READ], self.arrays), 0)

    @property
    def learnt(self) -> Json:
        """What it has learnt, as "selector", if it learns."""
        if self.selector is None:
            return {}
        return {"selector": self.selector.told(self.options["features"])}

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
    _share_selector(made)
    return made


def _share_selector(weighers: Sequence[Weigher]) -> None:
    """Let what all caches learn be one; ConfigError where their documents differ in features."""
    first, *others = weighers
    if first.selector is None:
        return
    first.selector.forget()  # documents that were tried
    features = len(first.selector.policy)
    for other in others:
        assert other.selector is not None
        if len(other.selector.policy) != features:
            raise ConfigError(
                f"{first.pool.cache} and {other.pool.cache} do not go together in "
                f"{FIELD}={first.weighting.name}: the vectors of their teachers differ in width; "
                "leave vectors out, or one of the caches"
            )
        other.selector = first.selector


def require_scored(weighers: Sequence[Weigher], *, scored: bool, stage: str) -> None:
    """ConfigError where documents are weighed by what scores on a dev set teach, and there are
    none."""
    if scored or not weighers or weighers[0].selector is None:
        return
    why, what = "this run has none", "give one with --dev FILE or --dev-split 10%"
    if stage:
        why = f"stage {stage!r} takes none"
        what += f", and {FIELD} to the last stage alone, which is scored"
    raise ConfigError(
        f"{FIELD}={weighers[0].weighting.name} learns from scores on a dev set, and {why}: {what}"
    )


def weights_record(weighers: Sequence[Weigher]) -> list[Json]:
    """What tells whether a run that is resumed weighs by the same columns: of each cache."""
    found = [dict(one.pool.record) for one in weighers]
    return found if any(found) else []
