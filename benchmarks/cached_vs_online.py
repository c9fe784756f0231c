"""Training from the cache against the same trainer with the teacher in the loop.

    python benchmarks/cached_vs_online.py sst2 --data sst2 --teacher minilm-sst2
    python benchmarks/cached_vs_online.py masked-lm --data wikitext2 --teacher minilm-mlm
    python benchmarks/cached_vs_online.py methods --data sst2 --teacher minilm-sst2 --limit 1280

Order, seeds, student and losses are the same; only where the soft labels come from differs. Online,
they are the teacher's exact values; in the cache they passed its codec.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from in_the_loop import train_once
from record import RESULTS, save, spread

from kdcache.building.builder import build
from kdcache.evaluation.evaluator import evaluate
from kdcache.models import Teacher, load_teacher
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from kdcache.training.wanted_signals import signals_of_teacher


def apart(cached: list[float], online: list[float]) -> float:
    """Largest relative difference of two loss curves at a logged step."""
    a, b = np.array(cached), np.array(online)
    return float((np.abs(a - b) / np.abs(b)).max())


def sst2(data: Path, teacher: Path, out: Path, seeds: int, limit: int) -> dict[str, Any]:
    """SST-2 with dense logits: curves, dev accuracy and step time, cached, online and hard."""
    task = "text-classification"
    cache = build(
        data / "train.tsv", teacher=teacher, task=task, out=out / "sst2.zarr", limit=limit
    )
    loaded = load_teacher(teacher, task=task)
    runs = []
    for seed in range(seeds):
        common = [
            f"training.seed={seed}",
            "training.save_strategy=no",
            "training.num_train_epochs=1",
        ]
        common += ["student.init_from_teacher=[3,6]"]
        kd, hard = load_recipe("kd", common), load_recipe("finetune", common)
        result: dict[str, Any] = {"seed": seed}
        for name, recipe, online in (
            ("cached", kd, None),
            ("online", kd, (loaded, None)),
            ("hard", hard, None),
        ):
            result[name] = train_once(cache, recipe, out / name, online)
            score = evaluate(out / name, data / "dev.tsv")
            result[name]["dev_accuracy"] = score["accuracy"]
        result["largest_loss_difference"] = apart(
            result["cached"]["losses"], result["online"]["losses"]
        )
        runs.append(result)
        print(
            seed,
            {
                n: (round(result[n]["dev_accuracy"], 4), round(result[n]["step_seconds"], 4))
                for n in ("cached", "online", "hard")
            },
            result["largest_loss_difference"],
            flush=True,
        )
    return {"documents": limit, "seeds": seeds, **summary(runs), "runs": runs}


def sst2_steps(data: Path, teacher: Path, out: Path, seeds: int, limit: int) -> dict[str, Any]:
    """The step times of `sst2` alone, for a quiet machine."""
    task = "text-classification"
    cache = build(
        data / "train.tsv", teacher=teacher, task=task, out=out / "sst2.zarr", limit=limit
    )
    loaded = load_teacher(teacher, task=task)
    timed = step_times(cache, loaded, out, seeds, recipe="kd", student="[3,6]", k=None)
    return {"documents": limit, **timed}


def masked_lm_steps(data: Path, teacher: Path, out: Path, seeds: int, limit: int) -> dict[str, Any]:
    """The same of masked language modelling."""
    task = "masked-lm"
    cache = build(
        data / "valid.txt", teacher=teacher, task=task, out=out / "mlm.zarr", limit=limit,
        signals=["logits:topk,k=64"],
    )  # fmt: skip
    loaded = load_teacher(teacher, task=task)
    timed = step_times(cache, loaded, out, seeds, recipe="mlm-kd", student="[2,4,6]", k=64)
    return {"documents": limit, **timed}


def step_times(
    cache: Cache,
    teacher: Teacher,
    out: Path,
    repeats: int,
    *,
    recipe: str,
    student: str,
    k: int | None,
) -> dict[str, Any]:
    """Median step of short runs, cached, online and hard in turn, and their ratios."""
    common = ["training.save_strategy=no", "training.max_steps=40"]
    common += [f"student.init_from_teacher={student}"]
    kd, hard = load_recipe(recipe, common), load_recipe("finetune", common)
    times: dict[str, list[float]] = {"cached": [], "online": [], "hard": []}
    forward, waits = [], []
    for _ in range(repeats):
        cached = train_once(cache, kd, out / "step", None)
        times["cached"].append(cached["step_seconds"])
        waits.append(cached["data_wait_share"])
        times["hard"].append(train_once(cache, hard, out / "step", None)["step_seconds"])
        online = train_once(cache, kd, out / "step", (teacher, k))
        times["online"].append(online["step_seconds"])
        forward.append(online["teacher_seconds"])
    middle = {name: statistics.median(values) for name, values in times.items()}
    student = middle["cached"]
    return {
        "repeats": repeats,
        "step_seconds": middle,
        "teacher_forward_seconds": statistics.median(forward),
        "cached_over_hard_step": student / middle["hard"],
        "online_over_cached_step": middle["online"] / student,
        "ceiling": (statistics.median(forward) + student) / student,
        "data_wait_share": waits,
        "all": times,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures to quote: differences over seeds."""
    found: dict[str, Any] = {
        "largest_loss_difference": max(run["largest_loss_difference"] for run in runs)
    }
    if "hard" in runs[0]:
        found["dev_accuracy"] = {
            name: spread([run[name]["dev_accuracy"] for run in runs])
            for name in ("cached", "online", "hard")
        }
        found["largest_accuracy_difference"] = max(
            abs(run["cached"]["dev_accuracy"] - run["online"]["dev_accuracy"]) for run in runs
        )
    return found


