"""Whether a student trains through its head, so that its [rows, V] logits never exist."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from kdcache.models import plain_head
from kdcache.plans.batch import Batch
from kdcache.tasks import Task
from kdcache.training.objective import Objective

WHOLE = "the student's logits are made whole"


def fused_head(
    student: Any,
    task: Task,
    batch: Batch,
    objective: Objective,
    args: transformers.TrainingArguments,
) -> tuple[nn.Linear | None, str]:
    """The head for `run` to leave to the losses, or None; and what a person should know.

    `batch` holds a document to try the student on.
    """
    if task == "text-classification" or not objective.logits:
        return None, ""
    if objective.matrix:
        return None, f"{WHOLE}: a loss compares them one by one"
    if args.fsdp or args.deepspeed or args.torch_compile:
        return None, f"{WHOLE}: under FSDP, DeepSpeed and torch.compile its head is not at hand"
    head = plain_head(student, batch)
    if head is None:
        return None, f"{WHOLE}: they are not just what a linear layer of it says"
    return head, ""
