"""What a step costs that learns from attention, against a step on soft labels: relations of MiniLM,
and the first stage of TinyBERT, which learns from scores and hidden states.

    python benchmarks/attention_steps.py [--mrpc FOLDER] [--repeats 5] [--threads 2]

A student of two layers of all-MiniLM-L6-v2 takes steps of 32 documents through `kdcache.train`,
the recipes in turn, same documents in the same order: all of 128 tokens (Python's documentation),
and with --mrpc pairs of sentences of MRPC (train.tsv of that folder), at the lengths they have.
Loss and gradient of a batch are first held against the formula in float64, from the teacher itself.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from record import save, spread

import kdcache
from kdcache.corpora.standard_library import prose
from kdcache.demo.encoder import encoder_folder
from kdcache.manifest import Json
from kdcache.models import run
from kdcache.signals import Tap
from kdcache.store import Cache
from kdcache.training.recipe import Recipe, load_recipe
from kdcache_kernels.relation_kl.reference import relation_kl as plain_relations

DOCUMENTS, STEPS, LENGTH = 32, 8, 128
STUDENT = (3, 6)  # blocks of the teacher
ALLOWED = {
    "minilmv2, 12 heads": 1.25,
    "minilmv2, 48 heads": 1.6,
    "minilm": 1.25,
    "tinybert, stage 1": 1.25,
}
SIGNALS = [
    "logits:dense",
    "attention:layers=6,dtype=fp16",
    "hidden:layers=0-3-6,positions=all",
    "scores=attention:layers=3-6",
]
KINDS = ("query", "key", "value")


def recipes() -> dict[str, Recipe]:
    """What is timed, the first of them the measure: one stage each."""

    def first(name: str, **changes: Any) -> Recipe:
        recipe = load_recipe(name).in_stages()[0]
        losses = {n: replace(loss, **changes) for n, loss in recipe.losses.items()}  # type: ignore[type-var]  # a loss is a dataclass
        return replace(recipe, losses=losses)

    found = {"kd": load_recipe("kd", ["losses.kl.temperature=2"])}
    found |= {f"minilmv2, {heads} heads": first("minilmv2", heads=heads) for heads in (12, 48)}
    layers = load_recipe("tinybert", ["stages.intermediate.losses.attention.signal=scores"])
    return found | {"minilm": first("minilm"), "tinybert, stage 1": layers.in_stages()[0]}


def texts(mrpc: Path | None) -> dict[str, list[Json]]:
    """Documents of each shape: rows of a corpus with a class."""
    words, wanted = " ".join(prose()).split(), DOCUMENTS * (STEPS + 1)
    found = {
        f"{LENGTH} tokens": [
            {"text": " ".join(words[i * LENGTH : (i + 1) * LENGTH]), "label": i % 2}
            for i in range(wanted)
        ]
    }
    if mrpc is not None:
        with (mrpc / "train.tsv").open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 : wanted + 1]
        pairs = [{"text": row[3], "text_pair": row[4], "label": int(row[0])} for row in rows]
        found["MRPC"] = pairs
    return found


def make_cache(rows: list[Json], folder: Path) -> Cache:
    """A cache with soft labels and what the last layer's relations are made of."""
    corpus, teacher = folder / "corpus.jsonl", folder / "teacher"
    corpus.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder_folder())
    model.save_pretrained(teacher)
    transformers.AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(teacher)
    return kdcache.build(
        corpus, teacher=teacher, task="text-classification", out=folder / "cache.zarr",
        signals=SIGNALS, max_length=LENGTH,
        text_columns=[name for name in rows[0] if name != "label"], progress=False,
    )  # fmt: skip


