"""Other words for each word of a text, by what a masked language model expects in its place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

WORD = re.compile(r"[^\W\d_]+")
"""Words: letters alone, so that no number, mark or blank is ever replaced."""
STARTS = ("Ġ", "▁")
"""What marks a token that begins a word, in tokenizers that mark these."""
CONTINUES = "##"


class Place(NamedTuple):
    """A word of a document: in which of its texts, and where."""

    text: int
    start: int
    end: int


def places_of(texts: Sequence[str], kept: Sequence[str] = ()) -> list[Place]:
    """The words of a document's texts but those of what is `kept` where it stands, as "[MASK]"."""
    longest = sorted(kept, key=len, reverse=True)
    every = re.compile("|".join([*map(re.escape, longest), WORD.pattern]))
    return [
        Place(number, *found.span())
        for number, text in enumerate(texts)
        for found in every.finditer(text)
        if found[0] not in kept
    ]


class FillIn:
    """A masked language model that is asked for words.

    Each word of a document is masked by itself, however many tokens it is, and the likeliest whole
    words in its place are taken; those that it is itself are left out. Where a text holds what the
    tokenizer reads as a token of its own, such as "[MASK]", that stays.

    Args:
        model, tokenizer: a masked LM and its fast tokenizer, as transformers has them.
        candidates: how many words there are to choose from, at most.
        max_length: tokens of a document; words beyond are left as they are.
        batch_size: masked copies that run together.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, candidates: int, max_length: int, batch_size: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.candidates, self.max_length, self.batch_size = candidates, max_length, batch_size
        self.words = _whole_words(tokenizer, model.config.vocab_size)
        allowed = torch.tensor([bool(word) for word in self.words])
        self.barred = (~allowed).to(model.device)

    def of(self, documents: Sequence[Sequence[str]]) -> list[dict[Place, list[str]]]:
        """For each document, a text or two, words for each of its words, the likeliest first."""
        kept = self.tokenizer.all_special_tokens
        places = [
            (d, place) for d, texts in enumerate(documents) for place in places_of(texts, kept)
        ]
        # Copies of like length share a batch.
        places.sort(key=lambda one: sum(map(len, documents[one[0]])))
        found: list[dict[Place, list[str]]] = [{} for _ in documents]
        for start in range(0, len(places), self.batch_size):
            some = places[start : start + self.batch_size]
            copies = [_masked(documents[d], place, self.tokenizer.mask_token) for d, place in some]
            asked = self._words(copies, [place for _, place in some])
            for (d, place), words in zip(some, asked, strict=True):
                there = documents[d][place.text][place.start : place.end]
                others = (_as_written(word, there) for word in words if word != there.lower())
                found[d][place] = list(dict.fromkeys(others))[: self.candidates]
        return found

    def _words(
        self, copies: Sequence[Sequence[str]], places: Sequence[Place]
    ) -> Iterator[list[str]]:
        """The likeliest words in the place of each mask, one more than there are to be."""
        encoded = self.tokenizer(
            *map(list, zip(*copies, strict=True)),
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        tokens = {  # of a place that was not cut off; a text may hold masks of its own
            row: token
            for row, place in enumerate(places)
            if (token := encoded.char_to_token(row, place.start, place.text)) is not None
        }
        with torch.inference_mode():
            logits = self.model(**encoded).logits[list(tokens), list(tokens.values())].float()
        many = min(self.candidates + 1, int((~self.barred).sum()))
        likeliest = logits.masked_fill(self.barred, -torch.inf).topk(many).indices.tolist()
        found = dict(zip(tokens, likeliest, strict=True))
        for row in range(len(copies)):
            yield [self.words[i].lower() for i in found.get(row, ())]


def replaced(
    texts: Sequence[str],
    words: dict[Place, list[str]],
    probability: float,
    rng: np.random.Generator,
) -> list[str]:
    """The texts with each word replaced with a probability, by any of its candidates."""
    made = list(texts)
    for place in sorted(words, reverse=True):  # from the end, where nothing moves what is before
        if not words[place] or rng.random() >= probability:
            continue
        word, text = words[place][rng.integers(len(words[place]))], made[place.text]
        made[place.text] = text[: place.start] + word + text[place.end :]
    return made


def _masked(texts: Sequence[str], place: Place, mask: str) -> list[str]:
    text = texts[place.text]
    changed = text[: place.start] + mask + text[place.end :]
    return [changed if number == place.text else other for number, other in enumerate(texts)]


def _whole_words(tokenizer: Any, outputs: int) -> list[str]:
    """What each output stands for if that is a whole word of letters; else nothing."""
    tokens = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), outputs)))
    marked = any(token.startswith(STARTS) for token in tokens if token)
    special = set(tokenizer.all_special_tokens)
    found = [_word(token, marked) if token and token not in special else "" for token in tokens]
    return found + [""] * (outputs - len(found))


def _word(token: str, marked: bool) -> str:
    if token.startswith(CONTINUES) or (marked and not token.startswith(STARTS)):
        return ""
    word = token.lstrip("".join(STARTS)) if marked else token
    return word if WORD.fullmatch(word) else ""


def _as_written(word: str, like: str) -> str:
    """A word in lower case as the one in whose place it stands is written."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
