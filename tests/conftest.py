"""Real text, a tokenizer trained on it, and small teachers of every task, made once a session."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if not Path("/dev/nvidiactl").exists():
    # Read when triton is imported, which a CUDA build of torch does before any test could set it.
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder is not asked for, for half a minute

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from kdcache.building.builder import build
from kdcache.corpora.standard_library import Docstring, docstrings, prose
from kdcache.store import Cache

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def pytest_collection_finish() -> None:
    """Keep what is imported out of later collections of garbage: each trainer asks for one."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell how many cases of `oracles` were held, and what was cut of them."""
    found: dict[str, tuple[str, int, list[str]]] = {}
    for report in terminalreporter.getreports("passed"):
        for key, (name, *said) in report.user_properties:
            found |= {name: tuple(said)} if key == "oracle" else {}
    if found:
        kinds = [kind for kind, *_ in found.values()]
        cut = {name: number for name, (_, number, _) in found.items() if number}
        each = ", ".join(f"{name} ({number})" for name, number in cut.items()) or "none"
        terminalreporter.write_line(
            f"oracles: {len(found)} cases, {kinds.count('code')} of published code, "
            f"{kinds.count('formula')} of a formula; {sum(cut.values())} sequences cut: {each}"
        )
        left = [f"{name} ({', '.join(parts)})" for name, (*_, parts) in found.items() if parts]
        told = "; ".join(left) or "nothing"
        terminalreporter.write_line(f"beside loss and gradients not held: {told}")


@pytest.fixture(scope="session")
def library() -> list[Docstring]:
    """The docstrings of the standard library, which take seconds to read."""
    return docstrings()


@pytest.fixture(scope="session")
def sentences(library: list[Docstring]) -> list[Docstring]:
    """Docstrings of three packages of the standard library, with their package."""
    found = [d for d in library if d.package in ("asyncio", "email", "tkinter")]
    return found[:: max(1, len(found) // 240)][:240]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fixtures below make what all modules read; nobody else writes here."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module's own folder, so that no other module's files can have the same names."""
    return tmp_path_factory.mktemp("module")


@pytest.fixture(scope="session")
def tokenizer(shared: Path) -> Path:
    """A WordPiece tokenizer of 600 tokens, trained on the documentation of the language."""
    normal, cut = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    texts = [normal.normalize_str(text) for text in prose()[:400]]
    # The trainer numbers the letters within words as a randomly seeded table has them, and the
    # numbers decide between pairs that are as frequent: numbered here, every session has the same
    # tokens, so the same models of the same random weights.
    words = {word for text in texts for word, _ in cut.pre_tokenize_str(text)}
    within = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=[*SPECIAL, *within], show_progress=False
    )
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = cut
    trained.train_from_iterator(texts, trainer)
    made = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normal, cut
    cls, sep = (made.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    made.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    fast.save_pretrained(shared / "tokenizer")
    return shared / "tokenizer"


def save_teacher(path: Path, tokenizer: Path, model: transformers.PreTrainedModel) -> Path:
    """Save a model with the tokenizer beside it."""
    model.save_pretrained(path)
    for file in tokenizer.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def exchange_tokens(model: Path, one: str = "the", other: str = "of") -> Path:
    """Give two tokens of a model's folder each other's id, and change nothing else."""
    file = model / "tokenizer.json"
    record = json.loads(file.read_text("utf-8"))
    ids = record["model"]["vocab"]
    ids[one], ids[other] = ids[other], ids[one]
    file.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    return model


def bert_config(tokenizer: Path, **more: object) -> transformers.BertConfig:
    vocab = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
    return transformers.BertConfig(**{"vocab_size": vocab, **SIZES, **more})


@pytest.fixture(scope="session")
def classifier(shared: Path, tokenizer: Path) -> Path:
    torch.manual_seed(1)
    labels = ["asyncio", "email", "tkinter"]
    config = bert_config(
        tokenizer,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
        initializer_range=0.2,
    )
    model = transformers.BertForSequenceClassification(config)
    return save_teacher(shared / "classifier", tokenizer, model)


@pytest.fixture(scope="session")
def regressor(shared: Path, tokenizer: Path) -> Path:
    torch.manual_seed(2)
    config = bert_config(tokenizer, num_labels=1, initializer_range=0.2)
    model = transformers.BertForSequenceClassification(config)
    return save_teacher(shared / "regressor", tokenizer, model)


@pytest.fixture(scope="session")
def masked_lm(shared: Path, tokenizer: Path) -> Path:
    torch.manual_seed(3)
    model = transformers.BertForMaskedLM(bert_config(tokenizer, initializer_range=0.2))
    return save_teacher(shared / "masked_lm", tokenizer, model)


@pytest.fixture(scope="session")
def causal_lm(shared: Path, tokenizer: Path) -> Path:
    torch.manual_seed(4)
    vocab = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
    config = transformers.GPT2Config(
        vocab_size=vocab,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_positions=128,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.2,
    )
    return save_teacher(shared / "causal_lm", tokenizer, transformers.GPT2LMHeadModel(config))


@pytest.fixture(scope="session")
def corpus(shared: Path, sentences: list[Docstring]) -> Path:
    """A CSV file of sentences with their package as label."""
    return write_csv(shared / "sentences.csv", [(s.text, s.package) for s in sentences])


@pytest.fixture(scope="session")
def prose_file(shared: Path) -> Path:
    """Plain text, a paragraph a line."""
    path = shared / "prose.txt"
    path.write_text("\n".join(prose()[400:480]), encoding="utf-8")
    return path


class Lines:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Any]:
        yield lambda done: None


def write_csv(
    path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("text", "label")
) -> Path:
    """Write rows under a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def cache(shared: Path, corpus: Path, classifier: Path) -> Cache:
    """Dense logits and [CLS] states of every layer; several parts; teacher weights kept."""
    return build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=shared / "cache.zarr",
        signals=["logits:dense", "hidden:layers=0-1-2-3-4,positions=cls,dtype=fp32"],
        max_length=48,
        part_tokens=2048,
        batch_tokens=1024,
        keep_teacher_weights=True,
    )


@pytest.fixture(scope="session")
def masked_cache(shared: Path, prose_file: Path, masked_lm: Path) -> Cache:
    """Top-16 soft labels and hidden states at masked positions, two views of each text."""
    return build(
        prose_file,
        teacher=masked_lm,
        task="masked-lm",
        out=shared / "masked.zarr",
        signals=["logits:topk,k=16", "hidden:layers=2-4,positions=masked,group=16"],
        max_length=48,
        part_tokens=4096,
        views=2,
    )


@pytest.fixture(scope="session")
def causal_cache(shared: Path, prose_file: Path, causal_lm: Path) -> Cache:
    """Top-16 soft labels at every token and hidden states of every token."""
    return build(
        prose_file,
        teacher=causal_lm,
        task="causal-lm",
        out=shared / "causal.zarr",
        signals=["logits:topk,k=16", "hidden:layers=0-4,positions=all,dtype=bf16"],
        max_length=64,
        part_tokens=4096,
    )


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    """A real S3 server on loopback with an empty bucket, in the environment; its address."""
    command = [sys.executable, str(Path(__file__).with_name("object_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_ACCESS_KEY_ID", "kdcache")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "kdcache")
            urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"))
            yield address
        server.kill()


@pytest.fixture
def bucket(object_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a place of the test's own in a bucket; shards are fetched to its own folder."""
    monkeypatch.setenv("KDCACHE_FETCHED", str(tmp_path / "fetched"))
    return f"s3://bucket/{uuid.uuid4().hex}"