def check(cache: Cache, heads: int) -> Json:
    """How far the loss of a batch and its gradient are from float64 and the teacher itself."""
    recipe = recipes()[f"minilmv2, {heads} heads"]
    student = kdcache.make_student(cache, init_from_teacher=STUDENT).eval()
    objective = kdcache.make_objective(cache, recipe, student)
    batch = cache.batch(cache.plan.docs[:DOCUMENTS], objective.arrays)
    taps = [Tap(kind, len(STUDENT)) for kind in KINDS]
    ours = run(student, batch, taps)
    loss, _ = objective(ours, batch)
    found = torch.autograd.grad(loss, [ours[tap] for tap in taps])
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(
        cache.path.parent / "teacher"
    ).eval()
    with torch.no_grad():
        theirs = run(teacher, batch, [Tap(kind, 6) for kind in KINDS])
    lengths = batch["attention_mask"].sum(1).tolist()
    weight = torch.full((len(lengths),), 1 / len(lengths) / len(KINDS))
    exact = [ours.rows(tap).detach().double().requires_grad_() for tap in taps]
    wanted = sum(
        plain_relations(x, theirs.rows(Tap(kind, 6)).double(), None, None, lengths, heads, weight)
        for kind, x in zip(KINDS, exact, strict=True)
    )
    assert isinstance(wanted, torch.Tensor)
    gradients = torch.autograd.grad(wanted, exact)
    made = replace(ours, values=dict(zip(taps, found, strict=True)))
    errors = {
        "loss": float((loss - wanted).abs() / wanted.abs()),
        "gradient": max(
            float((made.rows(tap) - want).abs().max() / want.abs().max())
            for tap, want in zip(taps, gradients, strict=True)
        ),
    }
    assert all(error < 1e-2 for error in errors.values()), errors  # fp16 hidden states
    return errors


def steps(cache: Cache, out: Path, repeats: int) -> Json:
    """Seconds of a step by every recipe, in turn, and what they are over those of the first."""
    times: dict[str, list[float]] = {name: [] for name in recipes()}
    for turn in range(repeats):
        for number, (name, recipe) in enumerate(recipes().items()):
            metrics = kdcache.train(
                cache, recipe=recipe, out=out / f"{turn}-{number}", init_from_teacher=STUDENT,
                batch_size=DOCUMENTS, seed=turn, progress=False,
                overrides=[f"training.max_steps={STEPS}", "training.save_strategy=no"],
            ).metrics  # fmt: skip
            times[name].append(metrics["step_seconds_median"])
            print(name, f"{times[name][-1]:.3f} s", flush=True)
    (measure, base), *others = times.items()
    ratios = {name: [a / b for a, b in zip(found, base, strict=True)] for name, found in others}
    return {
        "step_seconds": {name: statistics.median(found) for name, found in times.items()},
        f"over_{measure}": {name: spread(found) for name, found in ratios.items()},
        "goals": _goals({name: statistics.median(found) for name, found in ratios.items()}),
        "all": times,
    }


def _goals(ratios: Mapping[str, float]) -> list[Json]:
    return [
        {"step": name, "value": ratios[name], "bound": bound, "met": ratios[name] <= bound}
        for name, bound in ALLOWED.items()
    ]


def measure(rows: list[Json], repeats: int) -> Json:
    """One shape: the answer, then the times."""
    with tempfile.TemporaryDirectory(prefix="kdcache-attention-") as scratch:
        cache = make_cache(rows, Path(scratch))
        lengths = cache.plan.per_document["doc_len"][: len(rows)]
        found = {
            "documents": len(rows),
            "tokens": {"mean": float(lengths.mean()), "longest": int(lengths.max())},
            "errors": {heads: check(cache, heads) for heads in (12, 48)},
        }
        return found | steps(cache, Path(scratch), repeats)


def main() -> None:
    """Measure every shape and write results/attention_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mrpc", type=Path, help="folder with train.tsv of MRPC")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shapes = {name: measure(rows, given.repeats) for name, rows in texts(given.mrpc).items()}
    figures = {"repeats": given.repeats, "threads": given.threads, "shapes": shapes}
    if given.dry:
        print(json.dumps(figures, indent=1))
    else:
        save("attention_steps", figures)


if __name__ == "__main__":
    main()
