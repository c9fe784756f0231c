"""The documents a student is chosen on: held out of the cache, or of a file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from kdcache.building.planner import PlanOptions, make_plan, scratch_folder
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError
from kdcache.evaluation.scoring import joined, metric_of, predict, scores, token_budget
from kdcache.labels import UNKNOWN
from kdcache.manifest import Json, digest
from kdcache.models.classifier_outputs import outputs_of
from kdcache.models.token_map import cached_tokenizer
from kdcache.plans import Array, Column, Docs, Plan, column_space
from kdcache.plans.batch import length_batches
from kdcache.plans.same_texts import text_keys
from kdcache.progress import Progress, short
from kdcache.store import Cache
from kdcache.training.dev_options import DevOptions
from kdcache.training.evaluation import same_columns

SPLIT = 0xDE5  # sets the draw of a split apart from those of the order of documents


@dataclass(frozen=True, kw_only=True)
class DevSet:
    """Documents a student is scored on while it trains, and which are not trained on for it.

    Attributes:
        plan: where they lie.
        docs: [D] int64, their rows in its document space; labelled ones.
        metric: what the student is chosen by.
        source: where they come from, in words.
        left_out: rows of the cache's document space that are not trained on.
        same: how many of those are left out for their text alone.
        texts: what tells a document with the text of one of these, by the teacher's tokens.
        told: of a file read by a student with a tokenizer of its own, its documents in the
            teacher's tokens, by which they are found in the cache; None: `plan` is in these.
    """

    plan: Plan
    docs: Docs
    metric: str
    source: str
    left_out: Docs
    same: int
    texts: frozenset[bytes] = field(repr=False)
    told: Plan | None = field(default=None, repr=False)

    @property
    def record(self) -> Json:
        """What tells whether a run that is resumed is scored on the same documents."""
        ids = [self.plan.sha256, self.docs.tolist()]
        return {"documents": len(self.docs), "sha256": digest(ids)}

    @property
    def documents(self) -> int:
        """How many a student is scored on."""
        return len(self.docs)

    @property
    def withheld(self) -> int:
        """How many of the cache's are not trained on."""
        return len(self.left_out)

    @property
    def each(self) -> dict[int, DevSet]:
        """The dev set of each model that is scored, by its number among the heads."""
        return {0: self}

    @property
    def notes(self) -> list[str]:
        """What a person should know of them."""
        scored = self.plan.task.scored(self.plan.config.classes or [])
        notes = [f"the dev set scores {scored}"] if scored else []
        if self.same:
            documents = f"{self.same:,} document{'s' if self.same > 1 else ''}"
            notes.append(
                f"{documents} of the cache are left out of training: their text is in the dev set"
            )
        return notes

    def score(self, model: Any, *, batch_size: int, rank: int = 0, ranks: int = 1) -> Json:
        """Every metric of `model` on the documents, shared among `ranks`, which all have to ask.

        NaN for the metric, and nothing else, of a model whose outputs are not finite.
        """
        batches = list(length_batches(self.plan, self.docs, token_budget(self.plan, batch_size)))
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            mine = predict(model, self.plan, batches[rank::ranks])
        finally:
            for module, training in modes:
                module.training = training
        found = joined(gather_object([mine]) if ranks > 1 else [mine])
        return scores(self.plan, found) if found.finite else {self.metric: math.nan}


def value_of(scored: Json, metric: str) -> float:
    """The metric among scores; no correlation at all where a model says the same of everything."""
    return 0.0 if scored[metric] is None else float(scored[metric])


def make_dev(
    options: DevOptions, cache: Cache, docs: Docs, *, seed: int, config: Any, progress: Progress
) -> DevSet:
    """The dev set of a run that would train on `docs` of a cache.

    `config` is the student's. Raises ConfigError or CorpusError where it would be empty, or leave
    nothing to train on.
    """
    if options.split is not None:
        made = _held_out(options.split, cache, docs, seed)
    else:
        made = _of_file(str(options.file), cache, docs, config, progress)
    if len(made.left_out) == len(docs):
        raise ConfigError(
            f"{made.source} leaves nothing to train on: all {len(docs):,} documents of the cache "
            "are in it; choose another dev set"
        )
    return made


