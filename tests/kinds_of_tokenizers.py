"""Small tokenizers of every kind that students keep some tokens of, trained on real text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from kdcache.models.piece_kinds import BYTES

Texts = Sequence[str]
XLM = ["<s>", "<pad>", "</s>", "<unk>"]


def saved(made: Tokenizer, folder: Path, **special: str) -> Path:
    """A folder with a tokenizer of transformers'."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    fast.save_pretrained(folder)
    return folder


def rewritten(made: Tokenizer, change: Callable[[Any], None]) -> Tokenizer:
    """A tokenizer whose tokenizer.json is changed."""
    record = json.loads(made.to_str())
    change(record)
    return Tokenizer.from_str(json.dumps(record))


def byte_level(texts: Texts, folder: Path) -> Path:
    """Byte-level BPE with RoBERTa's frame, and without an unknown token: GPT-2's kind."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.decoder = decoders.ByteLevel()
    return saved(made, folder, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def byte_fallback(texts: Texts, folder: Path) -> Path:
    """BPE of whole texts that falls back to bytes: Llama's kind."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
    special = ["<unk>", "<s>", "</s>", *BYTES]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=700, special_tokens=special, limit_alphabet=60, show_progress=False
        ),
    )

    def change(record: Any) -> None:
        record["added_tokens"] = record["added_tokens"][:3]
        record["pre_tokenizer"] = None

    made = rewritten(made, change)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
            ),
        ]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special_names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return saved(made, folder, pad_token="</s>", **special_names)


def ends_of_words(texts: Texts, folder: Path) -> Path:
    """BPE whose pieces say where a word ends: CLIP's and XLM's kind."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<unk>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.decoder = decoders.BPEDecoder()
    return saved(made, folder, pad_token="<pad>", unk_token="<unk>")


def unigram(texts: Texts, folder: Path, more: Sequence[tuple[str, float]] = ()) -> Path:
    """Unigram of words with the blank before them, framed as XLM-R's, with `more` pieces."""
    made = Tokenizer(models.Unigram())
    cut = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Sequence(cut)
    made.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=600, special_tokens=XLM, unk_token="<unk>", show_progress=False
        ),
    )

    def change(record: Any) -> None:
        record["model"]["vocab"] += [list(piece) for piece in (*more, ("<mask>", 0.0))]
        last = {**record["added_tokens"][0], "content": "<mask>", "lstrip": True}
        last["id"] = len(record["model"]["vocab"]) - 1
        record["added_tokens"].append(last)

    made = rewritten(made, change)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    made.decoder = decoders.Metaspace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return saved(made, folder, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **names)


MADE: dict[str, Callable[[Texts, Path], Path]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "ends-of-words": ends_of_words,
    "unigram": unigram,
}
"""Those that are made here; WordPiece is the tokenizer of the session."""