def masked_lm(data: Path, teacher: Path, out: Path, seeds: int, limit: int) -> dict[str, Any]:
    """Masked language modelling on WikiText-2 with 64 soft labels in 8-bit codes."""
    cache = build(
        data / "valid.txt", teacher=teacher, task="masked-lm", out=out / "mlm.zarr", limit=limit,
        signals=["logits:topk,k=64"],
    )  # fmt: skip
    loaded = load_teacher(teacher, task="masked-lm")
    runs = []
    for seed in range(seeds):
        common = [
            f"training.seed={seed}",
            "training.save_strategy=no",
            "training.num_train_epochs=2",
        ]
        common += ["student.init_from_teacher=[2,4,6]", "training.learning_rate=2e-4"]
        recipe = load_recipe("mlm-kd", common)
        result: dict[str, Any] = {"seed": seed}
        untrained = load_recipe(recipe, ["training.max_steps=1", "training.learning_rate=1e-9"])
        for name, chosen, online in (
            ("before", untrained, None),
            ("cached", recipe, None),
            ("online", recipe, (loaded, 64)),
        ):
            result[name] = train_once(cache, chosen, out / f"mlm-{name}", online)
            score = evaluate(out / f"mlm-{name}", data / "test.txt", limit=100)
            result[name]["test_perplexity"] = score["perplexity"]
        result["largest_loss_difference"] = apart(
            result["cached"]["losses"], result["online"]["losses"]
        )
        runs.append(result)
        print(
            seed,
            {n: result[n]["test_perplexity"] for n in ("before", "cached", "online")},
            result["largest_loss_difference"],
            flush=True,
        )
    names = ("before", "cached", "online")
    perplexity = {n: spread([run[n]["test_perplexity"] for run in runs]) for n in names}
    return {
        "documents": cache.plan.documents,
        "seeds": seeds,
        "fidelity": cache.fidelity,
        "bytes_per_masked_row": sum(
            size for name, size in cache.bytes.items() if name.startswith("logits/")
        )
        / cache.plan.selected,
        **summary(runs),
        "test_perplexity": perplexity,
        "runs": runs,
    }


LAST = "student.init_from_teacher=[3,6]"
METHODS = {
    "tinybert": (LAST,),
    "minilmv2": (LAST,),
    "pkd-skip": ("student.init_from_teacher=[1,2,3]",),
    "bert-emd": (LAST,),
    "ad-kd": (LAST, "losses.attribution.views=all"),
}
"""Recipes that learn from inside the teacher, and what is set of each."""
FOR = "for"
"""What `build --for` keeps."""
SHORT = {"num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1}


def methods(data: Path, teacher: Path, out: Path, seeds: int, limit: int) -> dict[str, Any]:
    """Loss curves of methods that learn from inside the teacher, in fp16 and in int8 of all that
    they read, and of the signals that `build --for` keeps for each.

    Those that the results hold of as many documents are kept: only the others run.
    """
    task = "text-classification"
    loaded = load_teacher(teacher, task=task)
    last = loaded.model.config.num_hidden_layers
    every = "-".join(map(str, range(1, last + 1)))
    caches = {
        dtype: build(
            data / "train.tsv", teacher=teacher, task=task, out=out / f"{dtype}.zarr", limit=limit,
            signals=[
                "logits:dense",
                f"hidden:layers=0-{every},positions=all,dtype={dtype}",
                f"query:layers={every},positions=all,dtype={dtype}",
                f"key:layers={every},positions=all,dtype={dtype}",
                f"value:layers={last},positions=all,dtype={dtype}",
                f"attribution:views=all,dtype={dtype}",
            ],
        )
        for dtype in ("fp16", "int8")
    }  # fmt: skip
    found = measured(limit)
    for name, chosen in METHODS.items():
        if name in found:
            continue
        recipe = load_recipe(name, chosen)
        own = [
            f"{of}training.{key}={value}" for of in recipe.prefixes for key, value in SHORT.items()
        ]
        recipe = load_recipe(recipe, own)
        online = train_once(caches["fp16"], recipe, out / "student", (loaded, None))["losses"]
        layers = len(recipe.student["init_from_teacher"])
        signals = signals_of_teacher([recipe], teacher, task, layers)
        kept = build(
            data / "train.tsv", teacher=teacher, task=task, out=out / f"{name}.zarr", limit=limit,
            signals=signals,
        )  # fmt: skip
        found[name] = {"steps": len(online), "signals": signals}
        for kind, cache in {**caches, FOR: kept}.items():
            cached = train_once(cache, recipe, out / "student", None)["losses"]
            found[name][kind] = apart(cached, online)
        print(name, found[name], flush=True)
    return {"documents": limit, "largest_loss_difference": found}


def measured(limit: int) -> dict[str, Any]:
    """Loss curves of the results, by recipe, if they are of as many documents."""
    file = RESULTS / "cached_vs_online_methods.json"
    before = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    found = before["largest_loss_difference"] if before.get("documents") == limit else {}
    return {name: one for name, one in found.items() if FOR in one}


PARTS = {
    "methods": methods,
    "sst2": sst2,
    "sst2-steps": sst2_steps,
    "masked-lm": masked_lm,
    "masked-lm-steps": masked_lm_steps,
}


def main() -> None:
    """Run one part and write results/cached_vs_online_PART.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=9600)
    parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    args = parser.parse_args()
    figures = PARTS[args.part](args.data, args.teacher, args.out, args.seeds, args.limit)
    save(f"cached_vs_online_{args.part.replace('-', '_')}", figures)


if __name__ == "__main__":
    main()
