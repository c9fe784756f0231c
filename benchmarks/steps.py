"""What a training step costs: the cache, and a fused head against a plain one, apart.

    python benchmarks/steps.py [--shape NAME] [--repeats 7]

Three shapes, by how much of a step is the output layer: a classifier of BERT-small's size, and
causal models of the widths of a 135M and a 500M model, two layers deep, whose head then is most of
the step.

- cache: the step that `kdcache.train` takes from a cache of the teacher's soft labels, against the
  same trainer fine-tuning on labels alone, same student, order and batches;
- head: a step (forward, loss, backward, AdamW) with each way to the loss, all else equal, in turn:
  cross-entropy and top-64 soft labels, on logits that are held and through a fused head. All under
  the default allocator and under one that keeps its pages.

Liger's fused linear cross-entropy is left out: its kernels are Triton's and run on a GPU only.
Weights are random, which steps do not notice; texts are Python's documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from causal_teacher import make_tokenizer
from record import save
from torch import Tensor

import kdcache
from kdcache.bench import rivals_lean as lean
from kdcache.bench.kernels_case import needs_torch_2_13
from kdcache.bench.kernels_inputs import Size, draw_linear
from kdcache.bench.kernels_keeping import ENVIRONMENT
from kdcache.bench.timing import Call, Contender, Stopwatch, interleave
from kdcache.corpora.standard_library import docstrings, prose
from kdcache.losses import hard_loss
from kdcache.manifest import Json
from kdcache.signals import Head
from kdcache_kernels import linear_topk_kl, topk_kl

CPU = torch.device("cpu")
K = 64
STEPS = 8
PLAIN = "cross-entropy"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A student, and the documents of one step: `documents` of `length` tokens."""

    task: str
    config: dict[str, Any]
    documents: int
    length: int

    def made(self, **changes: Any) -> Any:
        """The configuration, with some of it changed."""
        kind = "bert" if self.task == "text-classification" else "llama"
        return transformers.AutoConfig.for_model(kind, **{**self.config, **changes})


def _causal(vocabulary: int, width: int, inner: int, heads: int, shared: int) -> Shape:
    config = {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": shared, "num_hidden_layers": 2,
        "tie_word_embeddings": True, "max_position_embeddings": 256,
    }  # fmt: skip
    return Shape(task="causal-lm", config=config, documents=4, length=128)


SHAPES = {
    "BERT-small classifier": Shape(
        task="text-classification",
        config={
            "vocab_size": 30522, "hidden_size": 512, "intermediate_size": 2048,
            "num_attention_heads": 8, "num_hidden_layers": 4, "num_labels": 8,
        },
        documents=32,
        length=64,
    ),
    "135M causal": _causal(49152, 576, 1536, 9, 3),
    "500M causal": _causal(151936, 896, 4864, 14, 2),
}  # fmt: skip
TEACHER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
TEACHER |= {"num_attention_heads": 2, "num_key_value_heads": 2}


def cache_cost(shape: Shape, out: Path, repeats: int) -> Json:
    """Seconds of a trainer's step from the cache and on labels, in turn, and their ratio."""
    texts, teacher = _texts(shape, out), out / "teacher"
    classes = shape.task == "text-classification"
    tokenizer = make_tokenizer([text for text, _ in texts], teacher)
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0, "eos_token_id": 0}
    _model(shape, shape.made(**TEACHER, **tokens)).save_pretrained(teacher)
    shape.made(**tokens).save_pretrained(out / "student")
    table = "".join(f"{json.dumps({'text': t, 'label': c} if classes else {'text': t})}\n"
                    for t, c in texts)  # fmt: skip
    (out / "corpus.jsonl").write_text(table, encoding="utf-8")
    cache = kdcache.build(
        out / "corpus.jsonl", teacher=teacher, task=shape.task, out=out / "cache.zarr",
        signals=["logits:dense" if classes else f"logits:topk,k={K}"],
        max_length=shape.length, progress=False,
    )  # fmt: skip
    times: dict[str, list[float]] = {"finetune": [], "kd" if classes else "causal-kd": []}
    waits = []
    for turn in range(repeats):
        for recipe, found in times.items():
            metrics = kdcache.train(
                cache, recipe=recipe, out=out / f"{recipe}-{turn}", config=out / "student",
                batch_size=shape.documents, seed=turn, progress=False,
                overrides=[f"training.max_steps={STEPS}", "training.save_strategy=no"],
            ).metrics  # fmt: skip
            found.append(metrics["step_seconds_median"])
            waits.append(metrics["data_wait_share"])
    hard, soft = (statistics.median(found) for found in times.values())
    return {
        "step_seconds": {"labels": hard, "cache": soft},
        "cache_over_labels": statistics.median(s / h for h, s in zip(*times.values(), strict=True)),
        "data_wait_share": statistics.median(waits),
        "all": times,
    }


