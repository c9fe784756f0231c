"""Scores, speed and memory of a shipped model, through the files that are shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import kdcache
from kdcache.errors import ModelError
from kdcache.evaluation.kept import keep
from kdcache.evaluation.scoring import BATCH, Predictions, predict, scores, token_budget
from kdcache.labels import LABEL_KINDS
from kdcache.labels.metrics import wilson
from kdcache.manifest import Json
from kdcache.plans.batch import length_batches
from kdcache.progress import Progress
from kdcache.shipping import worker
from kdcache.shipping.folder import MODEL, bytes_of
from kdcache.shipping.source import Logits, Source

CALLS = 200
NO_TOKENS = (np.empty(0), np.empty(0, np.bool_))


def torch_logits(source: Source, progress: Progress) -> Logits:
    """The torch model's logits of all documents, [documents, C]."""
    plan, label = source.documents.plan, f"running {source.name} in torch"
    batches = length_batches(plan, plan.docs, token_budget(plan, BATCH))
    with progress.bar(label, unit="documents", total=plan.documents) as advance:
        return predict(source.torch.model, plan, batches, lambda docs, _: advance(len(docs))).logits


def said(source: Source, logits: Logits) -> Predictions:
    """Logits of all documents as what a model says of them."""
    plan = source.documents.plan
    return Predictions(plan.docs, logits, *NO_TOKENS)


def measure(
    source: Source,
    folder: Path,
    expected: Logits,
    what: str,
    *,
    scratch: Path,
    progress: Progress,
    kept: Path | None = None,
) -> Json:
    """Bytes, speed, memory and scores of the shipped `folder`, and its agreement with `expected`.

    `expected` are the torch model's logits of the documents. `p50_ms` and `p95_ms` are of `CALLS`
    calls with one text each, on one thread, from text to probabilities with tokenisation, which
    alone takes `tokenise_p50_ms`; their texts have the lengths of the documents. `peak_bytes` is
    the memory of a process that does just that. Documents are scored one at a time; what each adds
    to the score is kept in the file `kept`, where there is one.
    """
    documents, plan = source.documents, source.documents.plan
    timed = timed_places(documents.lengths)
    with progress.bar(f"measuring {what}", unit="documents", total=len(documents)) as advance:
        logits, figures = run_apart(
            folder, documents.texts, documents.pairs, timed, scratch=scratch, advance=advance
        )
    told = said(source, logits)
    if kept is not None:
        keep(kept, plan, told)
    return {
        "bytes": bytes_of(folder),
        "model_bytes": (folder / MODEL).stat().st_size,
        **figures,
        **scores(plan, told),
        **agreement(source, expected, logits),
    }


def run_apart(
    folder: Path,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    timed: npt.NDArray[np.int64],
    *,
    scratch: Path,
    advance: Callable[[int], None],
) -> tuple[Logits, Json]:
    """Logits [texts, C] of a shipped folder and `worker`'s figures, in a process of its own.

    `timed` are the places of the texts whose latency is measured. Files go into `scratch`, a folder
    that is there. Raises ModelError if the folder cannot be run.
    """
    given, logits, errors = (scratch / name for name in ("texts.json", "logits.npy", "errors"))
    content = {"texts": [*texts], "pairs": pairs, "timed": timed.tolist()}
    given.write_text(json.dumps(content), "utf-8")
    command = [sys.executable, "-P", "-B", worker.__file__, *map(str, (folder, given, logits))]
    with errors.open("w") as complaints:
        child = subprocess.Popen(
            command, env=_environment(), stdout=subprocess.PIPE, stderr=complaints, text=True
        )
        figures = _followed(child, advance)
    if child.returncode:
        last = (errors.read_text().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ModelError(f"the shipped model cannot be run: {last}")
    with logits.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False), figures


def _environment() -> dict[str, str]:
    """This process's, in which `kdcache.memory` is found and tokenizers take one thread."""
    paths = [str(Path(kdcache.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _followed(child: subprocess.Popen[str], advance: Callable[[int], None]) -> Any:
    """Wait for a worker, telling of the texts it has done; returns its figures."""
    figures: Any = None
    with child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                figures = json.loads(line)
                if isinstance(figures, int):
                    advance(figures)
        except BaseException:  # Ctrl-C among them: the worker does not go on alone
            child.kill()
            raise
    return figures


def timed_places(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Documents to be timed, `CALLS` of them in no order, whose lengths spread as those of all."""
    order = np.argsort(lengths, kind="stable")
    even = order[(2 * np.arange(CALLS) + 1) * len(order) // (2 * CALLS)]
    return np.random.default_rng(0).permutation(even).astype(np.int64)


def agreement(source: Source, expected: Logits, logits: Logits) -> Json:
    """How often shipped and torch model name the same class, or classes, and how far their logits
    differ.
    """
    apart = {"logit_difference_mean": float(np.abs(expected - logits).mean())}
    compare = LABEL_KINDS[source.settings["problem"]].compare
    alike: Any = expected.argmax(1) == logits.argmax(1)
    if compare is not None:
        alike = compare(torch.from_numpy(logits), torch.from_numpy(expected))[0]
    if alike is None:
        return apart
    same = float(np.asarray(alike).mean())
    return {"agreement": same, "agreement_interval": list(wilson(same, len(expected))), **apart}