def _held_out(share: float, cache: Cache, docs: Docs, seed: int) -> DevSet:
    """A share of the labelled rows of the corpus, with all views and windows of each."""
    plan = cache.plan
    labelled = np.intersect1d(docs, plan.labelled_docs)
    rows = np.unique(plan.per_document["doc_id"][labelled])
    count = round(share * len(rows))
    if count == 0:
        raise ConfigError(
            f"--dev-split {share:g} of {len(rows):,} labelled documents is none: choose a larger "
            "share, or a file (--dev)"
        )
    drawn = np.random.default_rng((seed, SPLIT)).permutation(rows)[:count]
    held = labelled[np.isin(plan.per_document["doc_id"][labelled], drawn)]
    keys = dict(text_keys(cache.original.plan))
    texts = frozenset(keys[doc] for doc in held.tolist())
    same = np.setdiff1d(_with_text(texts, keys, docs), held)
    return DevSet(
        plan=plan,
        docs=held,
        metric=metric_of(plan, held),
        source=f"{100 * share:.4g}% of the cache's documents, drawn with seed {seed}",
        left_out=np.union1d(held, same),
        same=len(same),
        texts=texts,
    )


def _with_text(texts: frozenset[bytes], keys: Mapping[int, bytes], docs: Docs) -> Docs:
    """Those of `docs` whose text is one of `texts`."""
    return np.asarray([doc for doc in docs.tolist() if keys[doc] in texts], np.int64)


def same_texts(dev: DevSet, cache: Cache, docs: Docs) -> Docs:
    """Those of the documents of another cache whose text is in the dev set."""
    return _with_text(dev.texts, dict(text_keys(cache.original.plan)), docs)


def _of_file(file: str, cache: Cache, docs: Docs, config: Any, progress: Progress) -> DevSet:
    plan = file_plan(file, cache, config, progress)
    held = plan.labelled_docs
    if not len(held):
        raise CorpusError(f"{file} has no labels to score against: --dev names labelled documents")
    told = plan
    if cache.original is not cache:
        told = file_plan(file, cache.original, config, progress)
    texts = frozenset(key for _, key in text_keys(told))
    same = _with_text(texts, dict(text_keys(cache.original.plan)), docs)
    return DevSet(
        plan=plan,
        docs=held,
        metric=metric_of(plan, held),
        source=Path(file).name,
        left_out=same,
        same=len(same),
        texts=texts,
        told=None if told is plan else told,
    )


def require_untested(dev: DevSet, test: Plan, file: Any) -> list[str]:
    """What a person should know of documents that are in the dev set and in a test set, too.

    Raises ConfigError where all of the test set are: it would be the one that chooses.
    """
    same = sum(key in dev.texts for _, key in text_keys(test))
    if same == test.documents:
        raise ConfigError(
            f"all documents of {name_of(file)} (--eval) are in the dev set ({dev.source}), and a "
            "score on documents that the student was chosen on says too much: name others"
        )
    if not same:
        return []
    documents = f"{same:,} of the {test.documents:,} documents of {short(file)} (--eval)"
    return [f"{documents} have the text of one in the dev set: the student is chosen on them"]


def file_plan(file: Any, cache: Cache, config: Any, progress: Progress) -> Plan:
    """The documents of a file, in memory, cut and masked as those of a cache.

    Classes are those of the student's `config`.
    """
    planned, tokenizer = cache.plan.config, cached_tokenizer(cache)
    options: PlanOptions = {"max_length": planned.max_length, "seed": planned.seed}
    if "mask_probability" in cache.plan.task.options:
        options["mask_probability"] = planned.mask_probability
    columns = same_columns(planned.corpus, file)
    options["text_columns"] = columns["text_columns"]
    options["label_column"] = columns["label_column"]
    task = cache.plan.task
    with scratch_folder(None) as scratch:
        plan = make_plan(
            file,
            tokenizer,
            scratch=scratch,
            task=task,
            classes=outputs_of(config) if task.labelled else UNKNOWN,
            like=planned.corpus["text_columns"],
            progress=progress,
            **options,
        )
        return dataclasses.replace(plan, columns=_in_memory(plan))


def _in_memory(plan: Plan) -> dict[str, Column]:
    """The plan's columns without the files they lie in, which go before training ends."""
    return {
        name: _Rows(column[0 : plan.parts * plan.rows[column_space(name)]])
        for name, column in plan.columns.items()
    }


class _Rows:
    """A column of a plan in memory, [rows]."""

    def __init__(self, rows: Array) -> None:
        self.rows, self.dtype = rows, rows.dtype

    def __getitem__(self, rows: slice) -> Array:
        return self.rows[rows]

    def read(self, starts: Array, counts: Array) -> Array:
        """Rows of several spans, one after the other."""
        spans = [self.rows[a : a + n] for a, n in zip(starts, counts, strict=True)]
        return np.concatenate(spans) if spans else self.rows[:0]
