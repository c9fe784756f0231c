"""What a student loses by a smaller codec: the same student from every codec, over several seeds.

    python benchmarks/codec_quality.py masked-lm --wikitext wikitext2 --teacher minilm-mlm
    python benchmarks/codec_quality.py classes

Order, seeds, student and recipe are the same; only what the cache kept of the teacher differs. All
students are held to what `logits:dense` gives at T=1, where every codec serves: from soft labels
alone, and the masked language model with its recipe's hard labels too.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from record import save, spread

from kdcache.building.builder import build
from kdcache.demo.docstrings import split
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.sentences import unlabelled, write
from kdcache.evaluation.evaluator import evaluate
from kdcache.progress import quiet
from kdcache.store import Cache
from kdcache.teaching import teach
from kdcache.training.train import train

FULL = "logits:dense"
DRAWN = "logits:topk-small,k=64,draws=16"
MASKED_LM = (FULL, "logits:topk,k=64", "logits:topk-small,k=64", DRAWN, "logits:sampled,n=50")
WITH_HARD = (FULL, "logits:topk-small,k=64", DRAWN)
CLASSES = (FULL, "logits:topk,k=8", "logits:topk-small,k=8", "logits:sampled,n=50")
DOCUMENTS = 1000  # of wikitext
LABELS = 800  # of docstrings
EVERY = ["losses.kl.temperature=1.0", "training.save_strategy=no"]
SOFT_ALONE = ["losses.hard.weight=0"]
Runs = dict[str, list[dict[str, float]]]


def masked_lm(data: Path, teacher: Path, out: Path, seeds: int) -> dict[str, Any]:
    """Students of half the teacher's layers; cross-entropy of masked tokens of the test set."""
    soft: Runs = {}
    hard: Runs = {}
    bytes_per_row = {}
    for signal in MASKED_LM:
        cache = build(
            data / "valid.txt", teacher=teacher, task="masked-lm", out=out / "cache.zarr",
            signals=[signal], limit=DOCUMENTS,
        )  # fmt: skip
        size = sum(size for name, size in cache.bytes.items() if name.startswith("logits/"))
        bytes_per_row[signal] = size / cache.plan.selected
        for seed in range(seeds):
            note(soft, signal, _masked_student(cache, signal, data, out, seed, SOFT_ALONE))
            if signal in WITH_HARD:
                note(hard, signal, _masked_student(cache, signal, data, out, seed, []))
        shutil.rmtree(cache.path)
    return {
        "documents": cache.plan.documents,
        "bytes_per_row": bytes_per_row,
        "test_loss": against_full(soft, "test_loss"),
        "test_loss_with_hard_labels": against_full(hard, "test_loss"),
        "runs": soft,
        "runs_with_hard_labels": hard,
    }


def _masked_student(
    cache: Cache, signal: str, data: Path, out: Path, seed: int, changes: list[str]
) -> dict[str, float]:
    tail = ["losses.kl.tail=drawn"] if signal == DRAWN else []
    train(
        cache, recipe="mlm-kd", out=out / "student", init_from_teacher=(2, 4, 6),
        overrides=[
            *EVERY, *changes, *tail, "training.num_train_epochs=2",
            "training.learning_rate=2e-4", f"training.seed={seed}",
        ],
    )  # fmt: skip
    perplexity = evaluate(out / "student", data / "test.txt", limit=100)["perplexity"]
    shutil.rmtree(out / "student")
    return {"seed": seed, "test_loss": math.log(perplexity)}


def classes(out: Path, seeds: int) -> dict[str, Any]:
    """Students of a teacher of docstrings, of 40 classes; accuracy on its test sentences."""
    found: Runs = {}
    for seed in range(seeds):
        made = _taught(out / f"demo-{seed}", seed)
        for signal in CLASSES:
            cache = build(
                made / "train.csv", teacher=made / "teacher", task="text-classification",
                out=out / "cache.zarr", signals=[signal], max_length=64,
            )  # fmt: skip
            student = out / "student"
            train(
                cache, recipe="kd", out=student, init_from_teacher=(1, 2),
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


def _taught(out: Path, seed: int) -> Path:
    """A folder with a teacher of docstrings, taught from the few labels of train.csv; test.csv."""
    out.mkdir()
    learnt, test = split(seed)
    write(out / "train.csv", unlabelled(learnt, LABELS, seed))
    write(out / "test.csv", test)
    teach(
        encoder_folder(), out / "train.csv", out=out / "teacher", seed=seed, epochs=3,
        learning_rates=1.5e-4, max_length=64, progress=quiet,
    )  # fmt: skip
    return out


def note(found: Runs, signal: str, run: dict[str, float]) -> None:
    """Keep and print one run."""
    found.setdefault(signal, []).append(run)
    print(signal, run, flush=True)


def against_full(found: Runs, figure: str) -> dict[str, Any]:
    """Each codec's figure, and how far it is from that of the full logits, seed by seed."""
    full = [run[figure] for run in found[FULL]]
    rows = {}
    for signal, runs in found.items():
        values = [run[figure] for run in runs]
        apart = [value - base for value, base in zip(values, full, strict=True)]
        rows[signal] = {**spread(values), "minus_full": apart}
    return rows


def main() -> None:
    """Run one of both and write results/codec_quality_TASK.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["masked-lm", "classes"])
    parser.add_argument("--wikitext", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    if args.task == "classes":
        save("codec_quality_classes", classes(args.out, args.seeds))
        return
    if args.wikitext is None or args.teacher is None:
        parser.error("masked-lm needs --wikitext and --teacher")
    found = masked_lm(args.wikitext, args.teacher, args.out, args.seeds)
    save("codec_quality_masked_lm", found)


if __name__ == "__main__":
    main()
