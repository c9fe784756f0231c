"""Tokenise a corpus into a plan, as a stream: memory does not grow with the corpus's text."""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from kdcache.corpus import Corpus, Document, Unit, open_corpus
from kdcache.errors import ConfigError, CorpusError, one_of
from kdcache.labels import LabelReader, Labels, LabelType, resolve
from kdcache.masking import mask
from kdcache.models import Tokenizer, classes_of, load_tokenizer
from kdcache.plans import EXAMPLE_COLUMNS, Array, Plan, PlanConfig, cut, round_up
from kdcache.progress import Progress, quiet, track
from kdcache.store import open_plan, write_plan
from kdcache.store.files import writing
from kdcache.tasks import TASKS, Space, Task

BATCH = 512  # documents tokenised at once


class PlanOptions(TypedDict, total=False):
    """Options of a plan, and of a build that makes its own.

    Attributes:
        text_columns: one column, or two for text pairs; guessed from their names if not given.
        label_column: column of the labels; None guesses it and "" means there are none.
        label_type: "class", "float" or "auto", which looks at the labels.
        limit: take the first documents only.
        unit: of plain text files, a document is a "line" or the whole "file".
        max_length: tokens a document may have. Classification cuts longer ones off; language
            modelling cuts them into windows. Default 128.
        part_tokens: most tokens a part may hold, the work lost when a build is killed (262,144).
        seed: of the documents' order and the masks.
        mask_probability: share of tokens masked-lm masks (0.15).
        views: for masked-lm, how often each document is masked anew (1).
    """

    text_columns: Sequence[str]
    label_column: str | None
    label_type: LabelType
    limit: int | None
    unit: Unit
    max_length: int
    part_tokens: int
    seed: int
    mask_probability: float
    views: int


def plan(
    corpus: Any,
    *,
    tokenizer: str | Path,
    task: Task,
    out: str | Path,
    progress: Progress = quiet,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Tokenise `corpus` and write its plan, a Zarr group, to the folder `out`.

    Args:
        corpus: a path, folder, glob or list of those, or a `datasets.Dataset`.
        tokenizer: folder or hub name; where it is also a classifier, its class names are used.
        task: "text-classification", "masked-lm" or "causal-lm".
        out: folder to write; the same plan there already is left as it is.
        options: see `PlanOptions`.

    Raises CorpusError, ConfigError or ModelError; MismatchError if `out` holds another plan.
    """
    loaded = load_tokenizer(tokenizer)
    with scratch_folder(out) as scratch:
        made = make_plan(
            corpus,
            loaded,
            scratch=scratch,
            task=task,
            classes=classes_of(tokenizer),
            progress=progress,
            **options,
        )
        write_plan(out, made)
    return open_plan(out)


@contextmanager
def scratch_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder on the disk of `out`, for the files behind a plan."""
    parent = Path(out).absolute().parent
    with writing(Path(out)):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".kdcache-plan-") as scratch:
            yield Path(scratch)


