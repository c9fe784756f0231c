"""The case of relations between the documents of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

import kdcache_kernels as kernels
from kdcache.bench.kernels_case import Case, plain
from kdcache.bench.kernels_inputs import Size, Tensors
from kdcache.bench.rivals import full

BATCHES, DOCUMENTS = 2, 64  # of a training step, and of each batch


def _draw(size: Size, dtype: torch.dtype, device: torch.device, dense: bool) -> Tensors:
    """Vectors of the documents of some batches, [batches, B, H], the student's in `dtype`."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (BATCHES, min(DOCUMENTS, size.rows + 5), size.hidden)
    teacher, noise = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    return {"student": (teacher + noise).to(dtype), "teacher": teacher}


def _pair_distances(x: Tensors) -> Tensor:
    batches = zip(x["student"], x["teacher"], strict=True)
    return torch.stack([kernels.pair_distances(s, t) for s, t in batches]).mean()


def _relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean, [B, B]; cosines [B, B, B], of products of unit differences."""
    apart = vectors[None] - vectors[:, None]
    distance = torch.linalg.vector_norm(apart, dim=2)
    there = distance > 0
    mean = distance.sum() / there.sum()
    unit = apart / torch.where(there, distance, 1.0)[..., None]
    return distance / mean, unit @ unit.mT


def _plainly(x: Tensors) -> Tensor:
    found = []
    for student, teacher in zip(full(x["student"]), x["teacher"], strict=True):
        (near, angles), (known, wanted) = _relations(student), _relations(teacher.to(student.dtype))
        found.append(smooth_l1_loss(near, known) + smooth_l1_loss(angles, wanted))
    return torch.stack(found).mean()


PAIR_DISTANCES = Case(
    op="pair_distances",
    variant=f"{BATCHES} batches",
    ours=_pair_distances,
    oracle=_plainly,
    draw=_draw,
    leaves=("student",),
    outputs=("loss", "student"),
    sizes=("hidden",),
    bytes=lambda size, item: BATCHES * DOCUMENTS * size.hidden * (2 * item + 4),
    rivals=plain(_plainly),
)
