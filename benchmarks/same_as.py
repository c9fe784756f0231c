"""Caches, losses and students of this checkout against those of another commit, bit for bit.

    python benchmarks/same_as.py HEAD~10
    python benchmarks/same_as.py v0.1 --json

Both build the same caches of a small classifier and two small language models and train students
from them, each in a process of its own that knows the public interface alone: the other commit from
a git worktree, which is removed in the end. Compared are the SHA-256 of every object of the caches,
the losses of every step and the final weights. Exits 1 if anything differs. Some two minutes on two
quiet cores: each side runs once before it counts, as Numba's kernels differ in last bits between
the process that compiles them and those that find them compiled.

What differs on purpose, such as a format of caches or the version in the manifest, differs here
too: the table says which objects, and a person judges.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
CLASSES = ["email", "json", "logging"]
DOCUMENTS, STEPS, BATCH = 96, 6, 16
SIZES = {"max_length": 32, "part_tokens": 1024, "batch_tokens": 512}
NAMED = 3
"""Differences that the table names."""

BUILDS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "classes": (
        "text-classification",
        ["logits:dense", "hidden:layers=0-1-2-3-4,positions=cls,dtype=int8"],
        {},
    ),
    "masked": (
        "masked-lm",
        ["logits:topk,k=16", "hidden:layers=2-4,positions=masked,dtype=int4"],
        {"views": 2},
    ),
    "causal": (
        "causal-lm",
        ["logits:topk-small,k=16,draws=4", "hidden:layers=4,positions=all,fraction=0.5"],
        {},
    ),
}
"""By name: task, signals, options of the plan."""

RUNS: dict[str, tuple[str, str, list[str]]] = {
    "finetune": ("classes", "finetune", []),
    "kd": ("classes", "kd", ["losses.hard.weight=0.5"]),
    "pkd-skip": ("classes", "pkd-skip", []),
    "pkd-last": ("classes", "pkd-last", []),
    "kd-mse": ("classes", "kd-mse", []),
    "hidden": ("classes", "hidden", ["losses.hidden.positions=cls"]),
    "mlm-kd": ("masked", "mlm-kd", []),
    "mlm-kd and states": (
        "masked",
        "mlm-kd",
        ["losses.hidden.weight=1", "losses.hidden.layer_map=1:2,2:4"],
    ),
    "causal-kd": ("causal", "causal-kd", ["losses.kl.tail=drawn"]),
}
"""By name: cache, recipe, overrides. Every student has the teacher's first two layers."""


def texts() -> list[tuple[str, str]]:
    """Docstrings of three packages of the standard library, each with its package."""
    found: list[tuple[str, str]] = []
    for package in CLASSES:
        own = import_module(package)
        names = [package, *(f"{package}.{m.name}" for m in pkgutil.iter_modules(own.__path__))]
        members = [member for name in names for member in vars(import_module(name)).values()]
        docs = [inspect.getdoc(member) for member in members if callable(member)]
        found += [(" ".join(text.split()), package) for text in dict.fromkeys(filter(None, docs))]
    step = max(1, len(found) // DOCUMENTS)
    return found[::step][:DOCUMENTS]


def write_inputs(folder: Path) -> None:
    """Corpora and teachers, the same files for both."""
    import csv

    documents = texts()
    with (folder / "classes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *documents])
    (folder / "texts.txt").write_text("\n".join(text for text, _ in documents), "utf-8")
    words = sorted({word for text, _ in documents for word in text.lower().split()})
    for task in {build[0] for build in BUILDS.values()}:
        _write_teacher(folder / task, task, words[::2])


def _write_teacher(folder: Path, task: str, words: list[str]) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = sorted({letter for word in words for letter in word})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    listed = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    ids = {token: number for number, token in enumerate(listed)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", **names
    ).save_pretrained(folder)
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    _model(task, len(ids)).save_pretrained(folder)


def _model(task: str, vocabulary: int) -> Any:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.2}
    if task == "causal-lm":
        gpt = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
        gpt |= {"bos_token_id": 2, "eos_token_id": 3}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **gpt))
    bert = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    bert |= {"intermediate_size": 64, "max_position_embeddings": 64}
    if task == "masked-lm":
        return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, **bert))
    labels = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {c: i for i, c in enumerate(CLASSES)},
    }
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**sizes, **bert, **labels)
    )


