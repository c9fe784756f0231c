"""Build against the bare teacher forward over the same batches, and memory at two corpus sizes.

    python benchmarks/build_throughput.py --sst2 sst2 --sst2-teacher minilm-sst2 \
        --wikitext wikitext2 --mlm-teacher minilm-mlm
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import save

from kdcache import builder
from kdcache.builder import build
from kdcache.capture import length_batches
from kdcache.models import load_teacher, run_model
from kdcache.progress import quiet
from kdcache.store import Cache, open_cache

BATCH_TOKENS = 8192


def bare(cache: Cache, teacher: Any, hidden: bool) -> float:
    """Seconds of the teacher's forward alone over the batches of a build."""
    task, plan = cache.plan.config.task, cache.plan
    started = time.perf_counter()
    for part in range(plan.parts):
        for docs in length_batches(plan, plan.part_docs(part), BATCH_TOKENS):
            with torch.inference_mode():
                run_model(teacher.model, task, cache.batch(docs, []), hidden=hidden)
    return time.perf_counter() - started


def fill(source: Path, target: Path, teacher: Any) -> float:
    """Seconds of a build from an empty cache: forward, encoding, writing and committing."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    started = time.perf_counter()
    builder._fill(target, teacher, BATCH_TOKENS, quiet)
    return time.perf_counter() - started


def empty_copy(cache: Cache, path: Path) -> Path:
    """The cache without what the teacher said."""
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


MEMORY = """
import json, sys
from kdcache.builder import build
from kdcache.memory import peak_rss_bytes
from kdcache.trainer import train
what, data, teacher, out, limit = sys.argv[1:]
if what == "build":
    build(data, teacher=teacher, task="text-classification", out=out, limit=int(limit),
          signals=["logits:dense", "hidden:layers=3-6,positions=cls"], part_tokens=16384)
else:
    train(out, recipe="kd", out=out + ".student", init_from_teacher=(3, 6),
          overrides=["training.max_steps=60", "training.save_strategy=no"])
print(json.dumps(peak_rss_bytes()))
"""


def memory(data: Path, teacher: Path, out: Path, sizes: tuple[int, ...]) -> list[dict[str, int]]:
    """Peak resident bytes of a build and of training, each in a process of its own."""
    rows = []
    for limit in sizes:
        row = {"documents": limit}
        for what in ("build", "train"):
            command = [sys.executable, "-c", MEMORY, what, str(data), str(teacher)]
            command += [str(out / f"memory-{limit}.zarr"), str(limit)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row[f"{what}_peak_bytes"] = json.loads(done.stdout.splitlines()[-1])
        print(row, flush=True)
        rows.append(row)
    return rows


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
    data = args.sst2 / "train.tsv"
    figures["memory"] = memory(data, args.sst2_teacher, args.out, (8_000, 32_000))
    save("build_throughput", figures)


if __name__ == "__main__":
    main()
