"""Where fine-tuning starts: a head fitted to the encoder's states, on the pooler that suits it.

Fine-tuning from a fitted head distorts the encoder less than from a random one (Kumar et al. 2022,
arXiv:2202.10054). Sentence encoders were trained to be averaged over tokens while a classifier
reads a pooler that nobody trained: refitted, by ridge regression, the pooler gives that average.
Which of the two poolers is better, the dev documents say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from kdcache.manifest import Json
from kdcache.models import run
from kdcache.models.run import EQUAL, untouched
from kdcache.plans import Docs
from kdcache.plans.batch import Batch, collate
from kdcache.progress import Advance, Progress
from kdcache.signals import LOGITS
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.teaching.data import Data, Documents
from kdcache.teaching.scores import batches_of, merit, score
from kdcache.teaching.split import sample

Floats = npt.NDArray[np.floating[Any]]
MOST = 4096  # labelled documents that a head is fitted to: fine-tuning sees all
POOLED = 2048  # documents that suffice for a pooler; where labelled ones are fewer, others help
RIDGE = 10.0
INSIDE = 0.95  # of tanh's range, beyond which its inverse runs away


class Parts(NamedTuple):
    """Layers of a classifier: `head` gives the outputs, `pooler` what it reads, through a tanh."""

    encoder: nn.Module
    head: nn.Linear
    pooler: nn.Linear | None


@dataclass(frozen=True)
class Features:
    """What the layers of a classifier see of N documents, float32.

    Attributes:
        head: input of the head, [N, H].
        pooler: input of the pooler, [N, H]; None where there is none.
        mean: states of the last layer averaged over the tokens of a document, [N, H].
    """

    head: Floats
    pooler: Floats | None
    mean: Floats


def fit_start(
    model: Any,
    data: Data,
    weights: Floats | None,
    *,
    by: str,
    seed: int,
    progress: Progress,
) -> Json:
    """Fit the head of `model`, and its pooler where that is better on the dev documents, in place.

    Returns {"pooler": "own" or "refitted", "dev": scores of each that was tried}; pooler None: the
    model has no head that can be fitted, and is as it was.
    """
    parts = find_parts(model, _first(data.train))
    if parts is None:
        progress.say("the head of this encoder cannot be fitted beforehand: it starts at random")
        return {"pooler": None, "dev": {}}
    train = data.train.of(sample(data.train.classes, MOST, seed))
    few = max(0, POOLED - len(train)) if parts.pooler else 0
    spare = data.unlabelled.of(sample(data.unlabelled.classes, few, seed))
    total = len(train) + len(data.dev) + len(spare)
    with progress.bar("fitting the head", unit="documents", total=total) as advance:
        seen, on_dev, more = (
            features(model, parts, which, advance) for which in (train, data.dev, spare)
        )
        fitted: dict[str, tuple[Json | None, Any, Any]] = {}
        fit = partial(_fit_head, train=train, weights=weights, bias=parts.head.bias is not None)
        fitted["own"] = _try(seen, on_dev, data.dev, fit, None)
        if parts.pooler is not None:
            pooler = _refit([seen, more] if len(spare) else [seen])
            fitted["refitted"] = _try(seen, on_dev, data.dev, fit, pooler)
    best = max(fitted, key=lambda name: merit(fitted[name][0], by))
    _, head, pooler = fitted[best]
    _set(parts.head, head)
    if parts.pooler is not None and pooler is not None:
        _set(parts.pooler, pooler)
    return {"pooler": best, "dev": {name: scores for name, (scores, _, _) in fitted.items()}}


def find_parts(model: Any, batch: Batch) -> Parts | None:
    """The layers of a classifier, found by what they give for a batch; None if that fails."""
    base = model.base_model
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    heads = [m for m in layers if m.out_features == model.config.num_labels]
    if not heads or base is model:
        return None
    with untouched(model), _seen(layers) as seen:
        logits = run(model, batch, [LOGITS], task=TEXT_CLASSIFICATION)[LOGITS]
    head = heads[-1]
    if head not in seen:
        return None
    mask = batch.mask
    given, outputs = (_pooled(value, mask) for value in seen[head])
    if outputs.shape != logits.shape or not torch.allclose(outputs, logits, atol=1e-5):
        return None
    poolers = [
        layer
        for layer, (_, out) in seen.items()
        if layer.in_features == layer.out_features
        and out.shape == given.shape
        and torch.allclose(out.tanh(), given, atol=1e-5)
    ]
    return Parts(base, head, poolers[-1] if poolers else None)


@contextmanager
def _seen(
    layers: list[nn.Linear],
) -> Iterator[dict[nn.Linear, tuple[torch.Tensor, torch.Tensor]]]:
    """The last input and output of each layer that runs meanwhile."""
    seen: dict[nn.Linear, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        seen[layer] = inputs[0], output

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pooled(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Rows of documents: a decoder's head runs at every token, and the last one counts."""
    if values.dim() == 2:
        return values
    return values[torch.arange(len(values), device=values.device), mask.sum(1) - 1]


