"""topk_kl on NVIDIA GPUs: one Triton program a row, loss and dense gradient in one launch.

Where a row fits the registers of one block of threads, or of a cluster of them, its logits are read
once and its gradient is written once. Longer rows take a second read, which finds them in the
second cache. The support is left out of the dense pass by one flag an element, and written last,
from float32: adding to a rounded gradient would lose the small difference q - p.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache_kernels._triton import (
    Rows,
    aligned_rows,
    has_clusters,
    max_registers,
    on_device,
    power_of,
    power_of_2,
    rows_of,
    same_alignment,
)
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl._triton_kernels import overwrite_kernel, rows_kernel
from kdcache_kernels.topk_kl.spec import DIVERGENCES, Spec, Teacher

MAX_K = 4096  # a longer support is no longer sparse: plain torch
WHOLE_K = 1024  # a longer one leaves no room for a whole row
ONE_BLOCK = 32768  # float32 values that the registers of a block of threads hold
ONE_CLUSTER = 8 * ONE_BLOCK
LOOP_BLOCK = 16384


class Plan(NamedTuple):
    """How a row is run: `blocks` times `block` elements, by warps of one or several CTAs."""

    block: int
    blocks: int
    num_warps: int
    num_ctas: int


def plan(v: int, k: int, whole: bool, clusters: bool) -> Plan:
    """Choose how rows of `v` logits are run; `whole` allows to hold a row in registers.

    `v` includes the elements by which a row may start behind its boundary.
    """
    block = max(64, power_of_2(v))
    if whole and k <= WHOLE_K:
        if block <= ONE_BLOCK:
            return Plan(block, 1, min(16, max(1, block // 1024)), 1)
        if block <= ONE_CLUSTER and clusters:
            return Plan(block, 1, 16, min(8, 2 * block // ONE_BLOCK))
    return Plan(LOOP_BLOCK, -(-v // LOOP_BLOCK), 16, 1)


def topk_kl(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.topk_kl`; nothing is read back unless `check` is set.

    Supports of more than 4096 ids run in plain torch.
    """
    if check:
        reference.check_ids(logits, teacher.ids, labels, weight, spec.ignore_index)
    k = teacher.ids.shape[1]
    if k > MAX_K:
        return reference.topk_kl(logits, teacher, weight, labels, spec, out, False)
    logits = rows_of(logits)
    # Registers hold exp(x / T) of a long row, not exp(x) too: the one has to yield the other.
    whole = labels is None or power_of(spec.temperature) != 0
    how = plan(logits.shape[1] + _slack(logits, out), k, whole, has_clusters(logits))
    return launch(logits, teacher, weight, labels, spec, out, how)


def _slack(logits: Tensor, out: Tensor | None) -> int:
    """By how many elements a row can start behind its boundary."""
    x = aligned_rows(logits)
    align = _align(x, x if out is None else aligned_rows(out))
    return align - math.gcd(align, x.stride, x.head)


def _align(x: Rows, y: Rows) -> int:
    return max(x.align, y.align) if min(x.align, y.align) > 1 else 1


def launch(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
    how: Plan,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `topk_kl` as planned; the columns of `logits` and of `out` are contiguous."""
    n, v = logits.shape
    k = teacher.ids.shape[1]
    rows = torch.empty(3, n, dtype=torch.float32, device=logits.device)
    if n == 0:
        return rows[0].sum(), rows[1], rows[2]
    ids = teacher.ids.contiguous()
    unsigned = ids.dtype == torch.uint16
    ids = ids.view(torch.int16) if unsigned else ids
    x = aligned_rows(logits)
    y = x if out is None else aligned_rows(out)
    later = out is not None and how.num_ctas > 1
    side = torch.empty(n, k + 1, dtype=torch.float32, device=logits.device) if later else rows
    flags = {"BLOCK_K": power_of_2(k), "UNSIGNED": unsigned, "HARD": labels is not None}
    weight = weight.contiguous()
    targets = weight if labels is None else labels.contiguous()
    with on_device(logits):
        rows_kernel[(n,)](
            x.base,
            y.base,
            ids,
            teacher.logprobs.contiguous(),
            weight if teacher.rest is None else teacher.rest.contiguous(),
            weight,
            targets,
            rows,
            side,
            n,
            v,
            k,
            x.stride,
            x.head,
            y.stride,
            y.head,
            spec.temperature,
            spec.soft_weight,
            spec.hard_weight,
            spec.ignore_index,
            **flags,
            **_modes(spec, teacher.rest is not None, labels is not None),
            **_layout(x, y, out is not None, how),
            num_warps=how.num_warps,
            num_ctas=how.num_ctas,
            maxnreg=max_registers(how.num_warps),
        )
        if later:
            overwrite_kernel[(n,)](
                y.base,
                ids,
                weight,
                targets,
                side,
                v,
                k,
                y.stride,
                y.head,
                spec.ignore_index,
                **flags,
                num_warps=1,
            )
    return rows[0].sum(), rows[1], rows[2]


def _modes(spec: Spec, has_rest: bool, hard: bool) -> dict[str, Any]:
    return {
        "KIND": DIVERGENCES.index(spec.divergence),
        "BUCKET": spec.tail == "bucket",
        "DIVIDE": spec.tail != "truncate" or spec.temperature != 1,
        "HAS_REST": has_rest,
        "POWER": power_of(spec.temperature) if hard else 1,
    }


def _layout(x: Rows, y: Rows, need_grad: bool, how: Plan) -> dict[str, Any]:
    align = _align(x, y)
    return {
        "NEED_GRAD": need_grad,
        "ALIGN": align,
        "SAME": same_alignment(x, y, align),
        "BLOCK": how.block,
        "BLOCKS": how.blocks,
        "LATER": how.num_ctas > 1,
    }
