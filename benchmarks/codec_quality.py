"""What a student loses by a smaller codec: the same student from every codec, over several seeds.

    python benchmarks/codec_quality.py --wikitext wikitext2 --mlm-teacher minilm-mlm

Order, seeds, student and recipe are the same; only what the cache kept of the teacher differs. All
students are held to what `logits:dense` gives at T=1, where every codec serves.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from record import save, spread

from kdcache.builder import build
from kdcache.comparison import Settings, compare
from kdcache.demo import split
from kdcache.evaluator import evaluate
from kdcache.progress import quiet
from kdcache.trainer import train

FULL = "logits:dense"
MASKED_LM = (FULL, "logits:topk,k=64", "logits:topk-small,k=64", "logits:sampled,n=50")
CLASSES = (FULL, "logits:topk,k=8", "logits:topk-small,k=8", "logits:sampled,n=50")
DOCUMENTS = 1000  # of wikitext
EVERY = ["losses.kl.temperature=1.0", "training.save_strategy=no"]


def masked_lm(data: Path, teacher: Path, out: Path, seeds: int) -> dict[str, Any]:
    """Students of half the teacher's layers; cross-entropy of masked tokens of the test set."""
    found: dict[str, list[dict[str, float]]] = {}
    bytes_per_row = {}
    for signal in MASKED_LM:
        cache = build(
            data / "valid.txt", teacher=teacher, task="masked-lm", out=out / "cache.zarr",
            signals=[signal], limit=DOCUMENTS,
        )  # fmt: skip
        size = sum(size for name, size in cache.bytes.items() if name.startswith("logits/"))
        bytes_per_row[signal] = size / cache.plan.masked
        for seed in range(seeds):
            student = out / "student"
            train(
                cache, recipe="mlm-kd", out=student, init_from_teacher=(2, 4, 6),
                overrides=[
                    *EVERY, "losses.hard.weight=0", "training.num_train_epochs=2",
                    "training.learning_rate=2e-4", f"training.seed={seed}",
                ],
            )  # fmt: skip
            perplexity = evaluate(student, data / "test.txt", limit=100)["perplexity"]
            note(found, signal, {"seed": seed, "test_loss": math.log(perplexity)})
            shutil.rmtree(student)
        shutil.rmtree(cache.path)
    return {
        "documents": cache.plan.documents,
        "bytes_per_row": bytes_per_row,
        "test_loss": against_full(found, "test_loss"),
        "runs": found,
    }


def classes(out: Path, seeds: int) -> dict[str, Any]:
    """Students of the demo's teacher, of 40 classes; accuracy on its test sentences."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        made, settings = out / f"demo-{seed}", Settings(seed=seed, hard_epochs=1, soft_epochs=1)
        compare(made, *split(seed), settings, quiet)
        for signal in CLASSES:
            cache = build(
                made / "train.csv", teacher=made / "teacher", task="text-classification",
                out=out / "cache.zarr", signals=[signal], max_length=64,
            )  # fmt: skip
            student = out / "student"
            train(
                cache, recipe="kd", out=student, init_from_teacher=settings.student_layers,
                overrides=[
                    *EVERY, "training.num_train_epochs=3", "training.learning_rate=5e-4",
                    f"training.seed={seed}",
                ],
            )  # fmt: skip
            accuracy = evaluate(student, made / "test.csv", max_length=64)["accuracy"]
            note(found, signal, {"seed": seed, "accuracy": accuracy})
            shutil.rmtree(student)
            shutil.rmtree(cache.path)
    return {"accuracy": against_full(found, "accuracy"), "runs": found}


def note(found: dict[str, list[dict[str, float]]], signal: str, run: dict[str, float]) -> None:
    """Keep and print one run."""
    found.setdefault(signal, []).append(run)
    print(signal, run, flush=True)


def against_full(found: dict[str, list[dict[str, float]]], figure: str) -> dict[str, Any]:
    """Each codec's figure, and how far it is from that of the full logits, seed by seed."""
    full = [run[figure] for run in found[FULL]]
    rows = {}
    for signal, runs in found.items():
        values = [run[figure] for run in runs]
        apart = [value - base for value, base in zip(values, full, strict=True)]
        rows[signal] = {**spread(values), "minus_full": apart}
    return rows


def main() -> None:
    """Run and write results/codec_quality.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--mlm-teacher", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    figures = {
        "masked_lm": masked_lm(args.wikitext, args.mlm_teacher, args.out, args.seeds),
        "classes": classes(args.out, args.seeds),
    }
    save("codec_quality", figures)


if __name__ == "__main__":
    main()
