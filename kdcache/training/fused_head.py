"""Whether a student trains through its head, so that its [rows, V] logits never exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import transformers

from kdcache.models import plain_head
from kdcache.models.recording import heads_of
from kdcache.plans.batch import Batch
from kdcache.store import Cache
from kdcache.tasks import Task
from kdcache.training.mixture import Mixture
from kdcache.training.objective import Objective

WHOLE = "the student's logits are made whole"


def fused_heads(
    student: Any,
    mixture: Mixture,
    objectives: Sequence[Objective],
    args: transformers.TrainingArguments,
    say: Callable[[str], None],
) -> list[bool]:
    """Of each cache, whether its losses take the student's head in the place of logits.

    `say` takes what a person should know.
    """

    def fuses(model: Any, cache: Cache, objective: Objective) -> bool:
        sample = cache.batch(cache.plan.docs[:1], []).to(model.device)
        head, note = fused_head(model, cache.plan.task, sample, objective, args)
        if note:
            say(note)
        return head

    if not mixture.heads:
        strictest = max(objectives, key=lambda one: one.matrix)
        return [fuses(student, mixture.first, strictest)] * len(objectives)
    return list(map(fuses, heads_of(student), mixture.caches, objectives))


def fused_head(
    student: Any,
    task: Task,
    batch: Batch,
    objective: Objective,
    args: transformers.TrainingArguments,
) -> tuple[bool, str]:
    """Whether the losses take the head in the place of logits; and what a person should know.

    `batch` holds a document to try the student on.
    """
    if task.labelled or not objective.logits:
        return False, ""
    if objective.matrix:
        return False, f"{WHOLE}: a loss compares them one by one"
    if args.fsdp or args.deepspeed or args.torch_compile:
        return False, f"{WHOLE}: under FSDP, DeepSpeed and torch.compile its head is not at hand"
    if plain_head(student, batch) is None:
        return False, f"{WHOLE}: they are not just what a linear layer of it says"
    return True, ""
