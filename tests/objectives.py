"""Losses of a student and a teacher that are arrays: no model says them, no cache holds them.

What tests of losses know of how losses are bound to a cache and called is in this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from kdcache.losses import CacheSpec, Loss
from kdcache.plans.batch import STUDENT_WORDS, TEACHER_WORDS, WORD_DOCS, Batch
from kdcache.records import settings_of
from kdcache.signals import (
    LOGITS,
    SIGNALS,
    TAP_KINDS,
    DenseLogits,
    ModelSizes,
    Signal,
    SoftLabels,
    Tap,
    TopKLogits,
)
from kdcache.tasks import IGNORE_INDEX, TASKS
from kdcache.training.objective import Objective
from tests.activations import Outputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Given:
    """B documents of up to L tokens: what a student says of them and what a cache holds.

    Attributes:
        lengths: tokens of each document.
        masked: flat indices into B * L of the masked positions, rising; for masked-lm.
        labels: hard labels, a row per row of the logits: ids, or floats that are values.
        logits: the student's, [N, V] float32.
        hidden: the student's, [layers + 1, B, L, H] float32.
        soft: fields of the decoded soft labels by name, N rows each; none: the cache has no logits.
        taught: the teacher's hidden states, [layers + 1, B, L, H]; None: the cache has none.
        positions: of the teacher's hidden states that the cache holds.
        projection: weight and bias that every learned projection is set to.
        others: what the cache holds besides, all of it: by kind of signal, the student's and the
            teacher's values, [layers, B, ...] float32, of one layer where there are none.
        labelled: whether the cache has any hard label, in these documents or others.
        weights: of documents, [B]; None: the batch has none.
        peer: logits of a student that is trained with this one, [N, V]; None: it is alone.
        further: teachers by name, beside the first, which is called "first": the same
            documents with what each of them gave.
    """

    task: str
    lengths: Array
    labels: Array
    logits: Array
    hidden: Array
    masked: Array | None = None
    soft: Mapping[str, Array] = field(default_factory=dict)
    taught: Array | None = None
    positions: str = "cls"
    projection: tuple[Array, Array] | None = None
    labelled: bool = True
    weights: Array | None = None
    peer: Array | None = None
    others: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    further: Mapping[str, Given] = field(default_factory=dict)
    moved: Array | None = None

    @property
    def student(self) -> dict[str, Array]:
        """All that the student says: `logits`, and layers of the others by name of their tap; and
        `moved`, logits at the points of a teacher that was run at some.
        """
        others = {kind: student for kind, (student, _) in self.others.items()}
        moved = [one.moved for one in self.further.values() if one.moved is not None]
        others |= {"moved": moved[0]} if moved else {}
        return {"logits": self.logits, "hidden": self.hidden, **others}

    @property
    def mask(self) -> Array:
        """[B, L] bool, True where there is a token."""
        most = self.hidden.shape[2]
        return np.arange(most)[None, :] < self.lengths[:, None]

    @property
    def owners(self) -> Array:
        """The document of every row of the logits, [N]."""
        if self.task == "text-classification":
            return np.arange(len(self.lengths))
        if self.task == "causal-lm":
            return np.repeat(np.arange(len(self.lengths)), self.lengths)
        assert self.masked is not None
        return self.masked // self.hidden.shape[2]

    def rows_at(self, layers: Array, positions: str) -> Array:
        """Rows of one model's layers [..., B, L, H] at positions: [..., rows, H]."""
        if positions == "cls":
            return layers[..., :, 0, :]
        if positions == "mean":
            weight = self.mask[..., None] / self.lengths[:, None, None]
            return (np.where(self.mask[..., None], layers, 0.0) * weight).sum(-2)
        flat = layers.reshape(*layers.shape[:-3], -1, layers.shape[-1])
        which = np.flatnonzero(self.mask) if positions == "all" else self.masked
        return flat[..., which, :]

    def some(self, docs: Sequence[int]) -> Given:
        """The same of some documents, each as often as it is named."""
        which = np.asarray(docs)
        of_each = [np.flatnonzero(self.owners == doc) for doc in docs]
        rows = np.concatenate(of_each)
        masked = None
        if self.masked is not None:
            width = self.hidden.shape[2]
            places = np.repeat(np.arange(len(which)), [len(each) for each in of_each])
            masked = places * width + self.masked[rows] % width
        return replace(
            self,
            lengths=self.lengths[which],
            labels=self.labels[rows],
            logits=self.logits[rows],
            hidden=self.hidden[:, which],
            masked=masked,
            soft={name: values[rows] for name, values in self.soft.items()},
            taught=None if self.taught is None else self.taught[:, which],
            weights=None if self.weights is None else self.weights[which],
            peer=None if self.peer is None else self.peer[rows],
            moved=None if self.moved is None else self.moved[rows],
            others={
                kind: (student[:, which], teacher[:, which])
                for kind, (student, teacher) in self.others.items()
            },
            further={name: other.some(docs) for name, other in self.further.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """The loss, its terms before their weights, and gradients.

    `gradients` has the student's activations, zero where nothing depends on it, and projections, by
    name.
    """

    total: float
    terms: dict[str, float]
    gradients: dict[str, Array]


def _decoding_to(kind: type[Any], soft: SoftLabels, **options: Any) -> Any:
    """A signal whose rows are decoded to `soft`, whatever they are: decoding is not the claim."""
    made = type(kind.__name__, (kind,), {"soft": lambda self, raw, outputs: soft})
    return made(**options)


def _signals(given: Given) -> tuple[dict[str, Signal], dict[str, torch.Tensor]]:
    """What a cache would hold, and its rows."""
    signals: dict[str, Signal] = {}
    rows: dict[str, torch.Tensor] = {}
    tensors = {name: torch.from_numpy(values) for name, values in given.soft.items()}
    if tensors and given.labels.ndim == 2:  # outputs of several classes, kept as they are
        signals["logits"] = DenseLogits(dtype="fp32", activation="sigmoid")
        rows["logits/values"] = tensors["values"]
    elif tensors:
        soft = SoftLabels(**tensors)
        kind, options = (DenseLogits, {}) if soft.values is not None else (TopKLogits, {})
        if kind is TopKLogits:
            options = {"k": soft.ids.shape[1]}
        signals["logits"] = _decoding_to(kind, soft, **options)
        rows[f"logits/{'values' if soft.values is not None else 'ids'}"] = soft.ids
    taught = {} if given.taught is None else {"hidden": (given.taught, given.positions)}
    taught |= {kind: (teacher, "all") for kind, (_, teacher) in given.others.items()}
    for kind, (values, positions) in taught.items():
        signals[kind] = made = _vectors(kind, len(values), positions)
        activations = _activations(given, {kind: torch.from_numpy(values)})
        rows |= {f"{kind}/{name}": codes for name, codes in made.encode(activations).items()}
    return signals, rows


def _vectors(kind: str, layers: int, positions: str) -> Signal:
    """The signal that stores vectors of that kind as they are, of so many layers if it has some."""
    first, how, made = TAP_KINDS[kind].first, TAP_KINDS[kind].how, SIGNALS[kind][kind]
    options: dict[str, Any] = {"dtype": "fp32", **(how.settings() if how else {})}
    if "positions" in settings_of(made):
        options["positions"] = positions
    if first is not None:
        options["layers"] = tuple(range(first, first + layers))
    signal: Any = made(**options)
    return signal  # type: ignore[no-any-return]  # a protocol's kind may be of any class


def _activations(given: Given, activations: Mapping[str, torch.Tensor]) -> Outputs:
    """The activations of a model, by name as in `Given.student`."""
    values: dict[Tap, torch.Tensor] = {}
    for name, layers in activations.items():
        if name == "moved":
            continue
        first = TAP_KINDS[name].first
        if name == "logits":
            values[LOGITS] = layers
        elif first is None:
            values[Tap(name, how=TAP_KINDS[name].how)] = layers[0]
        else:
            values |= {Tap(name, first + i): layer for i, layer in enumerate(layers.unbind(0))}
    device = next(iter(activations.values())).device
    masked = None if given.masked is None else torch.from_numpy(given.masked).to(device)
    mask, peers = torch.from_numpy(given.mask).to(device), ()
    if given.peer is not None and "logits" in activations:
        logits = torch.from_numpy(given.peer).to(activations["logits"])
        peers = (Outputs(values={LOGITS: logits}, mask=mask, selected=masked),)
    moved = None
    if "moved" in activations:
        moved = Outputs(values={LOGITS: activations["moved"]}, mask=mask)
    return Outputs(values=values, mask=mask, selected=masked, peers=peers, moved=moved)


def bind(losses: Mapping[str, Loss], given: Given, **options: Any) -> Objective:
    """The losses on a cache that holds what is given; options are those of `Objective`."""
    others = {name: _spec(other, name, _prefix(name)) for name, other in given.further.items()}
    known = replace(_spec(given, "first"), others=others)
    own = any(hasattr(loss, "learned") for loss in losses.values())  # which is one student's
    student = ModelSizes(
        outputs=given.logits.shape[1],
        hidden=given.hidden.shape[-1],
        layers=len(given.hidden) - 1,
        peers=int(given.peer is not None and not own),
        **_heads(given, 0),
    )
    by_words = any(getattr(loss, "by_words", False) for loss in losses.values())
    objective = Objective(losses, replace(known, reworded=by_words), student, **options)
    sides = [given, *given.further.values()]
    objective.projections.eval()  # no dropout
    for name, module in objective.projections.items():
        if hasattr(losses.get(name), "learned"):
            parameters = list(module.parameters())
            for parameter, values in zip(parameters, drawn(*map(shape, parameters)), strict=True):
                parameter.data = torch.from_numpy(values)
            continue
        place = re.search("_t([0-9]+)", name)
        side = sides[int(place[1]) if place else 0]
        assert side.projection is not None
        for parameter, values in zip(module.parameters(), side.projection, strict=True):
            parameter.data = torch.from_numpy(values)
    return objective


def shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """That of a parameter."""
    return tuple(parameter.shape)


def drawn(*shapes: tuple[int, ...]) -> list[Array]:
    """The parameters that `bind` gives to what a loss learns beside the student, in their order."""
    rng = np.random.default_rng(5)
    return [rng.standard_normal(size).astype(np.float32) / 2 for size in shapes]


def _prefix(name: str) -> str:
    return f"teachers/{name}/"


def _spec(given: Given, name: str, prefix: str = "") -> CacheSpec:
    """What is known of a cache as the teacher that gave it."""
    floats = np.issubdtype(given.labels.dtype, np.floating)
    kinds = ("regression", "vectors") if floats else ("classes", "multi-label")
    classes = kinds[given.labels.ndim - 1]
    signals = _signals(given)[0]
    width = given.hidden.shape[-1] if given.taught is None else given.taught.shape[-1]
    return CacheSpec(
        task=TASKS[given.task],
        label_kind=classes if given.task == "text-classification" else "tokens",
        signals=signals,
        shape=ModelSizes(
            outputs=given.logits.shape[1],
            hidden=width,
            layers=len(given.hidden if given.taught is None else given.taught) - 1,
            **_heads(given, 1),
        ),
        labelled=int(given.labelled),
        documents=len(given.lengths),
        name=name,
        prefix=prefix,
        points=given.moved is not None,
    )


def _heads(given: Given, side: int) -> dict[str, int]:
    """Heads of the student, 0, or the teacher, where the cache holds what they attend by."""
    if "query" not in given.others:
        return {}
    _, _, heads, _, width = given.others["query"][side].shape
    return {"heads": heads, "key_heads": heads, "head_width": width}


def _labelled(given: Given) -> int:
    if np.issubdtype(given.labels.dtype, np.floating):
        return int(np.isfinite(given.labels).sum())
    found = given.labels != IGNORE_INDEX
    return int((found if found.ndim == 1 else found.all(1)).sum())


WORDS = (TEACHER_WORDS, STUDENT_WORDS, WORD_DOCS)


def words_of(given: Given) -> tuple[Array, Array, Array]:
    """The words of the teacher's tokens and of the student's, and the documents of words.

    The first token is of none. A word has two of the teacher's and one of the student's tokens, as
    far as the document goes; what is left over of the student's is of none.
    """
    theirs, mine, docs = [], [], []
    for doc, length in enumerate(given.lengths):
        places, words = np.arange(length), int(length) // 2
        first = len(docs)
        theirs.append(np.where(places > 0, first + (places - 1) // 2, -1))
        mine.append(np.where((places > 0) & (places <= words), first + places - 1, -1))
        docs += [doc] * words
    return np.concatenate(theirs), np.concatenate(mine), np.asarray(docs, np.int64)


def batch_of(given: Given) -> Batch:
    """What a loader would have read of the documents."""
    made = Batch(
        docs=torch.arange(len(given.lengths)),
        attention_mask=torch.from_numpy(given.mask.astype(np.int64)),
        labels=torch.from_numpy(given.labels),
        **_signals(given)[1],
    )
    for name, other in given.further.items():
        made.update({_prefix(name) + array: rows for array, rows in _signals(other)[1].items()})
    if given.weights is not None:
        made["example_weight"] = torch.from_numpy(given.weights)
    if given.masked is not None:
        made["selected"] = torch.from_numpy(given.masked)
    owners = words_of(given)
    made.update({name: torch.from_numpy(each) for name, each in zip(WORDS, owners, strict=True)})
    made.tokens, made.labelled = int(given.lengths.sum()), _labelled(given)
    made.pairs = int(np.square(given.lengths).sum())
    made.lengths = tuple(given.lengths.tolist())
    return made


def counts(losses: Mapping[str, Loss], given: Given) -> dict[str, float]:
    """What each loss is the mean over in these documents."""
    objective = bind(losses, given)
    return dict(zip(objective.losses, objective.totals([batch_of(given)]), strict=True))


def value(
    losses: Mapping[str, Loss],
    given: Given,
    activations: Mapping[str, torch.Tensor],
    totals: Sequence[float] | None = None,
    step: int = 0,
    **options: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Objective]:
    """The loss, its terms and the objective they are of, where a student says that, of any dtype,
    on any device.

    `activations` is by name, as `Given.student`; options are those of `bind`.
    """
    objective = bind(losses, given, **options)
    objective.step = step
    logits = activations["logits"]
    objective.projections.to(logits.device, logits.dtype)
    objective.state.to(logits.device)
    batch = batch_of(given).to(logits.device)
    total, terms = objective(_activations(given, activations), batch, totals)
    return total, terms, objective


def evaluate(
    losses: Mapping[str, Loss],
    given: Given,
    dtype: torch.dtype = torch.float64,
    totals: Sequence[float] | None = None,
    **options: Any,
) -> Found:
    """Value and gradients of losses where the student says what is given, in `dtype`.

    With `totals`, what the documents add to the losses of a step that counts for these. Options are
    those of `value`.
    """
    activations = {
        n: torch.from_numpy(x).to(dtype).requires_grad_() for n, x in given.student.items()
    }
    total, terms, objective = value(losses, given, activations, totals, **options)
    leaves = {**activations, **dict(objective.projections.named_parameters())}
    gradients: Sequence[torch.Tensor | None] = [None] * len(leaves)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return Found(
        total=float(total.detach()),
        terms={name: float(term) for name, term in terms.items()},
        gradients={
            name: (torch.zeros_like(leaf) if gradient is None else gradient).numpy()
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        },
    )
