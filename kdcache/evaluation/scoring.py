"""Scores of a model over planned documents: a forward pass, and the metrics of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdcache.errors import CorpusError, ModelError
from kdcache.labels import known
from kdcache.labels.base import Bools
from kdcache.labels.metrics import language
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, check_alone, load_teacher, load_tokenizer, run
from kdcache.models.auto import require_token_types
from kdcache.models.largest_id import require_ids
from kdcache.models.teacher import check_fit, most_tokens
from kdcache.plans import Docs, Plan
from kdcache.plans.batch import collate, length_batches
from kdcache.progress import Progress, short
from kdcache.signals import LOGITS
from kdcache.tasks.summed import Summed, mean

BATCH = 64  # documents of mean length in a forward

LOWER_IS_BETTER = ("mse", "cross_entropy")
"""Of the metrics that students are chosen by."""

Seen = Callable[[Docs, torch.Tensor], None]
"""Called with the documents of each batch and their logits [rows, outputs]."""


@dataclass(frozen=True)
class Predictions:
    """What a model says of D documents; of a language model's, scores of each row only.

    Attributes:
        docs: [D] int64, rows of the plan's document space, rising.
        logits: [D, C] float32, or a row for each selected token; [0, 0] for language models.
        nats: [rows] float64, cross-entropy of each labelled row; language models only.
        correct: [rows], whether the likeliest token is right; language models only.
        rows: the document of each row of `logits`, or of `nats`; None: a row is a document.
    """

    docs: Docs
    logits: npt.NDArray[np.float32]
    nats: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]
    rows: Docs | None = None

    @property
    def of_rows(self) -> Docs:
        """The document of each row of `logits`, or of `nats`."""
        return self.docs if self.rows is None else self.rows

    def only(self, chosen: Bools) -> Predictions:
        """Those of the documents that are `chosen`, [rows of the plan's document space]."""
        rows = chosen[self.of_rows]
        return Predictions(
            self.docs[chosen[self.docs]],
            self.logits[rows] if len(self.logits) else self.logits,
            self.nats[rows] if len(self.nats) else self.nats,
            self.correct[rows] if len(self.correct) else self.correct,
            self.of_rows[rows],
        )

    @property
    def finite(self) -> bool:
        """Whether every score is a number: those of a student that has diverged are not."""
        return bool(np.isfinite(self.logits).all() and np.isfinite(self.nats).all())


def token_budget(plan: Plan, batch_size: int) -> int:
    """Tokens of a forward of `batch_size` documents of mean length."""
    return batch_size * max(1, plan.tokens // plan.documents)


def forward(
    model: Any, plan: Plan, batches: Iterable[Docs]
) -> Iterator[tuple[Docs, torch.Tensor, torch.Tensor]]:
    """Documents, float32 logits [rows, outputs] and labels [rows] of each batch, on the device."""
    for docs in batches:
        batch = collate(plan, docs, {}).to(model.device)
        with torch.inference_mode():
            logits = run(model, batch, [LOGITS], task=plan.task)[LOGITS]
        yield docs, logits.float(), batch["labels"]


def predict(
    model: Any, plan: Plan, batches: Iterable[Docs], seen: Seen = lambda docs, logits: None
) -> Predictions:
    """What `model`, in evaluation mode, says of the documents in `batches`."""
    found: list[Predictions] = []
    for docs, logits, labels in forward(model, plan, batches):
        found.append(_predictions(plan, docs, logits, labels))
        seen(docs, logits)
    return joined(found)


def _predictions(plan: Plan, docs: Docs, logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    rows = np.repeat(docs, plan.spans(docs, plan.task.rows)[1])
    if plan.task.labelled:
        return Predictions(docs, logits.cpu().numpy(), np.empty(0), np.empty(0, np.bool_), rows)
    labelled = labels >= 0
    nats = torch.nn.functional.cross_entropy(logits[labelled], labels[labelled], reduction="none")
    correct = logits[labelled].argmax(-1) == labels[labelled]
    return Predictions(
        docs,
        np.empty((0, 0), np.float32),
        nats.double().cpu().numpy(),
        correct.cpu().numpy(),
        rows[labelled.cpu().numpy()],
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions over several batches as those of all their documents."""
    docs = np.concatenate([np.empty(0, np.int64), *(part.docs for part in parts)])
    logits = [part.logits for part in parts if len(part.logits)]
    nats = np.concatenate([np.empty(0), *(part.nats for part in parts)])
    correct = np.concatenate([np.empty(0, np.bool_), *(part.correct for part in parts)])
    rows = np.concatenate([np.empty(0, np.int64), *(part.of_rows for part in parts)])
    order = np.argsort(rows, kind="stable")
    return Predictions(
        np.sort(docs),
        np.concatenate(logits)[order] if logits else np.empty((0, 0), np.float32),
        nats[order] if len(nats) else nats,
        correct[order] if len(correct) else correct,
        rows[order],
    )


def scores(plan: Plan, found: Predictions) -> Json:
    """The metrics of the task, see `metrics`, over the documents of `found` that have labels."""
    if not plan.task.labelled:
        if not len(found.nats):
            raise CorpusError("no document has a token to predict")
        return {"rows": len(found.nats), **language(found.nats, found.correct)}
    kind = plan.label_kind
    assert kind.scores is not None
    labels, names = plan.labels(found.docs), plan.config.classes or []
    there = known(labels)
    if not there.any():
        raise CorpusError("no row of the documents has a label to score against")
    counts = plan.spans(found.docs, plan.task.rows)[1]
    own = plan.task.scores(found.logits.argmax(1), labels, counts, names)
    return {**own, **kind.scores(found.logits[there], labels[there], names)}


def main_score(plan: Plan, found: Predictions) -> tuple[Summed, Docs]:
    """The score by which slices are told apart, of what each labelled document of the corpus adds
    to it, and the numbers of these, [N] rising: windows of a document are one.

    Raises CorpusError if no document has a label.
    """
    number = plan.per_document["doc_id"]
    if not plan.task.labelled:
        made, rows = mean("cross_entropy", found.nats), number[found.of_rows]
    else:
        kind, labels = plan.label_kind, plan.labels(found.docs)
        assert kind.summed is not None
        there, counts = known(labels), plan.spans(found.docs, plan.task.rows)[1]
        rows, names = number[found.of_rows][there], plan.config.classes or []
        own = plan.task.summed(found.logits.argmax(1), labels, counts, names)
        made = own or kind.summed(found.logits[there], labels[there])
        if own is not None:
            labelled = np.isin(number[found.docs], rows)
            made, rows = replace(own, adds=own.adds[labelled]), number[found.docs][labelled]
    if not len(rows):
        raise CorpusError("no row of the documents has a label to score against")
    documents, place = np.unique(rows, return_inverse=True)
    adds = np.zeros((len(documents), made.adds.shape[1]))
    np.add.at(adds, place, made.adds)
    return replace(made, adds=adds), documents


def score_of(plan: Plan) -> Summed:
    """The score by which slices of a plan's documents are told apart, of a model that says nothing:
    what documents add to that of another takes the place of its `adds`.
    """
    docs = rows = plan.docs
    logits = np.empty((0, 0), np.float32)
    if plan.task.labelled:
        labels, counts = plan.labels(docs), plan.spans(docs, plan.task.rows)[1]
        logits = np.zeros((len(labels), *(labels.shape[1:] or (1,))), np.float32)
        rows = np.repeat(docs, counts)
    nothing = np.zeros(len(docs))
    return main_score(plan, Predictions(docs, logits, nothing, nothing > 0, rows))[0]


def metric_of(plan: Plan, docs: Docs) -> str:
    """The metric that students are chosen by on labelled documents of a plan."""
    kind = plan.label_kind
    assert kind.metric is not None
    own = plan.task.metric(plan.config.classes or [])
    return own or kind.metric(plan.labels(docs) if kind.column else docs)


def require_finite(name: str, logits: torch.Tensor) -> None:
    """Raise ModelError unless every output of the model called `name` is a number."""
    if not torch.isfinite(logits).all():
        raise ModelError(f"the outputs of {name} are not finite: its training diverged")


def require_fit(model: Any, plan: Plan, name: str) -> None:
    """Raise ModelError unless the model called `name` takes every token of the plan."""
    way = "put the tokenizer it was trained with into its folder, or leave the document out"
    require_ids(plan, model.config.get_text_config().vocab_size, name, way)
    limit, longest = most_tokens(model), int(plan.per_document["doc_len"].max())
    if limit is not None and longest > limit:
        raise ModelError(f"{name} takes {limit} tokens, not {longest}; pass --max-length {limit}")
    require_token_types(model.config, plan, name)


def settle(model: Any, plan: Plan, name: str, progress: Progress) -> bool:
    """See to it that a model says of a document what it says of that document alone.

    Returns whether pads make a difference, as `check_alone`.
    """
    return check_alone(model, plan.task, plan, name=f"the model {name}", progress=progress)


def score_teacher(
    source: str | Path, plan: Plan, tokenizer: Tokenizer, docs: Docs, **options: Any
) -> tuple[Teacher, Json]:
    """Load the teacher in `source`, and score it on documents: see `run_teacher`."""
    loaded, found = run_teacher(source, plan, tokenizer, docs, **options)
    return loaded, scores(plan, found)


def run_teacher(
    source: str | Path,
    plan: Plan,
    tokenizer: Tokenizer,
    docs: Docs,
    *,
    batch_size: int,
    device: str,
    progress: Progress,
    trust_remote_code: bool = False,
) -> tuple[Teacher, Predictions]:
    """Load the teacher in `source`, and run it on `docs` of a plan that `tokenizer` made.

    Raises ModelError if it cannot be loaded or is no teacher of such documents.
    """
    loaded = load_teacher(
        source, task=plan.task, device=device, trust_remote_code=trust_remote_code
    )
    own = load_tokenizer(source, trust_remote_code=trust_remote_code)
    check_fit(loaded, plan, tokenizer, own)
    name = loaded.identity["name"]
    settle(loaded.model, plan, name, progress)
    label = f"evaluating the teacher {short(source)} on the same"
    with progress.bar(label, unit="documents", total=len(docs)) as advance:

        def seen(batch: Docs, logits: torch.Tensor) -> None:
            require_finite(name, logits)
            advance(len(batch))

        batches = length_batches(plan, docs, token_budget(plan, batch_size))
        found = predict(loaded.model, plan, batches, seen)
    return loaded, found
