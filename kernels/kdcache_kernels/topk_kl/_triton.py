"""topk_kl on NVIDIA GPUs: loss and dense gradient of every row in one launch.

A row is read from memory once, summed relative to a value near its largest, and again, from the
caches, for its gradient: so several rows fit a multiprocessor and hide each other's latencies. The
support is left out of the dense passes by a bit an element, in memory of its program. Its gradient
is written last, from float32: adding to a rounded gradient would lose the small difference q - p.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcache_kernels._device import captured
from kdcache_kernels._triton import (
    Rows,
    aligned_rows,
    on_device,
    power_of,
    power_of_2,
    rows_of,
    same_alignment,
)
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl._shapes import Shape, autotuned, fastest, light, listed
from kdcache_kernels.topk_kl._triton_kernels import rows_kernel
from kdcache_kernels.topk_kl.spec import DIVERGENCES, Spec, Teacher

INTERPRETED = (9, 0)  # what Triton's interpreter runs as
MAX_K = 4096  # a longer support is no longer sparse: plain torch


class Plan(NamedTuple):
    """How rows are run: in tiles of `shape`, `inner` of them and then `last`.

    Of the former all but the first are inside of every row.
    """

    shape: Shape
    inner: int
    last: int


def plan(v: int, slack: int, shape: Shape) -> Plan:
    """How rows of `v` logits run in a shape, which start up to `slack` behind their boundary."""
    block = min(shape.block, max(64, power_of_2(v + slack)))
    warps = max(1, shape.num_warps * block // shape.block)
    inner = max(1, v // block)
    last = -(-(v + slack) // block) - inner
    return Plan(shape._replace(block=block, num_warps=warps), inner, last)


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
    shape = _shape(logits, teacher, weight, labels, spec, out)
    how = plan(logits.shape[1], slack(logits, out), shape)
    return launch(logits, teacher, weight, labels, spec, out, how)


def _shape(
    logits: Tensor,
    teacher: Teacher,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    out: Tensor | None,
) -> Shape:
    """The table's shape for this GPU, or the fastest of all if the environment asks for it."""
    v = logits.shape[1]
    spare = light(teacher.ids.shape[1], logits.element_size(), labels is not None)
    if not logits.is_cuda:
        return listed(v, INTERPRETED, spare)
    first = listed(v, torch.cuda.get_device_capability(logits.device), spare)
    if not autotuned() or captured(logits):
        return first

    def seconds(shape: Shape) -> float:
        scratch = None if out is None else torch.empty_like(out)  # `out` may be the logits
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        how = plan(v, slack(logits, scratch), shape)
        with on_device(logits):
            begin.record()
            launch(logits, teacher, weight, labels, spec, scratch, how)
            end.record()
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    modes = tuple(_modes(spec, teacher.rest is not None, labels is not None).items())
    dtypes = (logits.dtype, None if out is None else out.dtype)
    kind = (logits.device, v, teacher.ids.shape[1], slack(logits, out), dtypes, modes)
    return fastest((*kind, labels is not None), first, seconds)


def words_of(v: int, align: int) -> int:
    """Words of flags for a row of `v` logits, with a byte behind it that is none of its own."""
    return power_of_2(-(-(v + align + 14) // 32))


def slack(logits: Tensor, out: Tensor | None) -> int:
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
    align = _align(x, y)
    same = same_alignment(x, y, align)
    words = words_of(v, align)
    programs = min(n, how.shape.per_processor() * _processors(logits))
    flags = torch.empty(programs, words, dtype=torch.int32, device=logits.device)
    weight = weight.contiguous()
    with on_device(logits):
        rows_kernel[(programs,)](
            x.base,
            y.base,
            flags,
            ids,
            teacher.logprobs.contiguous(),
            weight if teacher.rest is None else teacher.rest.contiguous(),
            weight,
            weight if labels is None else labels.contiguous(),
            rows,
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
            how.inner,
            BLOCK_K=power_of_2(k),
            UNSIGNED=unsigned,
            HARD=labels is not None,
            **_modes(spec, teacher.rest is not None, labels is not None),
            NEED_GRAD=out is not None,
            ALIGN=align,
            SAME=same,
            WORDS=words,
            BLOCK=how.shape.block,
            LAST=how.last,
            num_warps=how.shape.num_warps,
            maxnreg=how.shape.registers,
        )
    return rows[0].sum(), rows[1], rows[2]


def _processors(x: Tensor) -> int:
    """Multiprocessors of the device; the interpreter runs programs one after the other."""
    if not x.is_cuda:
        return 1
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def _modes(spec: Spec, has_rest: bool, hard: bool) -> dict[str, Any]:
    return {
        "KIND": DIVERGENCES.index(spec.divergence),
        "BUCKET": spec.tail == "bucket",
        "DIVIDE": spec.tail != "truncate" or spec.temperature != 1,
        "HAS_REST": has_rest,
        "POWER": power_of(spec.temperature) if hard else 1,
    }
