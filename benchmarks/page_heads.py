"""The table of what a fused head moves and multiplies, part by part, made of the sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from page_parts import Row
from page_rows import short

from kdcache.bench.head_parts import HeadShape, Part, head_parts
from kdcache.bench.limits import CARDS, floor
from kdcache_kernels._linear import chunk_rows

ROWS, WIDTH, K = 8192, 768, 64
VOCABULARIES = (30522, 128256)
CARD = CARDS["H100"]
OPS = ("linear_topk_kl", "linear_kl")
OF_BOTH = ("logits", "dX", "dW", "db")
"""Parts that the two ops have alike."""


def parts_head() -> Row:
    columns = [f"V={v}: {what}" for v in VOCABULARIES for what in ("GFLOP", "GB", "ms at least")]
    return "part of a head", *columns


def _parts(v: int) -> dict[str, Part]:
    """Of both ops, each under its name where they differ."""
    dtype = torch.bfloat16
    stored = HeadShape(
        rows=ROWS,
        classes=v,
        width=WIDTH,
        item=dtype.itemsize,
        chunk=chunk_rows(ROWS, v, dtype, torch.device("cuda"), 0),
        k=K,
    )
    of = dict(zip(OPS, (stored, replace(stored, k=0, teacher_width=WIDTH)), strict=True))
    found = {
        name if name in OF_BOTH else f"{name} of `{op}`": part
        for op, head in of.items()
        for name, part in head_parts(head).items()
    }
    return {name: found[name] for name in sorted(found, key=lambda name: name in OF_BOTH[1:])}


def parts_rows() -> Iterator[Row]:
    by_size = [_parts(v) for v in VOCABULARIES]
    for name in by_size[0]:
        yield name, *(cell for parts in by_size for cell in _cells(parts[name]))


def _cells(part: Part) -> Row:
    least = floor({"dtype": "bf16", **asdict(part)}, CARD)["seconds"]
    flops = short(part.flops / 1e9) if part.flops else ""
    return flops, short(part.bytes / 1e9), short(1e3 * least)
