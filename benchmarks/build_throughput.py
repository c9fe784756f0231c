"""Build against the bare teacher forward over the same batches.

    python benchmarks/build_throughput.py --sst2 sst2 --sst2-teacher minilm-sst2 \
        --wikitext wikitext2 --mlm-teacher minilm-mlm
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import save

from kdcache.building import filling
from kdcache.building.builder import build
from kdcache.models import load_teacher, run
from kdcache.plans.batch import length_batches
from kdcache.progress import quiet
from kdcache.signals import LOGITS, Tap
from kdcache.store import Cache, Writer, open_cache

BATCH_TOKENS = 8192


def bare(cache: Cache, teacher: Any, hidden: bool) -> float:
    """Seconds of the teacher's forward alone over the batches of a build."""
    task, plan = cache.plan.config.task, cache.plan
    taps = [LOGITS, *([Tap("hidden")] if hidden else [])]
    started = time.perf_counter()
    for part in range(plan.parts):
        for docs in length_batches(plan, plan.part_docs(part), BATCH_TOKENS):
            with torch.inference_mode():
                run(teacher.model, cache.batch(docs, []).to(teacher.device), taps, task=task)
    if teacher.device.type == "cuda":
        torch.cuda.synchronize(teacher.device)
    return time.perf_counter() - started


def fill(source: Path, target: Path, teacher: Any) -> float:
    """Seconds of a build from an empty cache: forward, encoding, writing and committing."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    started = time.perf_counter()
    filling.fill(Writer(target), teacher, BATCH_TOKENS, quiet)
    return time.perf_counter() - started


def empty_copy(cache: Cache, path: Path) -> Path:
    """The cache without the teacher's outputs."""
    shutil.copytree(cache.path, path)
    for part in path.glob("commits/0*"):
        shutil.rmtree(part)
    shutil.rmtree(path / "complete")
    for name in cache.layouts:
        shutil.rmtree(path / name / "c")
    return path


def throughput(cache: Cache, teacher: Any, out: Path, repeats: int) -> dict[str, Any]:
    """Interleaved repeats; the answer of the last build is checked against the first."""
    hidden = "hidden" in cache.signals
    source = empty_copy(cache, out / "empty.zarr")
    forward, whole = [], []
    for _ in range(repeats):
        forward.append(bare(cache, teacher, hidden))
        whole.append(fill(source, out / "again.zarr", teacher))
    again = open_cache(out / "again.zarr")
    for name in cache.layouts:
        docs = cache.plan.docs
        assert np.array_equal(cache.read(name, docs), again.read(name, docs)), name
    shutil.rmtree(source)
    ratios = [f / w for f, w in zip(forward, whole, strict=True)]
    return {
        "tokens": cache.plan.tokens,
        "signals": {name: signal.to_json() for name, signal in cache.signals.items()},
        "forward_seconds": statistics.median(forward),
        "build_seconds": statistics.median(whole),
        "build_tokens_per_s": cache.plan.tokens / statistics.median(whole),
        "build_over_forward": statistics.median(ratios),
        "ratios": ratios,
    }


def main() -> None:
    """Run and write results/build_throughput.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("sst2", "sst2-teacher", "wikitext", "mlm-teacher"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    figures: dict[str, Any] = {"batch_tokens": BATCH_TOKENS}
    cases = {
        "sst2": ("text-classification", args.sst2 / "train.tsv", args.sst2_teacher, 2400,
                 ["logits:dense", "hidden:layers=2-4-6,positions=cls,dtype=int8"]),
        "masked_lm": ("masked-lm", args.wikitext / "valid.txt", args.mlm_teacher, 480,
                      ["logits:topk,k=64"]),
    }  # fmt: skip
    for name, (task, data, folder, limit, signals) in cases.items():
        out = args.out / name
        cache = build(
            data, teacher=folder, task=task, out=out / "first.zarr", signals=signals, limit=limit,
            part_tokens=8192, batch_tokens=BATCH_TOKENS,
        )  # fmt: skip
        figures[name] = throughput(cache, load_teacher(folder, task=task), out, args.repeats)
        print(name, figures[name], flush=True)
    save("build_throughput", figures)


if __name__ == "__main__":
    main()