def worker(inputs: Path, out: Path, steps: int) -> None:
    """Build and train with the kdcache that is imported; print a table of digests as JSON."""
    import kdcache

    answers, sys.stdout = sys.stdout, sys.stderr
    found: dict[str, dict[str, str]] = {}
    for name, (task, signals, options) in BUILDS.items():
        file = "classes.csv" if task == "text-classification" else "texts.txt"
        kdcache.build(
            str(inputs / file),
            teacher=str(inputs / task),
            task=task,
            out=str(out / name),
            signals=signals,
            **SIZES,
            **options,
        )
        found[f"cache {name}"] = objects(out / name)
    for name, (cache, recipe, overrides) in RUNS.items():
        training = {"max_steps": steps, "per_device_train_batch_size": BATCH, "logging_steps": 1}
        made = kdcache.train(
            str(out / cache),
            recipe=recipe,
            out=str(out / f"student {name}"),
            init_from_teacher=[1, 2],
            overrides=[*(f"training.{key}={value}" for key, value in training.items()), *overrides],
        )
        found[f"losses {name}"] = losses(Path(made.folder))
        found[f"student {name}"] = {"model.safetensors": weights(Path(made.folder))}
    print(json.dumps(found), file=answers, flush=True)


def objects(store: Path) -> dict[str, str]:
    """SHA-256 of every object of a cache, by its key."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def losses(student: Path) -> dict[str, str]:
    """Every figure of every step that is not a time, to its last bit."""
    log = json.loads((student / "training_log.json").read_text("utf-8"))
    return {
        f"step {entry['step']} {name}": float(value).hex()
        for entry in log
        if "loss" in entry
        for name, value in entry.items()
        if name.startswith(("loss", "grad_norm", "learning_rate"))
    }


def weights(student: Path) -> str:
    """SHA-256 of a student's weights: their names, shapes and bits."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, values in sorted(load_file(student / "model.safetensors").items()):
        digest.update(f"{name} {values.shape} {values.dtype}".encode() + values.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cache, run or student of both: how many things were compared, and which differ."""

    what: str
    compared: int
    different: list[str]


def compare(ours: dict[str, dict[str, str]], theirs: dict[str, dict[str, str]]) -> list[Row]:
    """Every row of both; what one of them lacks differs."""
    rows = []
    for what in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(what, {}), theirs.get(what, {})
        names = sorted(one.keys() | other.keys())
        different = [
            name + apart(one.get(name), other.get(name))
            for name in names
            if one.get(name) != other.get(name)
        ]
        rows.append(Row(what=what, compared=len(names), different=different))
    return rows


def apart(one: str | None, other: str | None) -> str:
    """How far a figure is from another, for people; nothing to say of digests."""
    if one is None or other is None or not one.lstrip("-").startswith("0x"):
        return ""
    mine, theirs = float.fromhex(one), float.fromhex(other)
    return f": {mine:.6g}, a share of {abs(mine - theirs) / abs(theirs):.1e} apart"


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A checkout of a commit in a folder, while the block runs."""
    git = ["git", "-C", str(ROOT), "worktree"]
    added = subprocess.run(
        [*git, "add", "--detach", str(folder), commit], capture_output=True, text=True
    )
    if added.returncode:
        raise SystemExit(f"same_as: git knows no commit {commit!r}: {added.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def run(checkout: Path, inputs: Path, out: Path, steps: int) -> dict[str, dict[str, str]]:
    """What a checkout builds and trains, by a process that imports it."""
    out.mkdir()
    roots = [checkout, checkout / "kernels", checkout / "cli"]
    ended = subprocess.run(
        [sys.executable, str(HERE), "--worker", str(inputs), str(out), str(steps)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))},
        cwd=out,
        stdout=subprocess.PIPE,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"same_as: {checkout} failed; its own words are above")
    found: dict[str, dict[str, str]] = json.loads(ended.stdout)
    return found


def both(commit: str) -> list[Row]:
    """Build and train as this checkout and as a commit, one after the other."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs = folder / "inputs"
        inputs.mkdir()
        with worktree(commit, folder / "checkout") as older:
            write_inputs(inputs)
            found = []
            for name, checkout in (("ours", ROOT), ("theirs", older)):
                run(checkout, inputs, folder / f"{name} compiled", 1)
                found.append(run(checkout, inputs, folder / name, STEPS))
        return compare(*found)


def show(rows: list[Row]) -> None:
    """A line a row, and the first names of what differs."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = "same" if not row.different else f"{len(row.different)} differ"
        print(f"{row.what:{width}}  {row.compared:5}  {verdict}")
        for name in row.different[:NAMED]:
            print(f"{'':{width}}         {name}")


def main() -> int:
    """Compare, print a table, exit 1 on a difference."""
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commit", help="the commit to compare with, as git names it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = both(args.commit)
    same = not any(row.different for row in rows)
    if args.json:
        named = ["git", "-C", str(ROOT), "rev-parse", args.commit]
        commit = subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()
        result = {"commit": commit, "same": same, "rows": [vars(row) for row in rows]}
        print(json.dumps(result, indent=1))
    else:
        show(rows)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
