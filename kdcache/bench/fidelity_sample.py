"""Rows of a real teacher to measure codecs on, and a student that is half trained on them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.building.artifacts import head, token_counts
from kdcache.building.planner import plan as make_plan
from kdcache.errors import ConfigError, ModelError
from kdcache.models import Teacher, load_teacher, run
from kdcache.models.run import plain_head
from kdcache.plans import Plan
from kdcache.plans.batch import collate
from kdcache.progress import Shown, shown
from kdcache.signals import HEAD, POSITIONS, Activations, Tap
from kdcache.tasks import Task, as_task

BATCH_DOCS = 16
STEPS, BATCH_ROWS, RATE = 400, 256, 2e-3


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Outputs of a teacher for N rows, and a half-trained student.

    Attributes:
        logits: [N, V] float32.
        states: what the teacher's output layer took, [N, H]; its logits are nothing else.
        hidden: rows of each layer [M, H], the embedding output first, of at most N tokens.
        counts: how often each id occurs in the corpus, [V].
        student: logits of a student: the teacher's head on a linear map of `inputs`, [N, V].
        inputs: the teacher's middle layer, [N, H].
        weight: of the head, [V, H].
        student_kl: the student's KL from the teacher in nats, when begun and when half trained.
    """

    name: str
    logits: torch.Tensor
    states: torch.Tensor
    hidden: Sequence[torch.Tensor]
    counts: np.ndarray[Any, Any]
    inputs: torch.Tensor
    student: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    student_kl: tuple[float, float]


def take_sample(
    corpus: Any,
    *,
    teacher: str | Path,
    task: str | Task,
    rows: int,
    seed: int = 0,
    progress: Shown = None,
) -> Sample:
    """Run a language model over documents of `corpus`, in the plan's order, until it gave `rows`.

    Raises ConfigError if the task has no vocabulary or the corpus holds fewer rows; ModelError if
    the teacher's logits are not one linear layer of its last hidden states.
    """
    progress = shown(progress)
    task = as_task(task)
    if task.labelled:
        raise ConfigError("bench fidelity measures language models: masked-lm or causal-lm")
    loaded = load_teacher(teacher, task=task, device="cpu")
    with tempfile.TemporaryDirectory(prefix="kdcache-fidelity-") as scratch:
        plan = make_plan(
            corpus,
            tokenizer=teacher,
            task=task,
            out=Path(scratch) / "plan",
            seed=seed,
            progress=progress,
        )
        found = plan.count(task.rows)
        if found < rows:
            raise ConfigError(f"the corpus gives {found:,} rows, not {rows:,}: ask for fewer rows")
        logits, states, middle, hidden = _run(loaded, plan, task, rows)
        counts = token_counts(plan, loaded.shape.outputs)
    weight, bias = head(loaded)
    bias = torch.zeros(len(weight)) if bias is None else bias
    progress.say("training a student half way")
    student, kls = _half_trained(logits, middle, weight.float(), bias.float(), seed)
    return Sample(
        name=loaded.identity["name"],
        logits=logits,
        states=states,
        hidden=hidden,
        counts=counts,
        inputs=middle,
        student=student,
        weight=weight.float(),
        bias=bias.float(),
        student_kl=kls,
    )


def _run(
    teacher: Teacher, plan: Plan, task: Task, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Logits, the head's input and the middle layer of `rows` rows, and every layer at tokens."""
    logits, states = (
        torch.empty(rows, teacher.shape.outputs),
        torch.empty(rows, teacher.shape.hidden),
    )
    output = _output_layer(teacher, plan)
    middle: list[torch.Tensor] = []
    layers: list[list[torch.Tensor]] = [[] for _ in range(teacher.shape.layers + 1)]
    done = tokens = 0
    for start in range(0, plan.documents, BATCH_DOCS):
        batch = collate(plan, plan.docs[start : start + BATCH_DOCS], {})
        with torch.inference_mode():
            activations = run(teacher.model, batch, [HEAD, Tap("hidden")], task=task)
        count = min(rows - done, len(activations[HEAD]))
        states[done : done + count] = activations[HEAD][:count]
        logits[done : done + count] = output(activations[HEAD][:count])
        middle.append(_rows(activations, teacher.shape.layers // 2, task)[:count].float().clone())
        if tokens < rows:
            for layer, found in zip(layers, activations.layers("hidden"), strict=True):
                layer.append(found[activations.mask].float().clone())
            tokens += int(activations.mask.sum())
        done += count
        if done == rows:
            break
    return logits, states, torch.cat(middle), [torch.cat(layer)[:rows] for layer in layers]


def _output_layer(teacher: Teacher, plan: Plan) -> torch.nn.Linear:
    found = plain_head(teacher.model, collate(plan, plan.docs[:1], {}))
    if found is None or found.in_features != teacher.shape.hidden:
        raise ModelError(
            f"bench fidelity needs a teacher whose logits are one linear layer of its last hidden "
            f"states; those of {teacher.identity['name']} are not"
        )
    return found


def _rows(activations: Activations, layer: int, task: Task) -> torch.Tensor:
    space = task.rows
    position = next(name for name, where in POSITIONS.items() if where == space)
    return activations.rows(Tap("hidden", layer), position)


def _half_trained(
    logits: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, seed: int
) -> tuple[torch.Tensor, tuple[float, float]]:
    """A linear map from the middle layer to the head, stopped at half its first KL."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(inputs.shape[1]).requires_grad_()
    optimizer = torch.optim.Adam([matrix], lr=RATE)
    first = last = 0.0
    for step in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH_ROWS,), generator=generator)
        teacher = logits[rows].log_softmax(-1)
        student = (inputs[rows] @ matrix @ weight.T + bias).log_softmax(-1)
        loss = (teacher.exp() * (teacher - student)).sum(-1).mean()
        last = loss.item()
        first = first or last
        if step and last <= first / 2:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (inputs @ matrix @ weight.T + bias).detach(), (first, last)