def _texts(shape: Shape, out: Path) -> list[tuple[str, str]]:
    """Documents with a class each: long enough for every step to be full."""
    wanted = shape.documents * (STEPS + 1)
    if shape.task == "text-classification":
        names = sorted({found.package for found in docstrings()})[:8]
        rows = [(d.text, d.package) for d in docstrings() if d.package in names]
        return rows[: max(wanted, len(rows) // 2)]
    words = " ".join(prose()).split()
    size = shape.length  # words: more tokens than are kept
    return [(" ".join(words[i * size : (i + 1) * size]), "") for i in range(wanted)]


def _model(shape: Shape, config: Any) -> Any:
    torch.manual_seed(0)
    if shape.task == "text-classification":
        return transformers.AutoModelForSequenceClassification.from_config(config)
    return transformers.AutoModelForCausalLM.from_config(config)


def losses(x: dict[str, Tensor]) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Ways from hidden states [N, H] and a head [V, H] to the loss of a step, by name."""
    labels = x["labels"]
    soft: dict[str, Any] = {"tail_logmass": x["tail_logmass"]}
    yield PLAIN, lambda h, w: F.cross_entropy(F.linear(h, w), labels)
    if needs_torch_2_13(CPU) is None:
        yield "F.linear_cross_entropy", lambda h, w: F.linear_cross_entropy(h, w, labels)
    yield (
        "cross-entropy, kdcache's fused head",
        lambda h, w: hard_loss(Head(hidden=h, weight=w, bias=None), labels),
    )
    yield f"top-{K}, eager", lambda h, w: lean.bucket({**x, "logits": F.linear(h, w)})
    yield (
        f"top-{K}, eager, own gradient",
        lambda h, w: lean.bucket_by_hand({**x, "logits": F.linear(h, w)}),
    )
    yield (
        f"top-{K}, kdcache's kernel on held logits",
        lambda h, w: topk_kl(F.linear(h, w), x["ids"], x["logprobs"], **soft),
    )
    yield (
        f"top-{K}, kdcache's fused head",
        lambda h, w: linear_topk_kl(h, w, None, x["ids"], x["logprobs"], **soft),
    )


def head_steps(shape: Shape, repeats: int) -> Json:
    """Seconds and peak bytes of a step with each way to the loss, in turn; a causal shape."""
    model = _model(shape, shape.made())
    rows = shape.documents * shape.length
    size = Size(rows=rows, vocab=model.config.vocab_size, k=K, hidden=model.config.hidden_size)
    x = draw_linear(size, torch.float32, CPU, False, temperature=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(size.vocab, (shape.documents, shape.length))
    head = model.get_output_embeddings().weight

    def contender(loss: Callable[[Tensor, Tensor], Tensor]) -> Contender:
        def step() -> None:
            hidden = model.base_model(input_ids=ids).last_hidden_state
            loss(hidden.flatten(0, 1), head).backward()
            optimizer.step()

        def prepare() -> Call:
            optimizer.zero_grad(set_to_none=True)
            return step

        return Contender(prepare)

    runs = {name: contender(loss) for name, loss in losses(x)}
    watch = Stopwatch(CPU)
    seconds = interleave(watch, runs, repeats, warm_up=1)
    peaks = {name: watch.peak_bytes(run.prepare()) for name, run in runs.items()}
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "rows": rows,
        "vocabulary": size.vocab,
        "hidden": size.hidden,
        "step_seconds": medians,
        "over_plain": {name: found / medians[PLAIN] for name, found in medians.items()},
        "peak_bytes": peaks,
    }


def measure(shape: Shape, part: str, repeats: int) -> Json:
    """One part of one shape."""
    if part == "head":
        return head_steps(shape, repeats)
    with tempfile.TemporaryDirectory(prefix="kdcache-steps-") as out:
        return cache_cost(shape, Path(out), max(2, repeats // 2))


def apart(name: str, part: str, repeats: int, environment: dict[str, str]) -> Json:
    """`measure` in a process of its own, whose allocator has its own settings."""
    command = [sys.executable, __file__, "--shape", name, "--repeats", str(repeats)]
    done = subprocess.run(
        [*command, "--part", part],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Json = json.loads(done.stdout.splitlines()[-1])
    print(name, part, *environment, found.get("over_plain", found.get("cache_over_labels")))
    return found


def main() -> None:
    """Measure every shape and write results/steps.json; or, with a part, print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), action="append")
    parser.add_argument("--part", choices=("cache", "head"), help="print one part of one shape")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    names = given.shape or tuple(SHAPES)
    if given.part:
        print(json.dumps(measure(SHAPES[names[0]], given.part, given.repeats)))
        return
    shapes: Json = {}
    for name in names:
        shapes[name] = {"cache": apart(name, "cache", given.repeats, {})}
        if SHAPES[name].task == "causal-lm":
            for allocator, environment in (("default", {}), ("keeping", ENVIRONMENT)):
                found = apart(name, "head", given.repeats, environment)
                shapes[name][f"head, {allocator}"] = found
    save("steps", {"repeats": given.repeats, "shapes": shapes})


if __name__ == "__main__":
    main()
