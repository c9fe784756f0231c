"""What `kdcache bench kernels` is asked to measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES, OPS, RIVALS
from kdcache.bench.kernels_inputs import Size
from kdcache.bench.kernels_keeping import KEEPING
from kdcache.bench.report import Json
from kdcache.errors import ConfigError, one_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ALLOCATORS = ("default", KEEPING)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What to measure. Every op meets every size and dtype it depends on.

    `rows` is of ops over a vocabulary, as many as the masked or answered tokens of a batch;
    `tokens` is of ops over hidden states, which are kept of every token.
    """

    ops: Sequence[str] = OPS
    rows: Sequence[int] = (512,)
    tokens: Sequence[int] = (4096,)
    vocab: Sequence[int] = (30522,)
    k: int = 64
    hidden: Sequence[int] = (768,)
    dtypes: Sequence[str] = ("fp32",)
    rivals: Sequence[str] = RIVALS
    repeats: int = 9
    allocators: Sequence[str] = ALLOCATORS
    cases: Sequence[Case] = field(default_factory=lambda: CASES, repr=False)

    def __post_init__(self) -> None:
        for op in self.ops:
            one_of("op", op, OPS)
        for dtype in self.dtypes:
            one_of("dtype", dtype, DTYPES)
        for rival in self.rivals:
            one_of("rival", rival, RIVALS)
        for allocator in self.allocators:
            one_of("allocator", allocator, ALLOCATORS)
        lists = (self.rows, self.tokens, self.vocab, self.hidden)
        sizes = (self.k, self.repeats, *itertools.chain(*lists))
        if min(sizes) < 1 or not all((*lists, self.dtypes, self.ops)):
            raise ConfigError("rows, vocab, k, hidden and repeats must be at least 1")
        if self.k >= min(self.vocab):  # the plain formulas have no case for an empty tail
            raise ConfigError(f"k must be below the vocabulary, {min(self.vocab)}; got {self.k}")

    def work(self) -> Iterator[tuple[Case, Size, str]]:
        """Every case with every size that it depends on, and every dtype."""
        for case in (case for case in self.cases if case.op in self.ops):
            vocabs = self.vocab if "vocab" in case.sizes else self.vocab[:1]
            widths = self.hidden if "hidden" in case.sizes else self.hidden[:1]
            dtypes = [dtype for dtype in self.dtypes if DTYPES[dtype] in case.dtypes]
            counts = self.rows if "vocab" in case.sizes else self.tokens
            for dtype, rows, vocab, hidden in itertools.product(dtypes, counts, vocabs, widths):
                yield case, Size(rows=rows, vocab=vocab, k=self.k, hidden=hidden), dtype


def default_grid(device: torch.device, **changes: Any) -> Grid:
    """The grid for a device, with the changes that are not None; `rows` are those of all ops."""
    on_gpu: Json = {"rows": (8192,), "tokens": (8192,), "vocab": (30522, 128256)}
    on_gpu |= {"dtypes": ("bf16",), "repeats": 25, "allocators": ("default",)}
    given = {name: value for name, value in changes.items() if value is not None}
    if "rows" in given:
        given["tokens"] = given["rows"]
    return Grid(**{**(on_gpu if device.type == "cuda" else {}), **given})
