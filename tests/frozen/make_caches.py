"""Make caches.zip: small caches of every codec as this format writes them, and their values.

    python tests/frozen/make_caches.py

It is run once for a format of caches, at a commit whose tests pass, and never to make a test pass:
what it has made is what later versions have to read. The models have two layers of 16 columns and
weights that are 64ths, which zip well. Nothing in the zip is needed to make it again but this file;
the last bits of what the teachers say depend on the machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers
import torch
import transformers

import kdcache

HERE = Path(__file__).parent
TEXTS = """
a cache keeps what a teacher has to tell of a text
the teacher is run once and the students are many
each row of the store has a place that a plan gives it
no two parts of the store share a file
what is damaged is made again to the last byte
a student that is small can learn from a large one
the tail of a distribution has a mass of its own
hidden states are kept in eight bits or in four
some of the layers of a model are of no use to a student
a text of one word
the order of the words is drawn anew in every pass
if the numbers are not the same then the teacher is another
it is better to refuse than to guess
a plan is made of the text and of the way it is cut into tokens
the mean over the rows is that of all ranks
the end
""".strip().splitlines()
WORDS = sorted({word for text in TEXTS for word in text.split()})[::2]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
CLASSES = ["short", "long"]
OUTPUTS, WIDE = 128, 70_000
"""Outputs of the language models: more than their tokenizer has, and more than 16 bits tell."""

BERT: dict[str, Any] = {"vocab_size": OUTPUTS, "hidden_size": 16, "num_hidden_layers": 2}
BERT |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
BERT |= {"initializer_range": 0.4}
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
GPT |= {"bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.4}

TEACHERS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "classifier": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **BERT,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: i for i, name in enumerate(CLASSES)},
        )
    ),
    "regressor": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(**BERT, num_labels=1)
    ),
    "masked_lm": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "other": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**BERT)),
    "causal_lm": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT, vocab_size=OUTPUTS)
    ),
    "wide_lm": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**GPT, vocab_size=WIDE)
    ),
}
TASKS = {"classifier": "text-classification", "regressor": "text-classification"}
TASKS |= {"masked_lm": "masked-lm", "other": "masked-lm"}
TASKS |= {"causal_lm": "causal-lm", "wide_lm": "causal-lm"}

Cache = tuple[str, dict[str, Any], list[str]]
CACHES: dict[str, Cache] = {
    "classes": (
        "classifier",
        {},
        ["logits:dense", "hidden:layers=0-1-2,positions=cls,dtype=int8"],
    ),
    "values": (
        "regressor",
        {},
        ["logits:dense,dtype=fp16", "hidden:layers=1,positions=mean,dtype=fp32"],
    ),
    "few_classes": ("classifier", {}, ["logits:topk-small,k=1"]),
    "topk": (
        "masked_lm",
        {"views": 2},
        ["logits:topk,k=8", "hidden:layers=0-2,positions=masked,dtype=int8,group=8"],
    ),
    "dense": (
        "masked_lm",
        {},
        [
            "logits:dense,fraction=0.5",
            "hidden:layers=2,positions=masked,dtype=bf16,fraction=0.5",
        ],
    ),
    "small": (
        "masked_lm",
        {},
        ["logits:topk-small,k=8", "hidden:layers=1-2,positions=all,dtype=int4,fraction=0.5"],
    ),
    "sampled": (
        "masked_lm",
        {},
        ["logits:sampled,n=12", "hidden:layers=2,positions=cls,dtype=fp16,compress=zstd"],
    ),
    "head": (
        "masked_lm",
        {},
        [
            "logits:hidden-head,dtype=int8,group=8",
            "hidden:layers=0-2,positions=mean,dtype=int4,group=8,compress=zstd",
        ],
    ),
    "topk_draws": (
        "causal_lm",
        {},
        [
            "logits:topk,k=8,draws=4,fraction=0.5",
            "hidden:layers=0-2,positions=all,dtype=bf16,fraction=0.5",
        ],
    ),
    "small_draws": (
        "causal_lm",
        {},
        ["logits:topk-small,k=8,draws=4,fraction=0.5", "hidden:layers=2,positions=all,dtype=fp8"],
    ),
    "head_half": (
        "causal_lm",
        {},
        [
            "logits:hidden-head,fraction=0.2",
            "hidden:layers=0,positions=all,dtype=int8,compress=zstd",
        ],
    ),
    "wide": ("wide_lm", {}, ["logits:topk,k=4,draws=4"]),
    "wide_small": ("wide_lm", {}, ["logits:topk-small,k=4,draws=4"]),
    "labels": ("masked_lm", {}, ["logits:topk,k=4"]),
    "states": ("masked_lm", {}, ["hidden:layers=1,positions=masked,dtype=int8"]),
    "others": ("other", {}, ["logits:topk,k=2"]),
}
"""By name: the teacher, options of the plan, signals."""

MERGED = {"merged": ("labels", "states", "others")}
SIZES = {"max_length": 24, "part_tokens": 128, "batch_tokens": 64, "seed": 3}


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of letters and some words."""
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def save_teacher(folder: Path, name: str) -> None:
    """A teacher of random 64ths, its tokenizer beside it."""
    torch.manual_seed(list(TEACHERS).index(name))
    model = TEACHERS[name]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight * 64).round() / 64)
    model.save_pretrained(folder / name)
    save_tokenizer(folder / name)


