"""A training batch: padded inputs, labels and stored signal rows, in an order fixed by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from kdcache.errors import ConfigError, DamageError
from kdcache.labels import known, known_rows
from kdcache.labels.base import MAX_CLASSES
from kdcache.plans import Array, Docs, Plan
from kdcache.spans import COPY, span
from kdcache.tasks import IGNORE_INDEX, STORED, Space

WEIGHTS = "example_weight"
"""Name of the weights of documents in a batch."""
TEACHER_WORDS, STUDENT_WORDS, WORD_DOCS = "teacher_words", "student_words", "word_docs"
"""Of a batch whose student has a tokenizer of its own: the word of each of the teacher's tokens and
of the student's, one document after the other, -1 of one that is of none; each word's document."""
TEACHER_LENGTHS = "teacher_lengths"
"""Of such a batch: the teacher's tokens of each document, [B] int64."""


class Rows(NamedTuple):
    """Which rows of a batch there is a value for.

    Attributes:
        space: what they are rows of.
        sampled_rows: name of the array of the batch that numbers them among all rows of the space,
            such as "logits/kept"; "": all rows.
        labelled: whether only those with a hard label count.
        padded: whether they count for the padded positions of which they are those without pads.
        paired: whether documents count for their pairs of two tokens.
    """

    space: Space
    sampled_rows: str = ""
    labelled: bool = False
    padded: bool = False
    paired: bool = False


