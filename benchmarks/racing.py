"""Writers that race for one cache and are killed at random: no teacher, only the store."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from kdcache.plans import DOCUMENT_COLUMNS, Array, Plan, PlanConfig
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache, Claims, Place, Writer, cache_record, create, locate, signal_layouts
from kdcache.store.io.durable_writes import writing

SHAPE = ModelSizes(outputs=1000, hidden=64, layers=2)
SIGNALS = ("logits:topk,k=8", "hidden:layers=1-2,positions=all,dtype=int8")
TOKENS, DOCUMENTS = 1024, 128  # of a part
TEACHER = {
    "name": "none",
    "source": "none",
    "class": "none",
    "weights_sha256": "0" * 64,
    "parameters": 0,
    "dtype": "fp32",
    "attention": "none",
    "classes": None,
}


def synthetic_plan(parts: int) -> Plan:
    """A causal-lm plan of documents of eight tokens."""
    length = TOKENS // DOCUMENTS
    row = np.arange(parts * DOCUMENTS)
    per_document = {name: np.zeros(len(row), dtype) for name, dtype in DOCUMENT_COLUMNS.items()}
    per_document["doc_len"][:] = per_document["pair_start"][:] = length
    per_document["doc_start"][:] = row * length
    per_document["doc_id"][:] = row
    tokens = np.random.default_rng(0).integers(0, 1000, parts * TOKENS).astype(np.uint16)
    tokenizer = {"name": "n", "sha256": "0", "vocab_size": 1000, "pad_id": 0, "type_ids": False}
    corpus = {
        "text_columns": ["text"],
        "label_column": None,
        "documents": len(row),
        "truncated": 0,
        "sha256": "0",
    }
    return Plan(
        config=PlanConfig(
            task="causal-lm",
            label_kind="tokens",
            tokenizer=tokenizer,
            corpus=corpus,
            max_length=length,
            seed=0,
            part_tokens=TOKENS,
        ),
        parts=parts,
        rows={"document": DOCUMENTS, "token": TOKENS},
        per_document=per_document,
        columns={"tokens": tokens},
    )


def make_cache(place: Place, parts: int) -> Plan:
    """An empty cache at a folder or URL."""
    plan, signals = synthetic_plan(parts), parse_all(SIGNALS)
    software = {"kdcache": "benchmark"}
    record = cache_record(plan, teacher=TEACHER, shape=SHAPE, signals=signals, software=software)
    create(locate(place), record, plan, signal_layouts(plan, signals, SHAPE))
    return plan


def _make(place: Place, parts: int) -> None:
    make_cache(place, parts)


def rows(cache: Cache, part: int, flavour: int) -> dict[str, Array]:
    """What a writer of a flavour says of a part: the same whenever it is asked."""
    draw = np.random.default_rng((part, flavour))
    found: dict[str, Array] = {}
    for name, layout in cache.layouts.items():
        shape = (layout.part_rows, *layout.row_shape)
        if layout.dtype.kind == "f":
            found[name] = draw.normal(size=shape).astype(layout.dtype)
        else:
            found[name] = draw.integers(0, 100, shape).astype(layout.dtype)
    return found


def fidelity(flavour: int) -> dict[str, Any]:
    """Sums that `summarise` can work with."""
    logits = {"rows": 1.0, "same": 1.0, "kept": 1.0}
    logits |= {f"{n}_{s}": float(flavour) for n in ("kl", "full_kl") for s in ("sum", "max")}
    layers = {f"L{i}_{what}": 1.0 for i in (1, 2) for what in ("error", "norm")}
    return {"logits": logits, "hidden": {"rows": 1.0, **layers}}


def write_all(place: Place, flavour: int) -> None:
    """Work as a builder does, until the cache is finished."""
    writer = Writer(locate(place))
    writer.republish()
    claims = Claims(writer.staging / "claims")
    left = writer.cache.missing
    with writing(writer.path):
        while (part := claims.take(left)) is not None:
            values = rows(writer.cache, part, flavour)
            forward = {"batch_tokens": 1, "device": "cpu"}
            writer.write_part(part, values, fidelity(flavour), forward)
            left = writer.cache.missing
        claims.drop()
    writer.republish()
    writer.finalize()


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, run in a fork: a process that has used an object store may not fork."""
    receive, send = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=lambda: send.send(work(*arguments)))
    child.start()
    send.close()
    result = receive.recv()
    child.join()
    return result


def start(place: Place, flavour: int) -> int:
    """A writer in a process of its own; it ends with 0 if the cache is finished."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        write_all(place, flavour)
        code = 0
    except BaseException:  # whatever it is, the parent counts it as a failure
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


class Race:
    """Counts of a race: kills, rounds, and what must be 0."""

    def __init__(self, writers: int, seed: int) -> None:
        self.writers, self.draw = writers, random.Random(seed)
        self.kills = self.rounds = self.parts = self.failures = 0
        self.took: list[float] = []

    def run(self, place: Place, parts: int, kills: int, flavours: bool, longest: float) -> None:
        """One cache from nothing to finished, with up to `kills` kills on the way.

        `flavours`: whether the writers say different things, as rounding on unlike machines does.
        A kill comes up to `longest` seconds after the one before.
        """
        apart(_make, place, parts)
        alive = {start(place, n * flavours): n * flavours for n in range(self.writers)}
        self.rounds, self.parts = self.rounds + 1, self.parts + parts
        while alive:
            time.sleep(self.draw.uniform(0, longest))
            self._reap(alive)
            if alive and kills > 0:
                victim = self.draw.choice(sorted(alive))
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                flavour = alive.pop(victim)
                alive[start(place, flavour)] = flavour
                self.kills, kills = self.kills + 1, kills - 1

    def _reap(self, alive: dict[int, int]) -> None:
        for child in list(alive):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                del alive[child]
                self.failures += os.waitstatus_to_exitcode(status) != 0


def mixed_parts(place: Place, writers: int, flavours: bool) -> int:
    """Parts that are not, in every byte, what one writer wrote."""
    cache = Cache(locate(place))
    cache.require_complete()
    written = range(writers if flavours else 1)
    return sum(not any(_is_of(cache, part, n) for n in written) for part in range(cache.plan.parts))


def _is_of(cache: Cache, part: int, flavour: int) -> bool:
    docs = cache.plan.part_docs(part)
    return all(
        np.array_equal(cache.read(name, docs), values)
        for name, values in rows(cache, part, flavour).items()
    )


def contents(place: Place) -> dict[str, bytes]:
    """Every object of a store by key."""
    root = locate(place)
    below: Callable[[], Any] = getattr(root, "below", lambda: _files(root))
    return {key: (root / key).read_bytes() for key in below()}


def _files(root: Any) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