def make_plan(
    corpus: Any,
    tokenizer: Tokenizer,
    *,
    scratch: Path,
    task: Task,
    classes: tuple[list[str] | None, int | None] = (None, None),
    progress: Progress = quiet,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Tokenise a corpus into a plan whose tokens lie in files of the folder `scratch`.

    `classes` are the teacher's class names and their number, where known.
    """
    one_of("task", task, TASKS)
    opened = open_corpus(
        corpus,
        text_columns=options.get("text_columns", ()),
        label_column=options.get("label_column"),
        limit=options.get("limit"),
        unit=options.get("unit", "line"),
    )
    config = _config(task, opened, tokenizer, options)
    spool = _Spool(scratch, tokenizer)
    documents = track(progress, opened, "tokenising", unit="documents", total=opened.limit)
    facts = spool.fill(documents, config)
    labels = None
    if task == "text-classification":
        label_type = options.get("label_type", "auto")
        labels = resolve(spool.labels, label_type=label_type, known=classes[0], count=classes[1])
        facts["classes"] = labels.classes
    config = replace(
        config,
        problem=labels.problem if labels else "tokens",
        corpus={**config.corpus, **facts},
    )
    return spool.arrange(config, labels)


def _config(task: Task, corpus: Corpus, tokenizer: Tokenizer, options: PlanOptions) -> PlanConfig:
    """Check the options; what tokenising tells is filled in afterwards."""
    max_length = options.get("max_length", 128)
    part_tokens = options.get("part_tokens", 262_144)
    probability, views = options.get("mask_probability", 0.15), options.get("views", 1)
    if max_length < 8:
        raise ConfigError(f"max_length must be 8 or more; got {max_length}")
    if part_tokens < max_length or part_tokens != round_up(part_tokens):
        raise ConfigError(
            f"part_tokens must be a multiple of 128 (of 1,024 beyond 16,384) and at least "
            f"max_length ({max_length}); got {part_tokens}"
        )
    if not 0 < probability < 1 or views < 1:
        raise ConfigError("mask_probability must lie between 0 and 1, and views be 1 or more")
    masked = task == "masked-lm"
    labels = corpus.label_column if task == "text-classification" else None
    return PlanConfig(
        task=task,
        problem="tokens",
        tokenizer={**tokenizer.identity, **({"mask_id": tokenizer.mask_id} if masked else {})},
        corpus={"text_columns": list(corpus.text_columns), "label_column": labels},
        max_length=max_length,
        seed=options.get("seed", 0),
        part_tokens=part_tokens,
        mask_probability=probability if masked else 0.0,
        views=views if masked else 1,
    )


@dataclass
class _Entry:
    """A document ready to store: what a row of the example space needs."""

    doc: int
    window: int
    view: int
    tokens: npt.NDArray[np.int64]
    pair_start: int
    positions: npt.NDArray[np.int64]
    masked_labels: npt.NDArray[np.int64]


class _Spool:
    """Files that take tokens in corpus order and give them back in plan order."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.dtype = np.dtype("uint16" if tokenizer.vocab_size <= 65536 else "uint32")
        self.labels = LabelReader()
        self.docs, self.lens, self.pairs = array("q"), array("i"), array("i")
        self.views, self.masked = array("h"), array("i")

    def fill(self, documents: Iterable[Document], config: PlanConfig) -> dict[str, Any]:
        """Tokenise everything; returns documents, truncated and SHA-256 of the corpus."""
        state, count, truncated = hashlib.sha256(), 0, 0
        with (
            (self.folder / "tokens").open("wb") as tokens,
            (self.folder / "masked_position").open("wb") as positions,
            (self.folder / "masked_label").open("wb") as masked_labels,
        ):
            for batch in _batched(documents, BATCH):
                for document in batch:
                    state.update(repr(document[:3]).encode())
                    self.labels.add(document.label, document.where)
                entries, cut_off = _encode(batch, count, self.tokenizer, config)
                truncated += cut_off
                for entry in _views(entries, self.tokenizer, config):
                    tokens.write(entry.tokens.astype(self.dtype).tobytes())
                    positions.write(entry.positions.astype(np.int32).tobytes())
                    masked_labels.write(entry.masked_labels.astype(self.dtype).tobytes())
                    self._note(entry)
                count += len(batch)
        if not self.lens:
            raise CorpusError("no document of the corpus has a token")
        return {"documents": count, "truncated": truncated, "sha256": state.hexdigest()}

    def _note(self, entry: _Entry) -> None:
        self.docs.append(entry.doc)
        self.lens.append(len(entry.tokens))
        self.pairs.append(entry.pair_start)
        self.views.append(entry.view)
        self.masked.append(len(entry.positions))

    def arrange(self, config: PlanConfig, labels: Labels | None) -> Plan:
        """Permute the documents by the plan's seed and cut them into parts."""
        lens = np.asarray(self.lens, np.int64)
        masked = np.asarray(self.masked, np.int64)
        order = np.random.default_rng(config.seed).permutation(len(lens))
        bounds, part_tokens = cut(lens[order], config.part_tokens)
        parts = len(bounds) - 1
        most = {
            "example": int(np.diff(bounds).max()),
            "masked": max(int(masked[order[a:b]].sum()) for a, b in _pairs(bounds)),
        }
        rows: dict[Space, int] = {"example": round_up(most["example"]), "token": part_tokens}
        if config.task == "masked-lm":
            rows["masked"] = round_up(most["masked"])
        examples = self._examples(order, bounds, rows, lens, masked, labels)
        starts = np.cumsum(lens) - lens
        columns = {"tokens": self._sorted("tokens", order, bounds, part_tokens, starts, lens)}
        if "masked" in rows:
            begins = np.cumsum(masked) - masked
            for name in ("masked_position", "masked_label"):
                columns[name] = self._sorted(name, order, bounds, rows["masked"], begins, masked)
        return Plan(config=config, parts=parts, rows=rows, examples=examples, columns=columns)

    def _examples(
        self,
        order: Array,
        bounds: Array,
        rows: dict[Space, int],
        lens: Array,
        masked: Array,
        labels: Labels | None,
    ) -> dict[str, Array]:
        size = rows["example"]
        out = {name: np.zeros((len(bounds) - 1) * size, t) for name, t in EXAMPLE_COLUMNS.items()}
        out["doc_id"][:] = -1
        out["label"][:] = -100
        out["value"][:] = np.nan
        docs = np.asarray(self.docs, np.int64)
        for part, (a, b) in enumerate(_pairs(bounds)):
            chosen, at = order[a:b], slice(part * size, part * size + b - a)
            out["doc_start"][at] = part * rows["token"] + np.cumsum(lens[chosen]) - lens[chosen]
            out["doc_len"][at] = lens[chosen]
            out["doc_id"][at] = docs[chosen]
            out["pair_start"][at] = np.asarray(self.pairs, np.int32)[chosen]
            out["view"][at] = np.asarray(self.views, np.int16)[chosen]
            first = part * rows.get("masked", 0)
            out["masked_start"][at] = first + np.cumsum(masked[chosen]) - masked[chosen]
            out["masked_len"][at] = masked[chosen]
            if labels is not None:
                out["label"][at] = labels.ids[docs[chosen]]
                out["value"][at] = labels.values[docs[chosen]]
        return out

    def _sorted(
        self, name: str, order: Array, bounds: Array, size: int, starts: Array, lens: Array
    ) -> FileColumn:
        """Copy a spooled file into plan order, every part padded with zeros to `size` rows."""
        dtype = np.dtype(np.int32) if name == "masked_position" else self.dtype
        path = self.folder / f"{name}.sorted"
        with (self.folder / name).open("rb") as source, path.open("wb") as target:
            for a, b in _pairs(bounds):
                part, filled = bytearray(size * dtype.itemsize), 0
                for doc in order[a:b]:
                    source.seek(int(starts[doc]) * dtype.itemsize)
                    rows = source.read(int(lens[doc]) * dtype.itemsize)
                    part[filled : filled + len(rows)] = rows
                    filled += len(rows)
                target.write(part)
        return FileColumn(path, dtype)


class FileColumn:
    """Rows of a flat file, read where sliced."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype = path, dtype

    def __getitem__(self, rows: slice) -> Array:
        start = rows.start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, rows.stop - rows.start, offset=start)


def _pairs(bounds: Array) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def _batched(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    stream = iter(documents)
    while batch := list(islice(stream, size)):
        yield batch


def _encode(
    batch: list[Document], first: int, tokenizer: Tokenizer, config: PlanConfig
) -> tuple[list[_Entry], int]:
    """Tokenise documents numbered from `first`; returns entries and how many were cut off."""
    pairs = [d.pair or "" for d in batch] if batch[0].pair is not None else None
    windows = config.task != "text-classification"
    encoded = tokenizer.encode([d.text for d in batch], pairs, config.max_length, windows=windows)
    entries = [
        _Entry(first + e.document, e.window, 0, e.ids, e.pair_start, _NONE, _NONE)
        for e in encoded.kept
    ]
    return entries, encoded.truncated


_NONE = np.empty(0, np.int64)


def _views(entries: list[_Entry], tokenizer: Tokenizer, config: PlanConfig) -> Iterator[_Entry]:
    if config.task != "masked-lm":
        yield from entries
        return
    for entry in entries:
        maskable = ~np.isin(entry.tokens, tokenizer.special_ids)
        for view in range(config.views):
            made = mask(
                entry.tokens,
                maskable,
                probability=config.mask_probability,
                mask_id=tokenizer.mask_id,
                vocab_size=tokenizer.vocab_size,
                key=(config.seed, entry.doc, entry.window, view),
            )
            yield replace(
                entry,
                view=view,
                tokens=made.tokens,
                positions=made.positions,
                masked_labels=made.labels,
            )
