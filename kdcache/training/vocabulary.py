"""Which tokens of the teacher's vocabulary a student keeps, and the caches as it reads them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kdcache.building.trimmed_cache import Lost, TrimmedCache, left_out, token_counts
from kdcache.errors import ConfigError
from kdcache.models import Tokenizer
from kdcache.models.kept_tokens import KeptTokens
from kdcache.models.token_map import cached_tokenizer
from kdcache.models.trimmed_model import special_ids
from kdcache.models.trimmed_tokenizer import choose_tokens
from kdcache.progress import Progress

if TYPE_CHECKING:
    from kdcache.models import StudentSpec
    from kdcache.store import Cache
    from kdcache.training.mixture import Mixture
    from kdcache.training.recipe import Recipe

CORPUS = "corpus"
LINES = 512  # of a file of texts, whose tokens are counted at once
FIELD = "student.vocabulary (--vocabulary)"


def vocabulary_of(value: Any) -> int | str:
    """What a recipe says of the tokens that are kept: `corpus`, a file's path or a number of rows.

    Raises ConfigError for what is none of these.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    number = int(text) if isinstance(text, str) and text.isdecimal() else text
    if isinstance(number, bool) or not isinstance(number, int | str) or number in (0, ""):
        raise ConfigError(_way(value))
    if isinstance(number, int) and number < 1:
        raise ConfigError(_way(value))
    return number


def _way(value: Any) -> str:
    return (
        f"{FIELD} is {CORPUS!r}, a file of texts, or how many rows of embeddings the student keeps "
        f"at most; got {value!r}"
    )


def with_fewer_tokens(
    mixture: Mixture, wanted: int | str, recipe: Recipe, spec: StudentSpec, progress: Progress
) -> Mixture:
    """The caches of a run as a student reads them that keeps some of the vocabulary.

    `wanted` is what `vocabulary_of` gives. What is kept is the same for all caches: the tokens of
    their documents, and those that the student's configuration names.

    Raises:
        ConfigError: soft labels over the vocabulary, a file that cannot be read, a number with no
            room for what is kept whatever is used, or a student or inputs that read all of it.
        ModelError: a kind of tokenizer that is not known.
    """
    require_vocabulary(mixture.caches, wanted, recipe, spec)
    tokenizer = cached_tokenizer(mixture.first)
    counts = np.sum([token_counts(cache.plan) for cache in mixture.caches], axis=0)
    most = wanted if isinstance(wanted, int) else None
    if isinstance(wanted, str) and wanted != CORPUS:
        _count_texts(Path(wanted), tokenizer, counts)
    also = special_ids(mixture.config(spec)) | {mixture.first.plan.config.tokenizer["pad_id"]}
    kept = choose_tokens(tokenizer, counts, most, also)
    share = 1 - kept.rows / len(kept.numbers)
    progress.say(
        f"the student keeps {kept.rows:,} of {len(kept.numbers):,} tokens of the vocabulary "
        f"({share:.1%} fewer)"
    )
    lost = [left_out(cache.plan, kept) for cache in mixture.caches] if most else []
    if total := sum(one.tokens for one in lost):
        _require_unknown(tokenizer, kept, most)
        progress.say(_told(mixture, lost, total))
    return replace(mixture, caches=tuple(TrimmedCache(cache, kept) for cache in mixture.caches))


def require_vocabulary(
    caches: Iterable[Cache], wanted: int | str, recipe: Recipe, spec: StudentSpec
) -> None:
    """Raise ConfigError where something is read by all tokens of the vocabulary, or there is no
    such file of texts: whatever can be told before documents are read.
    """
    if isinstance(wanted, str) and wanted != CORPUS and not Path(wanted).is_file():
        raise ConfigError(f"{_way(wanted)}, and there is no such file")
    for cache in caches:
        if not cache.plan.task.labelled:
            raise ConfigError(
                f"the soft labels of {cache.path} are over the vocabulary ({cache.plan.task}), and "
                f"a student with fewer tokens has fewer outputs: leave {FIELD} out"
            )
    if spec.module is not None:
        raise ConfigError(
            f"{FIELD} keeps rows of embeddings, and those of a module of your own are not known: "
            "make it with fewer, or leave it out"
        )
    for one in recipe.in_stages():
        if one.inputs is not None:
            raise ConfigError(
                f"inputs.kind={one.inputs.way.kind} mixes embeddings of tokens all over the "
                f"vocabulary, of which {FIELD} keeps some: leave one of the two out"
            )


def _count_texts(file: Path, tokenizer: Tokenizer, counts: npt.NDArray[np.int64]) -> None:
    """Add the tokens of a file's lines to counts."""
    for texts in _lines(file):
        for piece in tokenizer.plain(texts, add_special_tokens=False).encodings:
            np.add.at(counts, piece.ids, 1)


def _lines(file: Path) -> Iterator[list[str]]:
    """The lines of a file, some at a time."""
    try:
        with file.open(encoding="utf-8") as source:
            while lines := [line.rstrip("\n") for line in islice(source, LINES)]:
                yield lines
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no file of texts in UTF-8 ({error}): {FIELD}") from error


def _require_unknown(tokenizer: Tokenizer, kept: KeptTokens, most: int | None) -> None:
    """Raise ConfigError where nothing can stand for the tokens that are left out."""
    if kept.number(tokenizer.plain.unk_token_id) is None:
        raise ConfigError(
            f"{FIELD}={most} leaves out tokens of the cache's documents, and the tokenizer of "
            f"{tokenizer.source} has no unknown token to read in their place: keep those of the "
            f"corpus ({CORPUS}), or more"
        )


def _told(mixture: Mixture, lost: list[Lost], tokens: int) -> str:
    plans = [cache.plan for cache in mixture.caches]
    documents = sum(one.documents for one in lost)
    every = sum(plan.documents for plan in plans)
    share = tokens / sum(plan.tokens for plan in plans)
    return (
        f"{tokens:,} tokens of the documents ({share:.2%}) are none of these and are read as the "
        f"unknown one; the student's tokenizer cuts {documents:,} of {every:,} documents otherwise"
    )
