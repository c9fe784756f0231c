"""Tokenizers: fingerprint, encoding in windows, and the files a cache keeps of them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
import transformers

from kdcache.errors import ModelError, require_path
from kdcache.manifest import Json
from kdcache.models.auto import unreadable

if TYPE_CHECKING:
    from kdcache.store import Cache


UNBOUNDED = 10**9  # tokens; transformers cuts nothing off at such a length


class Window(NamedTuple):
    """A tokenised document, or one window of it; `pair_start` is where the second text begins."""

    document: int
    window: int
    ids: npt.NDArray[np.int64]
    pair_start: int


class Encoded(NamedTuple):
    """Tokenised documents, and how many of them lost tokens to `max_length`."""

    windows: list[Window]
    truncated: int


class Tokenizer:
    """A fast tokenizer with what a plan needs to know of it."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self.source = source
        self.vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
        self.special_ids = np.asarray(sorted(tokenizer.all_special_ids), np.int64)

    @property
    def plain(self) -> Any:
        """The tokenizer as transformers has it."""
        return self._tokenizer

    @property
    def mask_id(self) -> int:
        """Id of the mask token; ModelError if there is none."""
        found = self._tokenizer.mask_token_id
        if found is None:
            raise ModelError(
                f"the tokenizer of {self.source} has no mask token; masked-lm needs it"
            )
        return int(found)

    @property
    def identity(self) -> Json:
        """Fingerprint and ids, for the manifest."""
        pad = self._tokenizer.pad_token_id
        return {
            "name": short_name(self.source),
            "sha256": self._sha256(),
            "vocab_size": self.vocab_size,
            "pad_id": int(pad) if pad is not None else 0,
            "type_ids": "token_type_ids" in self._tokenizer.model_input_names,
        }

    def _sha256(self) -> str:
        return hashlib.sha256(self._plain().to_str().encode()).hexdigest()

    @property
    def parts(self) -> Json:
        """What it is made of, by name: normalizer, model, post_processor and so on."""
        return dict(json.loads(self._plain().to_str()))

    def _plain(self) -> Any:
        """The tokenizer itself, without the settings that the last use has left in it."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode(
        self, texts: list[str], pairs: list[str] | None, max_length: int, *, windows: bool
    ) -> Encoded:
        """Tokenise documents, cutting those beyond `max_length` tokens off or into windows."""
        if pairs is not None:
            texts, pairs = self._cut(texts, pairs, max_length)
        encoded = self._tokenizer(
            texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False
        )
        found: list[Window] = []
        truncated = 0
        for document, first in enumerate(encoded.encodings):
            rest = first.overflowing
            truncated += bool(rest) and not windows
            for window, piece in enumerate([first, *rest] if windows else [first]):
                if len(piece.ids):
                    ids = np.asarray(piece.ids, np.int64)
                    found.append(Window(document, window, ids, _pair_start(piece.type_ids)))
        return Encoded(found, truncated)

    def encode_words(
        self, documents: list[list[str]], max_length: int
    ) -> list[tuple[npt.NDArray[np.int64], list[int | None], bool]]:
        """Ids of lists of words, the word that each token is of, and whether some were cut off.

        What is left of a word whose first token was cut off is of no word.

        Raises ModelError for a tokenizer that takes whole texts only.
        """
        if not documents:
            return []
        try:
            encoded = self._tokenizer(
                documents, is_split_into_words=True, truncation=True, max_length=max_length
            )
        except (AssertionError, ValueError, TypeError) as error:
            raise ModelError(
                f"the tokenizer of {self.source} does not take words "
                f"({str(error).partition(chr(10))[0]}): write add_prefix_space=true into its "
                "tokenizer_config.json"
            ) from error
        return [
            (np.asarray(piece.ids, np.int64), self._words_of(piece), bool(piece.overflowing))
            for piece in encoded.encodings
        ]

    def _words_of(self, piece: Any) -> list[int | None]:
        """The word that each token is of, but for one that was cut in two on the left."""
        words: list[int | None] = piece.word_ids
        if self._tokenizer.truncation_side != "left":
            return words
        cut = {word for rest in piece.overflowing for word in rest.word_ids}
        return [None if word in cut else word for word in words]

    def _cut(self, texts: list[str], pairs: list[str], length: int) -> tuple[list[str], list[str]]:
        """Pairs without most of what truncation to `length` tokens drops anyway.

        Of a pair that is too long, tokenizers list every combination of what was cut off the one
        text and off the other: gigabytes for two long texts. The cut is too far off for a kept
        token to change, and the longer text stays the longer one: which one that is decides where
        an odd token goes.
        """
        first, second = self._pieces(texts, length), self._pieces(pairs, length)
        longer = [_tokens(one) > _tokens(other) for one, other in zip(first, second, strict=True)]
        left = self._tokenizer.truncation_side == "left"
        return (
            [_head(t, p, 2 + more, left) for t, p, more in zip(texts, first, longer, strict=True)],
            [_head(t, p, 3 - more, left) for t, p, more in zip(pairs, second, longer, strict=True)],
        )

    def _pieces(self, texts: list[str], length: int) -> list[list[Any]]:
        """The tokens of each text in pieces of `length`, in the order truncation keeps them."""
        encoded = self._tokenizer(
            texts, truncation=True, max_length=length, add_special_tokens=False
        )
        return [[first, *first.overflowing] for first in encoded.encodings]

    def files(self) -> dict[str, bytes]:
        """The tokenizer's files by name, as `save_pretrained` writes them: some in folders."""
        self._plain()
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._tokenizer.save_pretrained(folder)
            except Exception as error:  # the disk's errors come as bare Exception, too
                raise ModelError(
                    f"the tokenizer of {self.source} cannot be saved in {folder}: {error}; make "
                    "room there, or set TMPDIR to another folder"
                ) from error
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _tokens(pieces: list[Any]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _head(text: str, pieces: list[Any], count: int, left: bool) -> str:
    """The characters of the first `count` pieces of a text: of its end, if cut on the left."""
    if len(pieces) <= count:
        return text
    offsets = [offset for piece in pieces[:count] for offset in piece.offsets]
    if left:
        return text[min(start for start, _ in offsets) :]
    return text[: max(end for _, end in offsets)]


def _pair_start(type_ids: list[int]) -> int:
    start = type_ids.index(1) if 1 in type_ids else len(type_ids)
    if type_ids != [0] * start + [1] * (len(type_ids) - start):
        raise ModelError("token type ids other than a run of 0 and a run of 1 are not supported")
    return start


TOKENIZER_FILES = ("*token*", "vocab*", "*.model")
"""What the files of a tokenizer are called."""


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Load the tokenizer of a folder or hub name; ModelError if there is none, or no fast one."""
    tokenizer = load_plain(source, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {source} has no fast version (no tokenizer.json)")
    tokenizer.model_max_length = (
        UNBOUNDED  # the plan's max_length rules; no warning about the model's
    )
    return Tokenizer(tokenizer, str(source))


def load_plain(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub name as transformers has it, fast or not.

    Raises ModelError if there is none.
    """
    require_path("a tokenizer", source)
    path = Path(source)
    if path.is_dir() and not any(any(path.glob(name)) for name in TOKENIZER_FILES):
        raise ModelError(f"{path} holds no tokenizer (no tokenizer.json)")
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            str(source), trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizers raise bare Exception for a malformed file
        raise ModelError(unreadable("tokenizer", source, error)) from error
    if found.get_vocab().keys() <= found.get_added_vocab().keys():
        raise ModelError(f"{source} holds no tokenizer: its vocabulary is missing")
    return found


def save_tokenizer(cache: Cache, folder: Path) -> None:
    """Write the tokenizer kept in a cache into a model folder; `serve_with` fits it there."""
    cache.extract(folder, [name for name in cache.files if name.startswith("tokenizer/")])


def serve_with(folder: Path, *, length: int | None, pad_id: int | None) -> None:
    """Fit the tokenizer in a model's folder to that model, which takes `length` tokens at once.

    Asked to truncate, it then cuts there. Where it has no pad token it takes that of `pad_id`, for
    a pipeline that pads its batches asks for one.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["model_max_length"] = UNBOUNDED if length is None else length
    if config.get("pad_token") is None and pad_id is not None:
        vocabulary = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        config["pad_token"] = vocabulary.id_to_token(pad_id)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def short_name(source: str) -> str:
    """The last folder of a local path; a hub name as it is."""
    path = Path(source)
    return path.resolve().name if path.exists() else source
