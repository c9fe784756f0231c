"""A build against the bare teacher's forward, and a step of training: waits for data and the GPU.

Teachers are random and bf16, made of a configuration: nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from build_throughput import throughput
from gpu_run import Json, Session
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from kdcache import build, profile
from kdcache.bench.kernels_inputs import SPREAD
from kdcache.models import load_teacher
from kdcache.spans import WAIT
from kdcache.store import Cache

TASK = "causal-lm"
GOAL = 0.97
"""Of the bare forward's documents a second, a build has at least so many."""
WAITING = 0.01
"""Of a step's seconds, it waits for data at most so many."""
STEPS, REPEATS = 5, 3
PART_TOKENS = 1 << 15  # many parts, as of a large corpus: the last one's writing is waited for


class Model(NamedTuple):
    """A teacher by its sizes, and how much it reads; the student has every other block."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    documents: int
    length: int
    batch: int


MODELS = {
    "tiny": Model(256, 32, 64, 2, 4, documents=24, length=32, batch=4),
    # The sizes of Qwen2 0.5B, in blocks of Llama, whose tokenizer transformers reads as it is.
    "0.5B": Model(151936, 896, 4864, 24, 14, documents=4096, length=512, batch=8),
}


def words(model: Model, out: Path) -> None:
    """A tokenizer of as many words as the vocabulary has, and documents of them."""
    names = ["<end>", *(f"w{number}" for number in range(1, model.vocab))]
    table = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<end>"))
    table.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=table, eos_token="<end>", bos_token="<end>", pad_token="<end>"
    )
    fast.save_pretrained(out)
    draw = np.random.default_rng(0)
    lengths = draw.integers(model.length // 4, model.length - 1, model.documents)
    lines = (" ".join(f"w{n}" for n in draw.integers(1, model.vocab, length)) for length in lengths)
    (out / "corpus.txt").write_text("\n".join(lines), "utf-8")


def teacher(model: Model, out: Path, device: torch.device) -> None:
    """A language model of that size, its weights drawn on the device."""
    config = transformers.LlamaConfig(
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.inner,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=2,
        max_position_embeddings=model.length,
        initializer_range=SPREAD / model.hidden**0.5,  # of logits that say something
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with device:
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(out)


class Made(NamedTuple):
    """A teacher's cache, and the folder of all, which lives as long as this."""

    folder: tempfile.TemporaryDirectory[str]
    cache: Cache


@cache
def made(session: Session, name: str) -> Made:
    """The cache of a teacher of that size."""
    model, folder = MODELS[name], tempfile.TemporaryDirectory()
    out = Path(folder.name)
    words(model, out)
    teacher(model, out, session.device)
    cache = build(
        out / "corpus.txt",
        teacher=out,
        task=TASK,
        out=out / "cache",
        device=str(session.device),
        dtype="bf16",
        max_length=model.length,
        part_tokens=PART_TOKENS,
    )
    return Made(folder, cache)


def built(session: Session, name: str) -> Json:
    """Documents a second of a build, and of the bare forward over its batches."""
    folder, cache = made(session, name)
    source = load_teacher(folder.name, task=TASK, device=str(session.device), dtype="bf16")
    with tempfile.TemporaryDirectory() as scratch:
        found = throughput(cache, source, Path(scratch), session.repeats(REPEATS))
    documents, share = cache.plan.documents, found["build_over_forward"]
    return {
        "documents": documents,
        "documents_per_s": documents / found["build_seconds"],
        "forward_documents_per_s": documents / found["forward_seconds"],
        "goal": {"share": GOAL, "met": share >= GOAL},
        **found,
    }


def trained(session: Session, name: str) -> Json:
    """Seconds of a step of training and of its parts, and how often each part waits for the GPU."""
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as scratch:
        report = profile(
            made(session, name).cache,
            steps=session.repeats(STEPS),
            init_from_teacher=list(range(1, model.layers + 1, 2)),
            batch_size=model.batch,
            device=session.device.type,
            out=scratch,
            overrides=[f"training.bf16={str(session.on_gpu).lower()}"],
        ).report
        events = json.loads((Path(scratch) / "trace.json").read_text("utf-8"))["traceEvents"]
    ours = report["rows"][0]
    found = waits(events, set(ours["parts"]))
    synchronisations = sum(found["synchronisations"].values())
    share = ours["parts"][WAIT] / ours["seconds"]
    return {
        "goal": {
            "waiting": WAITING,
            "synchronisations": 0,
            "met": share <= WAITING and synchronisations == 0,
        },
        "seconds": ours["seconds"],
        "waiting_for_data_seconds": ours["parts"][WAIT],
        "parts": ours["parts"],
        "documents_per_step": report["settings"]["documents_per_step"],
        "waits": found,
    }


WAITS = {
    "cudaStreamSynchronize": "synchronisations",
    "cudaDeviceSynchronize": "synchronisations",
    "cudaEventSynchronize": "synchronisations",
    # A reason to wait if it lies on the GPU; an optimizer's count of steps does not.
    "aten::_local_scalar_dense": "scalars read",
}


def waits(events: list[Json], parts: set[str]) -> dict[str, dict[str, int]]:
    """How often the host waits in each part of the traced step, by the innermost; between them too.

    After the last part a profile waits of its own accord, which is not counted.
    """
    timed = [event for event in events if "dur" in event and event["ph"] == "X"]
    ranges = [e for e in timed if e["name"] in parts and e.get("cat") == "user_annotation"]
    last = max(e["ts"] + e["dur"] for e in ranges)
    found: dict[str, Counter[str]] = {"synchronisations": Counter(), "scalars read": Counter()}
    for event in timed:
        if event["name"] in WAITS and event["ts"] <= last:
            around = [e for e in ranges if e["ts"] <= event["ts"] <= e["ts"] + e["dur"]]
            inner = min(around, key=lambda e: e["dur"])["name"] if around else "other"
            found[WAITS[event["name"]]][inner] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


MEASURED: dict[str, Any] = {"build": built, "train": trained}
