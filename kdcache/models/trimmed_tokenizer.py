"""A tokenizer with some of its tokens: which it has to keep, and the one that has these."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.errors import ConfigError, ModelError
from kdcache.manifest import Json
from kdcache.models.kept_tokens import KeptTokens
from kdcache.models.piece_kinds import KINDS, PieceKind
from kdcache.models.tokenizer import Tokenizer, load_tokenizer

CONFIG = "tokenizer_config.json"
PLAIN = "PreTrainedTokenizerFast"
"""The class that cuts texts by tokenizer.json alone."""


def choose_tokens(
    tokenizer: Tokenizer,
    counts: npt.NDArray[np.int64],
    most: int | None = None,
    also: Iterable[int] = (),
) -> KeptTokens:
    """The tokens to keep of a tokenizer whose tokens texts use `counts` times, [V].

    Kept are all that are used; without which these could not be cut, such as what BPE merges them
    from; and special and added tokens, bytes, and the characters of what is used, so that any text
    of these characters can be written. With `most`, of those that are used as many as there is room
    for among so many rows, the most used first.

    Args:
        also: further tokens that are kept.

    Raises:
        ConfigError: `most` has no room for those that are kept whatever is used.
        ModelError: a kind of tokenizer that is not known here.
    """
    whole = tokenizer.parts
    kind, ids = _kind(tokenizer, whole), tokenizer.plain.get_vocab()
    tokens = {number: token for token, number in ids.items()}
    added = {int(entry["id"]) for entry in whole["added_tokens"]}
    ranked = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    used = [token for token in ranked if token not in added]
    always = kind.always(whole, [tokens[token] for token in used])
    kept = added | {ids[piece] for piece in always if piece in ids}
    kept |= {token for token in (*also, *tokenizer.special_ids.tolist()) if token in tokens}
    if most is not None and most < len(kept):
        raise ConfigError(
            f"a vocabulary of {most:,} rows has no room for the {len(kept):,} special tokens and "
            "bytes, or characters of the texts, that are kept whatever is used: give "
            f"{len(kept):,} or more"
        )
    parts = kind.parts(whole["model"])
    for token in used:
        needs = {token, *(ids[piece] for piece in parts(tokens[token]) if piece in ids)} - kept
        if most is not None and len(kept) + len(needs) > most:
            break
        kept |= needs
    return KeptTokens.of(kept, tokenizer.vocab_size)


def _kind(tokenizer: Tokenizer, whole: Json) -> PieceKind:
    found = KINDS.get(whole["model"]["type"])
    if found is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.source} is of the kind {whole['model']['type']}, and "
            f"fewer tokens are known for {', '.join(KINDS)}: leave --vocabulary out"
        )
    return found


def trimmed_tokenizer(tokenizer: Tokenizer, kept: KeptTokens) -> Tokenizer:
    """The tokenizer with the tokens that are kept: texts of these are cut into the same.

    It is of a class that reads its tokenizer.json and nothing beside: others make some of their
    parts anew, by ids that they take for granted.

    Raises ModelError for a kind of tokenizer that is not known here.
    """
    whole = tokenizer.parts
    kind, numbers = _kind(tokenizer, whole), kept.numbers
    whole["model"] = kind.cut(whole["model"], numbers)
    whole["added_tokens"] = [
        {**entry, "id": int(numbers[entry["id"]])} for entry in whole["added_tokens"]
    ]
    if whole["post_processor"] is not None:
        whole["post_processor"] = _renumbered(whole["post_processor"], kept, tokenizer)
    config = json.loads(tokenizer.files()[CONFIG])
    config = {name: value for name, value in config.items() if name != "added_tokens_decoder"}
    config |= {
        "tokenizer_class": PLAIN,
        "model_input_names": list(tokenizer.plain.model_input_names),
    }
    with tempfile.TemporaryDirectory() as place:
        for name, record in (("tokenizer.json", whole), (CONFIG, config)):
            (Path(place) / name).write_text(json.dumps(record, ensure_ascii=False), "utf-8")
        made = load_tokenizer(place)
    return Tokenizer(made.plain, tokenizer.source)


def _template(part: Json, kept: KeptTokens, tokenizer: Tokenizer) -> Json:
    special = {
        name: {**entry, "ids": [kept.number(token) for token in entry["ids"]]}
        for name, entry in part["special_tokens"].items()
    }
    return {**part, "special_tokens": special}


def _framed(part: Json, kept: KeptTokens, tokenizer: Tokenizer) -> Json:
    ends = {name: [part[name][0], kept.number(part[name][1])] for name in ("sep", "cls")}
    return {**part, **ends}


def _each(part: Json, kept: KeptTokens, tokenizer: Tokenizer) -> Json:
    inner = [_renumbered(one, kept, tokenizer) for one in part["processors"]]
    return {**part, "processors": inner}


def _as_it_is(part: Json, kept: KeptTokens, tokenizer: Tokenizer) -> Json:
    return part


POST: Mapping[str, Callable[[Json, KeptTokens, Tokenizer], Json]] = {
    "TemplateProcessing": _template,
    "BertProcessing": _framed,
    "RobertaProcessing": _framed,
    "Sequence": _each,
    "ByteLevel": _as_it_is,
}
"""What puts special tokens around texts, by type, and how its ids are changed."""


def _renumbered(part: Any, kept: KeptTokens, tokenizer: Tokenizer) -> Json:
    """A post-processor with the numbers of the tokens that are kept."""
    if part["type"] not in POST:
        raise ModelError(
            f"the tokenizer of {tokenizer.source} frames texts by {part['type']}, and fewer tokens "
            f"are known for {', '.join(POST)}: leave --vocabulary out"
        )
    return POST[part["type"]](part, kept, tokenizer)