def save_corpora(folder: Path) -> dict[str, Path]:
    """The texts, a line each; and beside a class, or a number. By the teacher they are for."""
    columns: dict[str, list[Any]] = {
        "classifier": [CLASSES[len(text) > 45] for text in TEXTS],
        "regressor": [len(text) / 8 for text in TEXTS],
    }
    found = dict.fromkeys(TEACHERS, folder / "texts.txt")
    found["masked_lm"].write_text("\n".join(TEXTS), "utf-8")
    for teacher, labels in columns.items():
        rows = [f"{text},{label}" for text, label in zip(TEXTS, labels, strict=True)]
        found[teacher] = folder / f"{teacher}.csv"
        found[teacher].write_text("\n".join(["text,label", *rows]), "utf-8")
    return found


def build(folder: Path, corpora: dict[str, Path], name: str) -> None:
    """One of CACHES."""
    teacher, options, signals = CACHES[name]
    task: Any = TASKS[teacher]
    kdcache.build(
        corpora[teacher],
        teacher=folder / teacher,
        task=task,
        out=folder / name,
        signals=signals,
        **(SIZES | options),
    )


def views(path: Path) -> Iterator[tuple[str, Any]]:
    """The cache as each of its teachers, the first under the name of the folder."""
    first = kdcache.open_cache(path)
    yield path.name, first
    for teacher in first.teachers:
        yield f"{path.name}.{teacher}", kdcache.open_cache(path, teacher=teacher)


def exported(cache: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Every decoded column of a cache as `kdcache export` writes it, part after part."""
    with tempfile.TemporaryDirectory() as scratch:
        made = kdcache.export(cache, Path(scratch) / "out")
        files = [(Path(scratch) / "out" / file).read_bytes() for file in made.files]
    parts = [safetensors.numpy.load(data) for data in files]
    return {name: np.concatenate([part[name] for part in parts]) for name in sorted(parts[0])}


def told(cache: Any) -> dict[str, Any]:
    """What a cache says of itself, and digests of the rows of all its documents."""
    rows = {name: cache.read(name, cache.plan.docs) for name in cache.layouts}
    return {
        "plan": cache.plan.sha256,
        "documents": cache.plan.documents,
        "parts": cache.plan.parts,
        "signals": {name: signal.to_json() for name, signal in cache.signals.items()},
        "fidelity": cache.fidelity,
        "stored": {n: hashlib.sha256(x.tobytes()).hexdigest() for n, x in rows.items()},
    }


def machine() -> dict[str, str]:
    """What the last bits of an exponential or a logarithm of torch's depend on."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}


def pack(folder: Path, names: list[str]) -> bytes:
    """A zip of a zip that compresses nothing, so that what files share is stored once."""
    inner, outer = io.BytesIO(), io.BytesIO()
    paths = [path for name in names for path in sorted((folder / name).rglob("*"))]
    paths += [folder / name for name in names]
    with zipfile.ZipFile(inner, "w") as made:
        for path in sorted(filter(Path.is_file, paths)):
            entry = zipfile.ZipInfo(str(path.relative_to(folder)), (1980, 1, 1, 0, 0, 0))
            made.writestr(entry, path.read_bytes())
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        entry = zipfile.ZipInfo("made.zip", (1980, 1, 1, 0, 0, 0))
        made.writestr(entry, inner.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return outer.getvalue()


def main() -> None:
    """Write caches.zip beside this file."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in TEACHERS:
            save_teacher(folder, name)
        corpora = save_corpora(folder)
        for name in CACHES:
            build(folder, corpora, name)
        for name, sources in MERGED.items():
            kdcache.merge([folder / source for source in sources], folder / name)
        records: dict[str, Any] = {"machine": machine(), "caches": {}}
        (folder / "decoded").mkdir()
        for name in [*CACHES, *MERGED]:
            for view, cache in views(folder / name):
                records["caches"][view] = told(cache)
                np.savez(folder / "decoded" / f"{view}.npz", **exported(cache))
        (folder / "told.json").write_text(json.dumps(records, indent=1), "utf-8")
        data = pack(folder, ["told.json", "decoded", *CACHES, *MERGED])
    (HERE / "caches.zip").write_bytes(data)
    print(f"{len(data):,} bytes")


if __name__ == "__main__":
    main()
