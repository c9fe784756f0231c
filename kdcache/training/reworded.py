"""A cache whose texts a student reads in a vocabulary of its own.

A plan holds tokens and no texts. Words are read back from the teacher's tokens and cut by the
student's tokenizer, once when training starts, into files. A batch then has the student's tokens,
the teacher's rows, and which tokens of both are of one word.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from kdcache.building.own_tokenizer import OwnTokenizerCache
from kdcache.building.shuffle import FileColumn
from kdcache.errors import ConfigError, ModelError
from kdcache.models import load_tokenizer
from kdcache.models.token_map import cached_tokenizer
from kdcache.plans import Array, Docs, Plan, round_up
from kdcache.plans.batch import STUDENT_WORDS, TEACHER_LENGTHS, TEACHER_WORDS, WORD_DOCS, Batch
from kdcache.progress import Progress, short
from kdcache.store import Cache
from kdcache.store.io.durable_writes import remove_tree
from kdcache.training.mixture import Mixture
from kdcache.training.word_cuts import WordCuts

CHUNK = 512  # documents whose words are read back at once
LENGTHS = np.dtype(np.int32)  # of the file of words


class RewordedCache(OwnTokenizerCache):
    """A cache as a student with a tokenizer of its own reads it.

    Documents, labels and the teacher's outputs are those of the cache. `plan` and `batch` have the
    texts in the student's tokens, cut off where they are more than the plan's longest length, and
    `files` the student's tokenizer. A batch has beside that `teacher_words` and `student_words`,
    the word of each token among those that both sides have, -1 of a token without one, and
    `word_docs`, the document of each word by its place in the batch, and `teacher_lengths`, how
    many tokens the teacher read of each document.

    Args:
        cache: of a classifier's documents, a text each.
        tokenizer: folder or hub name of the student's.

    Raises:
        ConfigError: a cache of another task, or of pairs of texts.
        ModelError: a tokenizer that cannot be loaded, does not take words, or makes nothing of a
            document.
    """

    reworded: ClassVar[bool] = True

    def __init__(self, cache: Cache, tokenizer: str | Path, progress: Progress) -> None:
        require_texts(cache)
        super().__init__(cache, load_tokenizer(tokenizer))
        self.name = str(tokenizer)
        self.cuts = WordCuts(cached_tokenizer(cache))
        self.folder = Path(tempfile.mkdtemp(prefix="kdcache-words-"))
        weakref.finalize(self, partial(remove_tree, self.folder))
        self.plan = self._replan(progress)

    def __reduce__(self) -> tuple[Any, ...]:
        raise ConfigError(
            f"{self.path} is read in the vocabulary of {self.name}, in files of this process: open "
            "the cache in the other process, and read it so there"
        )

    def _replan(self, progress: Progress) -> Plan:
        """The plan with the documents in the student's tokens."""
        plan, cut_off = self.source.plan, 0
        lens = np.zeros(len(plan.per_document["doc_len"]), np.int64)
        kinds = {"tokens": np.dtype(np.uint32), "words": LENGTHS}
        label = f"reading {short(str(self.path))} in the vocabulary of {short(self.name)}"
        with (
            (self.folder / "tokens").open("wb") as tokens,
            (self.folder / "words").open("wb") as words,
            progress.bar(label, unit="documents", total=plan.documents) as advance,
        ):
            for docs in _chunks(plan):
                for doc, (ids, of_each, cut) in zip(docs, self._cut(docs), strict=True):
                    if not len(ids):
                        raise ModelError(
                            f"the tokenizer of {self.name} makes no token of document {doc}: leave "
                            "it out of the corpus, or choose another student"
                        )
                    lens[doc], cut_off = len(ids), cut_off + cut
                    tokens.write(ids.astype(kinds["tokens"]).tobytes())
                    named = [-1 if word is None else word for word in of_each]
                    words.write(np.asarray(named, kinds["words"]).tobytes())
                advance(len(docs))
        columns, per_document, size = self._arranged(plan, lens, kinds)
        self._words = columns.pop("words")
        progress.say(
            f"texts are read back from the teacher's {plan.tokens:,} tokens, and are "
            f"{int(lens.sum()):,} of the student's"
            + (f"; {cut_off:,} were cut off at {plan.config.max_length}" if cut_off else "")
        )
        return replace(
            plan,
            config=replace(plan.config, tokenizer=self.tokenizer.identity),
            rows={**plan.rows, "token": size},
            per_document=per_document,
            columns=columns,
        )

    def _cut(self, docs: Docs) -> list[tuple[Array, list[int | None], bool]]:
        """The student's tokens of documents, the word of each, and whether some were cut off."""
        texts = self.cuts.words(*_tokens(self.source.plan, docs))
        lost, unknown = self.cuts.tokenizer.plain.unk_token, self.tokenizer.plain.unk_token
        if lost and unknown:
            texts = [[word.replace(lost, unknown) for word in words] for words in texts]
        return self.tokenizer.encode_words(texts, self.source.plan.config.max_length)

    def _arranged(
        self, plan: Plan, lens: Array, kinds: Mapping[str, np.dtype[Any]]
    ) -> tuple[dict[str, FileColumn], dict[str, Array], int]:
        """The files with every part padded to as many rows, and where documents lie in them."""
        parts = [plan.part_docs(part) for part in range(plan.parts)]
        size = round_up(max(int(lens[docs].sum()) for docs in parts))
        starts = np.zeros_like(lens)
        for part, docs in enumerate(parts):
            starts[docs] = part * size + np.cumsum(lens[docs]) - lens[docs]
        for name, kind in kinds.items():
            sorted_file = (self.folder / f"{name}.sorted").open("wb")
            with (self.folder / name).open("rb") as source, sorted_file as target:
                for docs in parts:
                    filled = source.read(int(lens[docs].sum()) * kind.itemsize)
                    target.write(filled.ljust(size * kind.itemsize, b"\0"))
            (self.folder / name).unlink()
        columns = {n: FileColumn(self.folder / f"{n}.sorted", kind) for n, kind in kinds.items()}
        own = {"doc_start": starts, "doc_len": lens, "pair_start": lens}
        known = plan.per_document
        made = {n: own[n].astype(a.dtype) if n in own else a for n, a in known.items()}
        return columns, made, size

    def rows(
        self, docs: Docs, arrays: Any = None, *, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """The teacher's rows, which are of its own tokens."""
        return self.source.rows(docs, arrays, out=out)

    def batch(self, docs: Docs, arrays: list[str] | None = None) -> Batch:
        """Inputs in the student's tokens, labels, the teacher's rows, and the words of both."""
        made, rows = super().batch(docs, arrays), np.asarray(docs, np.int64)
        starts, lens = self.plan.spans(rows, "token")
        ids, theirs = _tokens(self.source.plan, rows)
        mine = self._words.read(starts, lens).astype(np.int64)
        names = TEACHER_WORDS, STUDENT_WORDS, WORD_DOCS
        found = aligned(self.cuts.numbers(ids, theirs), theirs, mine, lens)
        made.update({n: torch.from_numpy(x) for n, x in zip(names, found, strict=True)})
        made[TEACHER_LENGTHS] = torch.from_numpy(theirs)
        return made


def in_other_words(mixture: Mixture, tokenizer: str, progress: Progress) -> Mixture:
    """The caches of a run as a student with that tokenizer reads them; raises as RewordedCache."""
    made = tuple(RewordedCache(cache, tokenizer, progress) for cache in mixture.caches)
    return replace(mixture, caches=made)


def require_texts(cache: Cache) -> None:
    """Raise ConfigError for a cache whose documents are not a text each, of a classifier."""
    if cache.plan.task.rows != "document":
        raise ConfigError(
            f"student.tokenizer is for documents of which a student says one thing; the task of "
            f"{cache.path} is {cache.plan.task}: leave it out"
        )
    if len(cache.plan.config.corpus["text_columns"]) > 1:
        raise ConfigError(
            f"student.tokenizer is for documents of one text, and those of {cache.path} are pairs: "
            "leave it out"
        )


def aligned(
    theirs: Array, their_lens: Array, mine: Array, lens: Array
) -> tuple[Array, Array, Array]:
    """The words that both sides of documents have: of each token of either, its word or -1, and of
    each word its document.

    `theirs` and `mine` are the words of tokens, counted in their document, -1 of none; documents
    of so many tokens lie one after the other.
    """
    most = 1 + max(theirs.max(initial=0), mine.max(initial=0))
    keys = []
    for words, count in ((theirs, their_lens), (mine, lens)):
        document = np.repeat(np.arange(len(count)), count)
        keys.append(np.where(words < 0, -1, document * most + words))
    one, other = (key[key >= 0] for key in keys)
    both = np.intersect1d(one, other)
    places = []
    for key in keys:
        place = np.searchsorted(both, key).clip(max=max(len(both) - 1, 0))
        there = both[place] == key if len(both) else np.zeros(len(key), np.bool_)
        places.append(np.where(there, place, -1))
    return places[0], places[1], both // most


def _tokens(plan: Plan, docs: Docs) -> tuple[Array, Array]:
    """The tokens of documents, one after the other, and their numbers."""
    starts, lens = plan.spans(docs, "token")
    reader: Any = plan.columns["tokens"]
    return reader.read(starts, lens).astype(np.int64), lens.astype(np.int64)


def _chunks(plan: Plan) -> Iterator[Docs]:
    """The documents in the order of the plan, some at a time."""
    for first in range(0, plan.documents, CHUNK):
        yield plan.docs[first : first + CHUNK]
