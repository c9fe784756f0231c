"""What artifacts of signals are made of: the plan's tokens and linear layers of the teacher."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
from torch import nn

from kdcache.errors import ModelError
from kdcache.models import Teacher
from kdcache.models.classifiers import classifier_of
from kdcache.models.projections import projections
from kdcache.plans import Plan
from kdcache.plans.batch import collate
from kdcache.signals import ArtifactSources
from kdcache.signals.codecs.linear_file import Linear
from kdcache.tasks import Space

PROVEN = 4
"""Documents that projections are proven on."""
COLUMNS: dict[str, Space] = {"tokens": "token", "masked_label": "selected"}


def artifact_sources(plan: Plan, teacher: Teacher) -> ArtifactSources:
    """The sources of artifacts; nothing is read before it is asked for."""
    return ArtifactSources(
        token_counts=partial(token_counts, plan, teacher.shape.outputs),
        head=partial(head, teacher),
        projections=partial(attention_projections, plan, teacher),
        classifier=partial(classifier, teacher),
    )


def token_counts(plan: Plan, size: int) -> npt.NDArray[np.int64]:
    """How often each of `size` ids occurs in the plan's documents, masked ones included: [size]."""
    counts = np.zeros(size, np.int64)
    for part in range(plan.parts):
        docs = plan.part_docs(part)
        for name, space in COLUMNS.items():
            if name in plan.columns and not (name == "masked_label" and plan.task.labelled):
                start = part * plan.rows[space]
                ids = plan.columns[name][start : start + plan.extent(docs, space)]
                counts += np.bincount(ids, minlength=size)[:size]
    return counts


def head(teacher: Teacher) -> Linear:
    """Weight [V, H] and bias [V] of the teacher's output layer, on the CPU.

    Raises ModelError if it is not one linear layer.
    """
    layer = teacher.model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        kind = type(layer).__name__ if layer is not None else "none that transformers names"
        raise ModelError(
            f"{teacher.identity['name']} has no linear output layer ({kind}): store logits:topk"
        )
    return _stored(layer)


def classifier(teacher: Teacher) -> Linear | None:
    """Weight [C, H] and bias [C] of the teacher's classifier, on the CPU; None: it is more."""
    part = classifier_of(teacher.model)
    return _stored(part) if type(part) is nn.Linear else None


def attention_projections(plan: Plan, teacher: Teacher, layer: int) -> dict[str, Linear]:
    """Weight [width, H] and bias [width] of each projection of a layer, proven on documents.

    Raises ModelError if they do not make queries, keys and values of hidden states alone.
    """
    batch = collate(plan, plan.docs[:PROVEN], {}).to(teacher.device)
    maps = projections(teacher.model, layer, plan.task, batch)
    return {name: _stored(linear) for name, linear in maps.items()}


def _stored(layer: nn.Linear) -> Linear:
    bias = getattr(layer, "bias", None)  # typed as never None, which it may be
    return layer.weight.detach().cpu(), None if bias is None else bias.detach().cpu()
