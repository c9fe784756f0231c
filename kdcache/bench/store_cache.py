"""A cache made up of random rows, as large as asked for: what `kdcache bench store` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdcache.plans import DOCUMENT_COLUMNS, Array, Plan, PlanConfig, cut, round_up
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache
from kdcache.store.commits.writer import Writer
from kdcache.store.create import create
from kdcache.store.planned import cache_record, signal_layouts
from kdcache.tasks import Space

PART_TOKENS = 262_144
LENGTHS = (16, 241)  # tokens of a document, evenly distributed: 128 on average
SIGNALS = ("logits:topk,k=64", "hidden:layers=1,positions=cls")
SHAPE = ModelSizes(outputs=30_522, hidden=384, layers=6)


def generate(path: Path, tokens: int, seed: int = 0) -> Cache:
    """Write a cache of about `tokens` tokens at `path` and open it.

    Soft labels of 64 ids at every token (200 bytes) and one int8 [CLS] state a document.
    """
    rng = np.random.default_rng(seed)
    plan = _plan(rng, max(1, tokens * 2 // sum(LENGTHS)), seed)
    signals = parse_all(SIGNALS)
    layouts = signal_layouts(plan, signals, SHAPE)
    record = cache_record(plan, teacher=_teacher(), shape=SHAPE, signals=signals, software={})
    create(path, record, plan, layouts)
    writer = Writer(path)
    for part in range(plan.parts):
        rows = {
            layout.name: _rows(rng, (layout.part_rows, *layout.row_shape), layout.dtype)
            for layout, _ in layouts
        }
        writer.write_part(part, rows, {}, {"batch_tokens": 1, "device": "none"})
    return Cache(path)


def _plan(rng: np.random.Generator, documents: int, seed: int) -> Plan:
    lengths = rng.integers(*LENGTHS, documents)
    bounds, size = cut(lengths, PART_TOKENS)
    parts = len(bounds) - 1
    per_part = round_up(int(np.diff(bounds).max()))
    rows: dict[Space, int] = {"document": per_part, "token": size}
    per_document = {n: np.zeros(parts * per_part, dtype) for n, dtype in DOCUMENT_COLUMNS.items()}
    for part in range(parts):
        own = lengths[bounds[part] : bounds[part + 1]]
        place = slice(part * per_part, part * per_part + len(own))
        per_document["doc_len"][place] = per_document["pair_start"][place] = own
        per_document["doc_start"][place] = part * size + np.cumsum(own) - own
        per_document["doc_id"][place] = np.arange(bounds[part], bounds[part + 1])
    config = PlanConfig(
        task="causal-lm",
        label_kind="tokens",
        tokenizer={
            "name": "none", "sha256": "", "vocab_size": SHAPE.outputs, "pad_id": 0,
            "mask_id": None, "type_ids": False,
        },
        corpus={
            "source": "random", "sha256": "", "documents": documents, "text_columns": [],
            "label_column": None, "truncated": 0, "classes": None,
        },
        max_length=LENGTHS[1],
        seed=seed,
        part_tokens=PART_TOKENS,
    )  # fmt: skip
    tokens = rng.integers(0, SHAPE.outputs, parts * size).astype(np.uint16)
    return Plan(
        config=config, parts=parts, rows=rows, per_document=per_document, columns={"tokens": tokens}
    )


def _teacher() -> dict[str, Any]:
    return {
        "name": "random", "source": "", "class": "", "weights_sha256": "", "parameters": 0,
        "dtype": "float32", "attention": "", "classes": None,
        "config": {}, "implied": [], "code_sha256": None,
    }  # fmt: skip


def _rows(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return rng.random(shape, np.float32).astype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
