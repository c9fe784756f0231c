"""What makes two vocabularies one: the same tokens under the same numbers."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcache.errors import ModelError
from kdcache.models.tokenizer import Tokenizer, load_plain, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from kdcache.store import Cache


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The tokens of a tokenizer, and nothing of how it cuts a text into them.

    Attributes:
        ids: the id of every token.
        added: the tokens that were added to the vocabulary, such as special ones.
    """

    ids: Mapping[str, int]
    added: frozenset[str]

    @property
    def sha256(self) -> str:
        """Of all tokens with their ids."""
        ordered = sorted(self.ids.items(), key=lambda item: (item[1], item[0]))
        return hashlib.sha256(json.dumps(ordered).encode()).hexdigest()


def token_map(tokenizer: Any) -> TokenMap:
    """The tokens of a tokenizer of transformers, fast or not."""
    return TokenMap(tokenizer.get_vocab(), frozenset(tokenizer.get_added_vocab()))


def difference(one: TokenMap, other: TokenMap) -> str:
    """Where two vocabularies differ, in words; empty if they are one.

    Added tokens may be missing on one side: a checkpoint for chats has some that its base has not.
    They may not have another id there, nor the id of another token.
    """
    added = one.added | other.added
    apart = [
        token
        for token in one.ids.keys() | other.ids.keys()
        if one.ids.get(token) != other.ids.get(token)
        and (token not in added or (token in one.ids and token in other.ids))
    ]
    if apart:
        token = min(apart, key=lambda token: (_number(token, one, other), token))
        mine, theirs = _number_text(one.ids.get(token)), _number_text(other.ids.get(token))
        return f"{token!r} is {mine} of the one and {theirs} of the other"
    return _clash(one, other) or _clash(other, one)


def _clash(one: TokenMap, other: TokenMap) -> str:
    """An id that a token which only `other` has, an added one, shares with another token."""
    tokens = {number: token for token, number in one.ids.items()}
    alone = {other.ids[token]: token for token in other.added - one.ids.keys()}
    for number in sorted(alone.keys() & tokens.keys()):
        return f"token {number} is {tokens[number]!r} of the one and {alone[number]!r} of the other"
    return ""


def _number(token: str, one: TokenMap, other: TokenMap) -> int:
    return min(known.ids[token] for known in (one, other) if token in known.ids)


def _number_text(number: int | None) -> str:
    return "no token" if number is None else f"token {number}"


def processing_difference(one: Tokenizer, other: Tokenizer) -> str:
    """The parts, such as the normalizer, that two tokenizers of one vocabulary differ in."""
    if one is other:
        return ""
    mine, theirs = one.parts, other.parts
    names = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    return ", ".join(sorted(names))


def own_tokenizer(source: str | Path) -> Tokenizer | None:
    """The tokenizer that lies with a model; None if there is none, or no fast one."""
    try:
        return load_tokenizer(source)
    except ModelError:
        return None


def cached_tokenizer(cache: Cache) -> Tokenizer:
    """The tokenizer that a cache keeps, called as there.

    Raises DamageError or ModelError if it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(cache, Path(folder))
        return Tokenizer(load_tokenizer(folder).plain, cache.plan.config.tokenizer["name"])


def vocabulary_apart(cache: Cache, tokenizer: Any) -> str:
    """Where a tokenizer of transformers numbers tokens otherwise than the cache's, in words."""
    planned = cache.plan.config.tokenizer["sha256"]
    if tokenizer.is_fast and Tokenizer(tokenizer, "").identity["sha256"] == planned:
        return ""
    return difference(token_map(tokenizer), token_map(cached_tokenizer(cache).plain))


def require_same_vocabulary(cache: Cache, source: str, *, unless_none: bool) -> None:
    """Raise ModelError unless the checkpoint in `source` numbers its tokens as the cache does.

    Where it has no tokenizer, `unless_none` says that a person knows better.
    """
    name = cache.plan.config.tokenizer["name"]
    try:
        found = load_plain(source)
    except ModelError as error:
        if unless_none:
            return
        raise ModelError(
            f"cannot tell whether {source} numbers its tokens as the cache's tokenizer {name} "
            f"does: {error}; put its tokenizer's files there, or say --same-tokenizer if you know "
            "that it does"
        ) from error
    apart = vocabulary_apart(cache, found)
    if apart:
        raise ModelError(
            f"the tokenizer of {source} is not the cache's ({name}): {apart}; choose a student "
            "with the teacher's tokenizer, or let it have its own (student.tokenizer)"
        )
