"""Words of documents that are tokens, told by what a tokenizer's decoder makes of these."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdcache.errors import ModelError
from kdcache.models import Tokenizer
from kdcache.plans import Array


class WordCuts:
    """Which tokens of a tokenizer begin a word, and which are of none.

    A token begins a word where its decoder puts a blank before it, and after a special token. Those
    are of no word, but for the unknown one, whose text is lost.

    Raises ModelError for a tokenizer without a decoder: what its tokens read is not told.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self._backend = tokenizer, tokenizer.plain.backend_tokenizer
        if self._backend.decoder is None:
            raise ModelError(
                f"texts cannot be read back from tokens of {tokenizer.source}, whose tokenizer "
                "has no decoder: write one into its tokenizer.json (WordPiece, ByteLevel, ...), or "
                "choose a student with the teacher's tokenizer"
            )
        size, unknown = tokenizer.vocab_size, tokenizer.plain.unk_token_id
        self.outside = np.zeros(size, np.bool_)
        self.outside[tokenizer.special_ids[tokenizer.special_ids < size]] = True
        if unknown is not None:
            self.outside[unknown] = False
        self.begins = self._beginnings(size)

    def _beginnings(self, size: int) -> Array:
        """Whether each token is set off from one before it, [V] bool."""
        plain = [token for token in range(size) if not self.outside[token]]
        before = next(token for token in plain if self._text([token]).isalnum())
        length = len(self._text([before]))
        behind = self._texts([[before, token] for token in range(size)])
        return np.asarray([text[length : length + 1].isspace() for text in behind])

    def numbers(self, ids: Array, lens: Array) -> Array:
        """The word of each token, counted in its document, [tokens] int64; -1: of none.

        `ids` are the tokens of documents of `lens` tokens, one after the other.
        """
        inside, begins = self._begun(ids, lens)
        first = np.cumsum(lens) - lens
        count = np.cumsum(begins)
        before = np.repeat(count[first] - begins[first], lens)
        return np.where(inside, count - 1 - before, -1)

    def _begun(self, ids: Array, lens: Array) -> tuple[Array, Array]:
        """Whether each token is of a word, and whether it begins one."""
        inside = ~self.outside[ids]
        alone = np.concatenate([[True], ~inside[:-1]])  # behind a special token
        alone[np.cumsum(lens) - lens] = True
        return inside, inside & (self.begins[ids] | alone)

    def words(self, ids: Array, lens: Array) -> list[list[str]]:
        """The words of documents, as texts."""
        inside, begins = self._begun(ids, lens)
        owner = np.repeat(np.arange(len(lens)), lens)[begins]
        pieces = np.split(ids[inside], np.flatnonzero(begins[inside])[1:])
        found: list[list[str]] = [[] for _ in lens]
        texts = self._texts([piece.tolist() for piece in pieces]) if len(owner) else []
        for document, text in zip(owner.tolist(), texts, strict=True):
            found[document].append(text.strip())
        return found

    def _text(self, ids: list[int]) -> str:
        return self._texts([ids])[0]

    def _texts(self, ids: list[list[int]]) -> list[str]:
        made: Any = self._backend.decode_batch(ids, skip_special_tokens=False)
        return list(made)
