"""A student with fewer rows of embeddings: those of the tokens that it keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from kdcache.errors import ModelError
from kdcache.models.embedded import named_embeddings
from kdcache.models.kept_tokens import KeptTokens
from kdcache.models.module_student import ModuleStudent
from kdcache.models.recording import members_of, name_of
from kdcache.models.run import run, untouched
from kdcache.models.student_config import StudentConfig, is_foreign
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS
from kdcache.tasks import Task

if TYPE_CHECKING:
    from kdcache.store import Cache

TOLERANCE = 1e-6  # of the largest logit: the same operations on the same numbers
COMPARED_TOKENS = 512  # of the longer document that is read with both vocabularies
SUFFIXES = ("_token_id", "_token_ids")  # of what a configuration calls tokens
LEAVE = "leave --vocabulary out, or choose another student"


def special_ids(config: Any) -> set[int]:
    """The tokens that a student's configuration names, and those of the students it is made of."""
    found: set[int] = set()
    for own in _with_texts(config, *getattr(config, "members", ())):
        for _, value in _named(own):
            found |= set(value if isinstance(value, list) else [value])
    return found


def _with_texts(*configs: Any) -> list[Any]:
    """Configurations and those of their texts, each once."""
    both = (own for one in configs for own in (one, one.get_text_config()))
    return list({id(own): own for own in both}.values())


def _named(config: Any) -> Iterator[tuple[str, Any]]:
    """What a configuration says of single tokens and lists of them, by the names of its fields."""
    for name, value in list(vars(config).items()):
        several = isinstance(value, list) and all(type(one) is int for one in value)
        if name.endswith(SUFFIXES) and (type(value) is int or several):
            yield name, value


def trimmed_config(config: Any, kept: KeptTokens) -> Any:
    """The configuration of a student with the tokens it keeps, those it names by their numbers.

    Raises ModelError for a student that is a module of somebody's own.
    """
    made = copy.deepcopy(config)
    for one in (made, *getattr(made, "members", ())):
        if is_foreign(one) and not getattr(one, "members", ()):
            raise ModelError(
                f"{one.student} is a module of your own, whose embeddings are not known: {LEAVE}"
            )
        for own in _with_texts(one):
            _renumber(own, kept)
    return made


def _renumber(config: Any, kept: KeptTokens) -> None:
    """Change what a configuration says of tokens, in place."""
    for name, value in _named(config):
        if isinstance(value, list):
            moved = [kept.number(token) for token in value]
            setattr(config, name, [token for token in moved if token is not None])
        else:
            setattr(config, name, kept.number(value))
    if getattr(config, "vocab_size", None):
        config.vocab_size = len(kept.rows_of(config.vocab_size))
    if isinstance(config, StudentConfig) and config.settings is not None:
        config.settings = {**config.settings, "vocabulary": config.vocab_size}


def trim(student: Any, cache: Cache) -> None:
    """Leave a student the embeddings of the tokens that a cache keeps, in place.

    Every table of word embeddings that is tied stays tied. Where positions are counted from the
    pad's number (RoBERTa), their table begins so many rows later as that is smaller. Both are held
    against each other on two documents, one padded.

    Raises ModelError for a student without a plain table of word embeddings, or that says something
    else of these documents.
    """
    kept: KeptTokens | None = cache.kept
    assert kept is not None
    ours, theirs = _documents(cache, kept)
    for one in members_of(student):
        _trim(one, kept, ours, theirs, cache.plan.task)


def _trim(model: Any, kept: KeptTokens, ours: Batch, theirs: Batch, task: Task) -> None:
    """Leave a model the embeddings it keeps; documents are `ours` with them, `theirs` with all."""
    with untouched(model):
        expected = run(model, theirs, [LOGITS], task=task)[LOGITS]
    _replace(model, _table(model).weight, kept)
    configs = (getattr(module, "config", None) for module in model.modules())
    for config in _with_texts(*(one for one in configs if one is not None)):
        _renumber(config, kept)
    with untouched(model):
        found = run(model, ours, [LOGITS], task=task)[LOGITS]
    apart, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if not apart <= TOLERANCE * scale:  # NaN is no equality either
        raise ModelError(
            f"{name_of(model)} with {kept.rows:,} rows of its embeddings says something else of "
            f"texts that have no other tokens (by {apart:.3g} of {scale:.3g}): it reads ids "
            f"elsewhere, too; {LEAVE}"
        )


def _table(model: Any) -> nn.Embedding:
    """The word embeddings of a student."""
    ours = isinstance(model, ModuleStudent)
    found = getattr(model.student, "embeddings", None) if ours else named_embeddings(model)
    if not isinstance(found, nn.Embedding):
        kind = "none" if found is None else type(found).__name__
        raise ModelError(
            f"{name_of(model)} has no plain table of word embeddings (it has {kind}), whose rows "
            f"could be told apart: {LEAVE}"
        )
    return found


def _replace(model: Any, old: torch.Tensor, kept: KeptTokens) -> None:
    """Put the rows that are kept into all modules that have the table, and move their pads."""
    rows = torch.from_numpy(kept.rows_of(len(old)))
    new = nn.Parameter(old.detach()[rows].clone(), requires_grad=old.requires_grad)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                setattr(module, name, new)
        pad = getattr(module, "padding_idx", None)
        if isinstance(module, nn.Embedding) and module.weight is new:
            module.num_embeddings = len(new)
        elif isinstance(module, nn.Embedding) and pad is not None:
            _shift(module, pad - (kept.number(pad) or 0), model.config)
        if pad is not None:
            module.padding_idx = kept.number(pad)
    if isinstance(model, ModuleStudent):
        inner: Any = model.student
        inner.vocabulary = len(new)
        inner.settings = {**inner.settings, "vocabulary": len(new)}


def _shift(positions: nn.Embedding, rows: int, config: Any) -> None:
    """Let positions that are counted from the pad's number have the same rows as before."""
    if rows:
        weight = positions.weight
        positions.weight = nn.Parameter(weight.detach()[rows:].clone(), weight.requires_grad)
        positions.num_embeddings = len(positions.weight)
        config.get_text_config().max_position_embeddings -= rows


def _documents(cache: Cache, kept: KeptTokens) -> tuple[Batch, Batch]:
    """The shortest document and a longer one as the student reads them, and in the old ids."""
    plan = cache.plan
    lengths = plan.per_document["doc_len"][plan.docs]
    some = np.where(lengths <= COMPARED_TOKENS, lengths, -lengths)
    docs = plan.docs[np.unique([int(some.argmax()), int(lengths.argmin())])]
    ours = cache.batch(docs, [])
    old = torch.from_numpy(kept.ids)[ours["input_ids"]]
    return ours, ours.beside(input_ids=old)