class Batch(dict[str, torch.Tensor]):
    """Tensors of one batch of B documents of up to L tokens, by name.

    Always: `docs` [B], `input_ids`, `attention_mask` [B, L] int64. As the task has them:
    `token_type_ids` [B, L]; `labels` [B] class ids or float values, [M] tokens or classes at the
    selected positions, or [tokens] next tokens; `selected` [M], flat indices into B * L of the
    selected positions: masked tokens, or first tokens of words. Signal arrays keep their names in
    the cache ("logits/ids") and hold one row per document, token or selected position, documents
    one after the other. Where a signal has but a fraction of them, "logits/kept" [rows] int64 says
    which, as `Cache.sampled_rows`.

    Attributes:
        tokens: tokens of all documents, pads left out.
        pairs: pairs of two tokens of a document, those of a token with itself included.
        labelled: rows with a hard label.
        lengths: tokens of each document; None: not counted. All four are counted where the batch is
            made, so that nobody waits for a device to know them.
        idle: it stands in for a rank whose turn has no documents, and nothing in it counts.
        cache: which cache it was read from, where a student learns from several.
        weighed: whether its documents are weighed once it is known which step they are of, on the
            host: where it is moved, what it was stays there.
        counted: whether a mean over its rows divides by their number, whatever they weigh.
    """

    tokens: int = 0
    pairs: int = 0
    labelled: int = 0
    lengths: tuple[int, ...] | None = None
    idle: bool = False
    cache: int = 0
    weighed: bool = False
    counted: bool = False
    _source: Batch | None = None  # what it was before it was moved, for sums nobody waits for

    def __missing__(self, name: object) -> torch.Tensor:
        if name == STORED["selected"]:  # its former name
            return self["selected"]
        if name == 0:  # a collate function that wants single documents
            raise ConfigError(
                "a Batch is read and padded already; give the DataLoader, or the Trainer as its "
                "data_collator, the data set's own: collate_fn=dataset.collate"
            )
        raise KeyError(name)

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        with span(COPY):
            return self._of({k: v.to(device, non_blocking=non_blocking) for k, v in self.items()})

    def pin_memory(self) -> Batch:
        """The batch in memory a GPU copies from while it works."""
        return self._of({name: tensor.pin_memory() for name, tensor in self.items()})

    def _of(self, tensors: Mapping[str, torch.Tensor]) -> Batch:
        """The same documents as other tensors."""
        made = Batch(tensors)
        made.tokens, made.labelled, made.idle = self.tokens, self.labelled, self.idle
        made.pairs, made.lengths = self.pairs, self.lengths
        made.cache, made.weighed, made.counted = self.cache, self.weighed, self.counted
        made._source = self.on_host if self.weighed or WEIGHTS in self else None
        return made

    def beside(self, **tensors: torch.Tensor) -> Batch:
        """The same documents with further tensors."""
        return self._of({**self, **tensors})

    def at_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of its tokens, [tokens, H], as [B, L, H]: zeros at pads."""
        room = rows.new_zeros(*self.mask.shape, rows.shape[1])
        return room.masked_scatter(self.mask.unsqueeze(-1), rows)

    def known_lengths(self) -> torch.Tensor:
        """Tokens of each document, [B] int64 on the host; waits for a device if nobody counted."""
        if self.lengths is None:
            return self.on_host["attention_mask"].sum(1).cpu()
        return torch.tensor(self.lengths, dtype=torch.int64)

    @property
    def on_host(self) -> Batch:
        """What it was before it was moved, if that is kept."""
        return self if self._source is None else self._source

    def weigh(self, weights: torch.Tensor, *, counted: bool = False) -> None:
        """Let documents count for `weights`, [B] on the host; with `counted`, see there."""
        self.on_host[WEIGHTS] = weights
        self[WEIGHTS] = weights.to(self["docs"].device, non_blocking=True)
        self.counted = counted

    def total(self, rows: Rows) -> float:
        """What rows of the batch count for together, known to the host: their number, or weight."""
        if self.idle:
            return 0.0
        if rows.paired:
            return self._pairs()
        if rows.padded:
            positions = self.total(Rows("document")) * self["attention_mask"].shape[1]
            tokens = self.total(Rows(rows.space))
            return positions * self.total(rows._replace(padded=False)) / tokens if tokens else 0.0
        if WEIGHTS not in self or self.counted:
            return float(self.labelled if rows.labelled else self._number(rows))
        return float(self.on_host._weights(rows, torch.float64).sum())

    def _pairs(self) -> float:
        """What the pairs of two tokens of a document count for together."""
        if WEIGHTS not in self or self.counted:
            return float(self.pairs)
        lengths = self.on_host["attention_mask"].sum(1).double()
        return float((self.on_host[WEIGHTS].double() * lengths.square()).sum())

    def row_weights(self, rows: Rows, total: float, dtype: torch.dtype) -> torch.Tensor:
        """What each row counts for in a mean over rows that count for `total`, [N] of `dtype`.

        Zeros where that is nothing.
        """
        share = 1 / total if total and not self.idle else 0.0
        if WEIGHTS in self or rows.labelled:
            return self._weights(rows, dtype) * share
        size = (self._number(rows),)
        return torch.full(size, share, dtype=dtype, device=self["attention_mask"].device)

    def _number(self, rows: Rows) -> int:
        """How many there are, with and without a label."""
        if rows.sampled_rows:
            return len(self[rows.sampled_rows])
        if rows.space == "token":
            return self.tokens
        return len(self["docs" if rows.space == "document" else "selected"])

    def _weights(self, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
        """The weight of the document of each row; 0 for a row whose label is asked for in vain."""
        weights = self._of_documents(rows.space, dtype)
        if rows.sampled_rows:
            weights = weights[self[rows.sampled_rows]]
        if not rows.labelled:
            return weights
        return weights * known_rows(self["labels"])

    def _of_documents(self, space: Space, dtype: torch.dtype) -> torch.Tensor:
        """The weight of the document of each row of a space."""
        if WEIGHTS not in self:
            number, device = self._number(Rows(space)), self["attention_mask"].device
            return torch.ones(number, dtype=dtype, device=device)
        return self.of_rows(self[WEIGHTS].to(dtype), Rows(space))

    def of_rows(self, values: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Of values [B] of documents, that of the document of each row, [N]."""
        if rows.space == "token":  # a size that is told need not be waited for
            lengths = self["attention_mask"].sum(1)
            values = values.repeat_interleave(lengths, output_size=self.tokens)
        elif rows.space == "selected":
            values = values[self["selected"] // self["attention_mask"].shape[1]]
        return values[self[rows.sampled_rows]] if rows.sampled_rows else values

    @property
    def mask(self) -> torch.Tensor:
        """[B, L] bool, True where there is a token."""
        return self["attention_mask"].bool()

    def __repr__(self) -> str:
        inner = ", ".join(f"{k} {tuple(v.shape)} {str(v.dtype)[6:]}" for k, v in self.items())
        return f"<Batch of {len(self['docs'])} documents: {inner}>"


def epoch_order(
    count: int, *, seed: int, epoch: int, lengths: Array | None = None, window: int = 0
) -> Docs:
    """The order of an epoch over `count` documents: a pure function of its arguments.

    With `lengths` and a `window`, documents are sorted by length inside runs of `window`, so that
    batches cut from the order need little padding (callers then shuffle whole batches).
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    if lengths is None or window < 2:
        return order
    runs = [order[i : i + window] for i in range(0, count, window)]
    return np.concatenate([run[np.argsort(-lengths[run], kind="stable")] for run in runs])


def length_batches(plan: Plan, docs: Docs, batch_tokens: int) -> Iterator[Docs]:
    """Documents, longest first, in batches of at most `batch_tokens` tokens with padding."""
    lens: Any = plan.per_document["doc_len"][docs]
    order = docs[np.argsort(-lens, kind="stable")]
    start = 0
    while start < len(order):
        longest = int(plan.per_document["doc_len"][order[start]])
        size = max(1, batch_tokens // longest)
        yield order[start : start + size]
        start += size


def collate(plan: Plan, docs: Docs, signals: Mapping[str, Array]) -> Batch:
    """Pad the tokens of documents and lay their labels and signal rows beside them.

    Raises DamageError for ids beyond the vocabulary, which an embedding would read past its end
    for, and positions beyond a document.
    """
    docs = np.asarray(docs, np.int64)
    starts, lens = plan.spans(docs, "token")
    flat = _read(plan, "tokens", starts, lens)
    _require_below(plan.config.tokenizer["vocab_size"], flat, "tokens")
    mask = np.arange(lens.max())[None, :] < lens[:, None]
    ids = np.full(mask.shape, plan.config.tokenizer["pad_id"], np.int64)
    ids[mask] = flat
    batch = Batch(
        docs=torch.from_numpy(docs),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask.astype(np.int64)),
    )
    if plan.config.tokenizer["type_ids"]:
        second = np.arange(lens.max())[None, :] >= plan.per_document["pair_start"][docs][:, None]
        batch["token_type_ids"] = torch.from_numpy((second & mask).astype(np.int64))
    batch.tokens, batch.pairs = len(flat), int(np.square(lens.astype(np.int64)).sum())
    batch.lengths = tuple(lens.tolist())
    if plan.read_for is not None:
        labels = plan.labels(docs)
    elif plan.task.selects:
        labels = _add_selected(batch, plan, docs, mask.shape[1])
        batch.labelled = int(np.count_nonzero(known(labels)))
    elif plan.task.causal:
        labels = _next_tokens(flat, lens)
        batch.labelled = len(flat) - len(docs)  # nothing follows the last token of a document
    else:
        labels = _labels(plan, docs)
        batch.labelled = int(np.count_nonzero(known(labels)))
    batch["labels"] = torch.from_numpy(labels)
    batch.update({name: torch.from_numpy(rows) for name, rows in signals.items()})
    return batch


def _labels(plan: Plan, docs: Docs) -> Array:
    """The labels of documents as torch takes them: whole numbers are int64."""
    found = plan.label_kind.of(plan.per_document, docs)
    return found if found.dtype.kind == "f" else found.astype(np.int64)


def _next_tokens(flat: Array, lens: Array) -> Array:
    following = np.append(flat[1:].astype(np.int64), IGNORE_INDEX)
    following[np.cumsum(lens) - 1] = IGNORE_INDEX
    return following


def _add_selected(batch: Batch, plan: Plan, docs: Docs, width: int) -> Array:
    """Lay the selected positions into a batch; returns the token or class of each of the task's
    rows, int64.
    """
    starts, counts = plan.spans(docs, "selected")
    rows = np.repeat(np.arange(len(docs)), counts)
    positions = _read(plan, "masked_position", starts, counts)
    _require_below(plan.per_document["doc_len"][docs][rows], positions, "masked_position")
    batch["selected"] = torch.from_numpy(rows * width + positions)
    labels = _read(plan, "masked_label", starts, counts).astype(np.int64)
    if plan.task.labelled:
        most = len(plan.config.classes or ()) or MAX_CLASSES
        _require_below(most, labels[known(labels)], "masked_label")
    else:
        _require_below(plan.config.tokenizer["vocab_size"], labels, "masked_label")
    return plan.at_rows(docs, labels, positions)


def _require_below(limit: int | Array, values: Array, column: str) -> None:
    if len(values) and not ((values >= 0) & (values < limit)).all():
        raise DamageError(f"{column} of the plan hold a value beyond what there can be")


def _read(plan: Plan, column: str, starts: Array, counts: Array) -> Array:
    reader: Any = plan.columns[column]
    rows: Array = reader.read(starts, counts)
    return rows
