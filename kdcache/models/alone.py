"""Whether what a model says of a document hangs on what else is in its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from kdcache.errors import ModelError
from kdcache.models.hooks import readers_of
from kdcache.models.run import EQUAL, run, untouched
from kdcache.plans import Plan
from kdcache.plans.batch import Batch, collate
from kdcache.progress import Progress, quiet
from kdcache.signals import LOGITS, Tap
from kdcache.tasks import Task, as_task

Outputs = list[torch.Tensor]
"""Outputs of a model for one document: logits [rows, outputs], then hidden states [L, H]."""

LENGTHS = (4, 8, 16, 24)  # most tokens of each document that is tried
SAMPLE = 4096  # documents they are chosen from
NOISE = 10.0  # times what one batch size differs from another
BOUNDS = {
    torch.float32: (3e-5, 1e-3),
    torch.float16: (1e-2, 5e-2),
    torch.bfloat16: (5e-2, 2e-1),
}
"""Least and most that a difference may be, as a share of the largest output or of 1.

Below the least it is rounding, whatever was measured; beyond the most it is none.
"""


def check_alone(
    model: Any,
    task: str | Task,
    plan: Plan,
    *,
    name: str,
    hidden: bool = False,
    progress: Progress = quiet,
) -> bool:
    """See to it that what a model says of a document is what it says of that document alone.

    Some short documents of the plan are computed alone, padded, and among others of their length.
    Their logits (with `hidden`, their hidden states too) may differ by `NOISE` times what those of
    a document differ between a batch of it alone and a batch of two copies. The model and torch's
    random numbers stay as they were.

    Returns whether pads make a difference: `run` then gives the model documents of one
    length at a time, and `progress` says so.

    Raises ModelError if documents of one length make a difference to each other, or the model
    cannot be run on them.
    """
    task = as_task(task)
    _require_steady(model.config, plan, name)
    setattr(model, EQUAL, False)
    docs = [doc.to(model.device) for doc in _documents(plan)]
    last = docs[-1]

    def say(*batch: Batch) -> list[Outputs]:
        return _say(model, task, batch, name, hidden)

    with untouched(model):
        alone = [outputs for doc in docs for outputs in say(doc)]
        twice = alone[-1:] * 2
        noise = _distance(twice, say(last, last))
        among = _distance(twice, say(last, _turned(last), last)[::2])
        pads = _distance(alone, say(*docs))
    least, most = BOUNDS.get(model.dtype, BOUNDS[torch.float32])
    limit = max(least, min(NOISE * noise, most))
    if max(noise, among) > limit:
        raise ModelError(
            f"what {name} says of a document hangs on the other documents of its batch, by "
            f"{max(noise, among):.2g} of its largest output (rounding explains {limit:.2g}): what "
            "it says of one has no meaning by itself; choose another model"
        )
    if pads > limit:
        setattr(model, EQUAL, True)
        progress.say(
            f"{name} says something else of documents that are padded, by {pads:.2g} of its "
            "largest output: it is run on documents of one length at a time, which takes longer"
        )
    return pads > limit


def _require_steady(config: Any, plan: Plan, name: str) -> None:
    """BigBird gives up its sparse attention for good with the first short batch it sees."""
    if getattr(config, "attention_type", None) != "block_sparse":
        return
    enough = (5 + 2 * config.num_random_blocks) * config.block_size
    longest = int(plan.per_document["doc_len"].max())
    if longest > enough:
        raise ModelError(
            f"{name} attends sparsely to documents of more than {enough} tokens, until it has seen "
            f"a shorter one, and the longest here has {longest}: write original_full for "
            f"attention_type in its config.json, or plan with --max-length {enough}"
        )


def _documents(plan: Plan) -> list[Batch]:
    """Documents of rising length, each a batch of its own: whole where such short ones are."""
    docs = plan.docs[:SAMPLE]
    lens = plan.per_document["doc_len"][docs]
    docs = docs[np.argsort(lens, kind="stable")]
    chosen = []
    for number, length in enumerate(LENGTHS):
        whole = int((lens <= length).sum())
        doc = docs[whole - 1 if whole else number * len(docs) // len(LENGTHS)]
        chosen.append(_cut(collate(plan, np.asarray([doc]), {}), length))
    return chosen


def _cut(batch: Batch, length: int) -> Batch:
    """A single document of at most `length` tokens.

    Its first and last token stay, and what is the same as the last: some classifiers pool at the
    end-of-text tokens and want equal numbers of them.
    """
    ids = batch["input_ids"][0]
    wanted = (ids == ids[-1]).long()
    wanted[0], wanted[-1] = 2, 3
    positions = torch.argsort(wanted, descending=True, stable=True)[:length].sort().values
    cut = {
        name: batch[name][:, positions]
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if name in batch
    }
    return Batch(
        cut | {"selected": torch.tensor(sorted({0, len(positions) // 2, len(positions) - 1}))}
    )


def _turned(doc: Batch) -> Batch:
    """Another document of the same length: its inner tokens in another order."""
    ids = doc["input_ids"].clone()
    ids[:, 1:-1] = ids[:, 1:-1].flip(1)
    return Batch({**doc, "input_ids": ids})


def _say(model: Any, task: Task, docs: Sequence[Batch], name: str, hidden: bool) -> list[Outputs]:
    """What a model says of each document of one padded batch."""
    classifies = task.rows == "document"
    hidden = hidden and "hidden" in readers_of(model)
    batch, taps = _together(docs), [LOGITS, *([Tap("hidden")] if hidden else [])]
    try:
        found = run(model, batch, taps, task=task if classifies else replace(task, rows="selected"))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, AssertionError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name} cannot be run on a document of the plan: {first}") from error
    rows = found[LOGITS].split([1 if classifies else len(doc["selected"]) for doc in docs])
    lengths = [doc["input_ids"].shape[1] for doc in docs]
    layers = [
        layer for layer in found.layers("hidden") if layer.shape[:2] == batch["input_ids"].shape
    ]
    return [
        [logits.float(), *(layer[i, :length].float() for layer in layers)]
        for i, (logits, length) in enumerate(zip(rows, lengths, strict=True))
    ]


def _together(docs: Sequence[Batch]) -> Batch:
    """One batch of several documents, as long as the longest."""
    width = max(doc["input_ids"].shape[1] for doc in docs)
    batch = Batch(
        {
            name: torch.cat([_widened(doc[name], width) for doc in docs])
            for name in docs[0]
            if name != "selected"
        }
    )
    batch["selected"] = torch.cat([doc["selected"] + i * width for i, doc in enumerate(docs)])
    return batch


def _widened(row: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (0, width - row.shape[1]))


def _distance(alone: Sequence[Outputs], others: Sequence[Outputs]) -> float:
    """The largest difference as a share of the largest output of its kind, or of 1."""
    found = 0.0
    for kind, outputs in zip(zip(*alone, strict=True), zip(*others, strict=True), strict=True):
        largest = _largest(kind)
        if math.isfinite(largest):  # else it is told of where the rows are stored or scored
            apart = _largest([a - b for a, b in zip(kind, outputs, strict=True)])
            found = max(found, apart / max(1.0, largest) if math.isfinite(apart) else math.inf)
    return found


def _largest(values: Sequence[torch.Tensor]) -> float:
    """The largest magnitude; not a number if there is one that is none."""
    return float(torch.stack([value.abs().max() for value in values]).max())
