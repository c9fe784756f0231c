"""What the kinds of tokenizers cut texts with: which pieces need which, and what is left of fewer.

A tokenizer with fewer pieces cuts a text into the same ones where all of these are kept. WordPiece
takes the longest piece there is, and that is still there. Unigram takes the path of the best score:
fewer pieces leave fewer paths, that one among them. BPE merges two pieces into one, again and
again, and so needs every piece that one is merged from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from tokenizers import pre_tokenizers

from kdcache.manifest import Json

Pieces = Iterable[str]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""What stands for bytes where a character has no piece (byte fallback)."""


class PieceKind(NamedTuple):
    """How a kind of model in a tokenizer.json is made smaller.

    Attributes:
        always: of a tokenizer.json and the pieces that texts use, pieces that are kept whatever
            they are: bytes, or the characters of these pieces. Some may not be there.
        parts: of a model, what says which pieces one piece is merged from.
        cut: the model with the pieces that have a number, by old id; -1: left out.
    """

    always: Callable[[Json, Pieces], Pieces]
    parts: Callable[[Json], Callable[[str], Pieces]]
    cut: Callable[[Json, Any], Json]


def _no_parts(model: Json) -> Callable[[str], Pieces]:
    return lambda piece: ()


def _renumbered(model: Json, numbers: Any) -> Json:
    """A model with a table of ids."""
    ids = {piece: int(numbers[old]) for piece, old in model["vocab"].items() if numbers[old] >= 0}
    return {**model, "vocab": ids}


def _what_is_unknown(whole: Json, used: Pieces) -> Pieces:
    return [whole["model"]["unk_token"]]


def _characters_of_words(whole: Json, used: Pieces) -> Iterator[str]:
    """Every character at the beginning of a word, and within one; and what is unknown."""
    model = whole["model"]
    prefix = model["continuing_subword_prefix"]
    for character in {c for piece in used for c in piece.removeprefix(prefix)}:
        yield from (character, prefix + character)
    yield model["unk_token"]


def _characters(whole: Json, used: Pieces) -> Iterator[str]:
    """Every character; what is unknown; and the piece of the lowest score, for what an unknown
    character costs is counted from that.
    """
    model = whole["model"]
    yield from {c for piece in used for c in piece}
    yield min(model["vocab"], key=lambda entry: float(entry[1]))[0]
    if model["unk_id"] is not None:
        yield model["vocab"][model["unk_id"]][0]
    if model.get("byte_fallback"):
        yield from BYTES


def _fewer_scores(model: Json, numbers: Any) -> Json:
    """A model whose pieces have their place in a list for an id."""
    kept = [entry for old, entry in enumerate(model["vocab"]) if numbers[old] >= 0]
    unknown = model["unk_id"]
    return {
        **model,
        "vocab": kept,
        "unk_id": None if unknown is None else int(numbers[unknown]),
    }


def _begun(model: Json, piece: str) -> list[str]:
    """The pieces that BPE begins with where a text has that piece: of a character each."""
    suffix = model["end_of_word_suffix"] or ""
    prefix = model["continuing_subword_prefix"] or ""
    body, within = piece.removesuffix(suffix), bool(prefix) and piece.startswith(prefix)
    found = list(body.removeprefix(prefix))
    if found and prefix:
        found[not within :] = [prefix + character for character in found[not within :]]
    if found and piece != body:
        found[-1] += suffix
    return found


def _bytes_and_characters(whole: Json, used: Pieces) -> Iterator[str]:
    model = whole["model"]
    begins, ends = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    characters = {c for piece in used for c in piece.removeprefix(begins).removesuffix(ends)}
    if model["unk_token"] is not None:
        yield model["unk_token"]
    if model["byte_fallback"]:
        yield from BYTES
    if any(_reads_bytes(whole[name]) for name in ("pre_tokenizer", "normalizer")):
        characters |= set(pre_tokenizers.ByteLevel.alphabet())
    for character in characters:
        within = (character, character + ends)
        yield from (*within, *(begins + one for one in within))


def _reads_bytes(part: Any) -> bool:
    """Whether a part of a tokenizer writes texts in characters that stand for bytes."""
    if isinstance(part, Mapping):
        return part.get("type") == "ByteLevel" or any(map(_reads_bytes, part.values()))
    return isinstance(part, list) and any(map(_reads_bytes, part))


def _merged_from(model: Json) -> Callable[[str], Pieces]:
    """Which pieces come up while BPE merges one: those of its two halves, and so on.

    Within a text the same merges are done, in the same order: none reaches over the piece's ends,
    or it would not be a piece.
    """
    ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    prefix = model["continuing_subword_prefix"] or ""

    def parts(piece: str) -> Pieces:
        now = _begun(model, piece)
        found = set(now)
        while True:
            known = [(ranks[pair], at) for at, pair in enumerate(pairwise(now)) if pair in ranks]
            if not known:
                return found
            at = min(known)[1]
            now[at : at + 2] = [_joined(now[at], now[at + 1], prefix)]
            found.add(now[at])

    return parts


def _pair(merge: Any) -> tuple[str, str]:
    """The two pieces of a merge: older files have them in one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _joined(first: str, second: str, prefix: str) -> str:
    return first + second.removeprefix(prefix)


def _fewer_merges(model: Json, numbers: Any) -> Json:
    made = _renumbered(model, numbers)
    known: Collection[str] = made["vocab"]
    prefix = model["continuing_subword_prefix"] or ""
    pairs = [(merge, _pair(merge)) for merge in model["merges"]]
    made["merges"] = [
        merge
        for merge, (first, second) in pairs
        if first in known and second in known and _joined(first, second, prefix) in known
    ]
    return made


KINDS: Mapping[str, PieceKind] = {
    "WordPiece": PieceKind(_characters_of_words, _no_parts, _renumbered),
    "BPE": PieceKind(_bytes_and_characters, _merged_from, _fewer_merges),
    "Unigram": PieceKind(_characters, _no_parts, _fewer_scores),
    "WordLevel": PieceKind(_what_is_unknown, _no_parts, _renumbered),
}
"""By the type that a tokenizer.json names."""