def features(model: Any, parts: Parts, documents: Documents, advance: Advance) -> Features:
    """What head and pooler see of documents."""
    found = {name: np.zeros((len(documents), 0), np.float32) for name in ("head", "pooler", "mean")}
    place = {int(doc): row for row, doc in enumerate(documents.docs)}
    for docs in _batches(model, documents):
        batch = collate(documents.plan, docs, {}).to(model.device)
        rows = [place[int(doc)] for doc in docs]
        for name, values in _look(model, parts, batch).items():
            if not found[name].shape[1]:
                found[name] = np.zeros((len(documents), values.shape[1]), np.float32)
            found[name][rows] = values.float().cpu().numpy()
        advance(len(docs))
    return Features(found["head"], found["pooler"] if parts.pooler else None, found["mean"])


def _batches(model: Any, documents: Documents) -> Iterator[Docs]:
    """Batches that `run` does not cut: of one length where pads make a difference."""
    if not getattr(model, EQUAL, False):
        yield from batches_of(documents)
        return
    lengths = documents.plan.per_document["doc_len"][documents.docs]
    for length in np.unique(lengths):
        yield from batches_of(documents.of(lengths == length))


def _look(model: Any, parts: Parts, batch: Batch) -> dict[str, torch.Tensor]:
    states: list[torch.Tensor] = []
    layers = [layer for layer in (parts.head, parts.pooler) if layer is not None]
    handle = parts.encoder.register_forward_hook(lambda _m, _i, output: states.append(output[0]))
    try:
        with untouched(model), _seen(layers) as seen:
            run(model, batch, [LOGITS], task=TEXT_CLASSIFICATION)
    finally:
        handle.remove()
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (states[0] * mask).sum(1) / mask.sum(1)
    found = {"head": _pooled(seen[parts.head][0], batch.mask), "mean": mean}
    if parts.pooler is not None:
        found["pooler"] = seen[parts.pooler][0]
    return found


class Layer(NamedTuple):
    """Weights of a linear layer: [out, in] and [out]."""

    weight: Floats
    bias: Floats

    def __call__(self, rows: Floats) -> Floats:
        outputs: Floats = rows @ self.weight.T + self.bias
        return outputs


def _refit(seen: list[Features]) -> Layer:
    """A pooler that gives the mean over tokens, as a direction: entries of about 0.5 in tanh."""
    from sklearn.linear_model import Ridge

    inputs = np.concatenate([one.pooler for one in seen if one.pooler is not None])
    mean = np.concatenate([one.mean for one in seen]).astype(np.float64)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    wanted = np.arctanh(np.clip(mean * mean.shape[1] ** 0.5 / 2, -INSIDE, INSIDE))
    fitted = Ridge(alpha=RIDGE).fit(inputs.astype(np.float64), wanted)
    return Layer(fitted.coef_, fitted.intercept_)


def _try(
    seen: Features,
    on_dev: Features,
    dev: Documents,
    fit: Callable[[Floats], Layer],
    pooler: Layer | None,
) -> tuple[Json | None, Layer, Layer | None]:
    """Scores on the dev documents of a head fitted on a pooler, the head and the pooler."""
    head = fit(_read(seen, pooler))
    outputs = head(_read(on_dev, pooler)).astype(np.float32)
    return score(outputs, dev), head, pooler


def _read(seen: Features, pooler: Layer | None) -> Floats:
    """What the head reads: through its own pooler, or another."""
    if pooler is None or seen.pooler is None:
        return seen.head
    read: Floats = np.tanh(pooler(seen.pooler))
    return read


def _fit_head(read: Floats, train: Documents, weights: Floats | None, *, bias: bool) -> Layer:
    from sklearn.linear_model import LogisticRegression

    if train.teaching.fit is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as below
            return Layer(*train.teaching.fit(read, train.labels, bias))
    each = None if weights is None else dict(enumerate(weights.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps that did not suffice: it is but a start
        plain = LogisticRegression(max_iter=500, class_weight=each, fit_intercept=bias)
        fitted = plain.fit(read.astype(np.float64), train.classes)
    return _of_all_classes(fitted, len(train.plan.config.classes or []))


def _of_all_classes(fitted: Any, size: int) -> Layer:
    """A row for every class: of two, scikit-learn tells the difference alone; of the rest, none."""
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(coef) == 1:
        coef, intercept = np.stack([-coef[0], coef[0]]) / 2, np.array([-1, 1]) * intercept / 2
    weight = np.zeros((size, coef.shape[1]))
    bias = np.full(size, intercept.min() - 2.0)  # of a class without documents: seldom predicted
    weight[fitted.classes_], bias[fitted.classes_] = coef, intercept
    return Layer(weight, bias)


def _set(layer: nn.Linear, fitted: Layer) -> None:
    with torch.no_grad():
        for name, values in fitted._asdict().items():
            here = getattr(layer, name)
            if here is not None:  # a decoder's head has no bias
                here.copy_(torch.from_numpy(values))


def _first(documents: Documents) -> Batch:
    return collate(documents.plan, documents.docs[:1], {})
