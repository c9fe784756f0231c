"""The kernel of relation_kl and attention_mse on GPUs: a program a part of a document, all of whose
scores of both sides lie in its registers; both gradients come from them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcache_kernels._device import captured
from kdcache_kernels._triton import (
    exponentials,
    finite_or_zero,
    jit,
    on_device,
    power_of_2,
    rows_of,
    tl,
)
from kdcache_kernels.relation_kl import reference
from kdcache_kernels.relation_kl.spec import KINDS, How, Teacher

LONGEST = 128  # tokens; compiled for sm_90, scores of 64 and more spill from the registers
FUSED: dict[tuple[int, int], int] = {}
"""Of a GPU's capability: the longest documents for which this has been timed and is faster than
pieces. None has been timed: pieces run on every one."""

COLUMNS = 64  # of vectors, multiplied at a time
NARROWEST = 16  # what tensor cores multiply


def token_pairs(
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Sequence[int],
    weight: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.token_pairs`, which also runs where FUSED says so and in CUDA graphs: what is
    copied to the device for a call would be gone when they are replayed.
    """
    limit = LONGEST
    if student.is_cuda:
        limit = FUSED.get(torch.cuda.get_device_capability(student.device), 0)
        limit = 0 if captured(student) else limit
    run = launch if max(lengths, default=0) <= limit else reference.token_pairs
    return run(student, student_keys, teacher, lengths, weight, how)


def launch(
    student: Tensor,
    student_keys: Tensor | None,
    teacher: Teacher,
    lengths: Sequence[int],
    weight: Tensor,
    how: How,
) -> tuple[Tensor, Tensor, Tensor]:
    """The fused way, of documents of at most `LONGEST` tokens."""
    x, t = rows_of(student), rows_of(teacher.teacher)
    y = x if student_keys is None else rows_of(student_keys.to(x.dtype))
    u = t if teacher.teacher_keys is None else rows_of(teacher.teacher_keys.to(t.dtype))
    made = reference.empty_gradients(student, how)
    losses = weight.new_empty(len(lengths) * how.parts)
    if len(losses):
        starts = torch.tensor([0, *lengths]).cumsum(0).to(x.device, non_blocking=True)
        d, e = x.shape[1] // how.parts, t.shape[1] // how.parts
        block = max(NARROWEST, power_of_2(max(lengths)))
        with on_device(x):
            parts_kernel[(len(losses),)](
                x, y, t, u, *made, starts, weight.contiguous(), losses,
                x.stride(0), y.stride(0), t.stride(0), u.stride(0), x.shape[1],
                how.scale, how.teacher_scale,
                PARTS=how.parts,
                D=d,
                E=e,
                KIND=KINDS.index(how.kind),
                OWN=student_keys is None,
                NEED_X=how.need_student,
                NEED_Y=how.need_keys,
                BLOCK=block,
                BLOCK_D=columns(d),
                BLOCK_E=columns(e),
                num_warps=warps(block),
            )  # fmt: skip
    return losses.sum(), *made


def columns(d: int) -> int:
    """How many columns of a part are multiplied at a time."""
    return min(COLUMNS, max(NARROWEST, power_of_2(d)))


def warps(block: int) -> int:
    """Warps that hold two tiles of `block` tokens squared."""
    return 8 if block > 64 else 4


@jit
def load_part(
    ptr: tl.tensor, stride: tl.tensor, first: tl.tensor, live: tl.tensor, i: tl.tensor,
    c: tl.tensor, part: tl.tensor, D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Columns `c` of a part of the tokens of a document, zero where there are none."""
    at = (first + i)[:, None] * stride + part * D + c[None, :]
    return tl.load(ptr + at, mask=live[:, None] & (c < D)[None, :], other=0.0)


@jit
def store_part(
    ptr: tl.tensor, stride: tl.tensor, first: tl.tensor, real: tl.tensor, i: tl.tensor,
    c: tl.tensor, part: tl.tensor, D: tl.constexpr, value: tl.tensor,
) -> None:  # fmt: skip
    """Write what `load_part` reads."""
    at = (first + i)[:, None] * stride + part * D + c[None, :]
    mask = real[:, None] & (c < D)[None, :]
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=mask)


@jit
def scores(
    x_ptr: tl.tensor, y_ptr: tl.tensor, x_stride: tl.tensor, y_stride: tl.tensor,
    first: tl.tensor, live: tl.tensor, part: tl.tensor,
    D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """X Y^T of a part of a document, [BLOCK, BLOCK], summed in float32."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, D, BLOCK_D):
        c = start + tl.arange(0, BLOCK_D)
        x = load_part(x_ptr, x_stride, first, live, i, c, part, D)
        y = load_part(y_ptr, y_stride, first, live, i, c, part, D)
        total = tl.dot(x, tl.trans(y), total, input_precision="ieee")
    return total


@jit
def softmax(s: tl.tensor, real: tl.tensor) -> tl.tensor:
    """Probabilities of rows over the real tokens; the largest score, and the sum."""
    s = tl.where(real[None, :], s, float("-inf"))
    top = finite_or_zero(tl.max(s, 1))
    e = exponentials(s - top[:, None], 1.0)
    mass = tl.sum(e, 1)
    return e / mass[:, None], top, mass


@jit
def parts_kernel(
    x_ptr: tl.tensor,  # [N, W]
    y_ptr: tl.tensor,  # [N, W]
    t_ptr: tl.tensor,  # [N, V]
    u_ptr: tl.tensor,  # [N, V]
    dx_ptr: tl.tensor,  # [N, W]
    dy_ptr: tl.tensor,  # [N, W]
    starts_ptr: tl.tensor,  # [B + 1]
    weight_ptr: tl.tensor,  # [B]
    losses_ptr: tl.tensor,  # [B * PARTS]
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    t_stride: tl.tensor,
    u_stride: tl.tensor,
    out_stride: tl.tensor,
    scale: tl.tensor,
    t_scale: tl.tensor,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    KIND: tl.constexpr,
    OWN: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_Y: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """The loss of a part of a document, and its part of the gradients."""
    pid = tl.program_id(0)
    doc, part = pid // PARTS, pid % PARTS
    first = tl.load(starts_ptr + doc)
    n = (tl.load(starts_ptr + doc + 1) - first).to(tl.int32)
    w = tl.load(weight_ptr + doc) / PARTS
    i = tl.arange(0, BLOCK)
    real = i < n
    live = i < tl.where(w == 0.0, 0, n)  # 0 times NaN, of one that does not count, would be NaN
    both = real[:, None] & real[None, :]
    s = scores(x_ptr, y_ptr, x_stride, y_stride, first, live, part, D, BLOCK, BLOCK_D) * scale
    t = scores(t_ptr, u_ptr, t_stride, u_stride, first, live, part, E, BLOCK, BLOCK_E) * t_scale
    # The slope is multiplied by `factor` after the products: in float16 it would underflow.
    if KIND == 1:
        g = tl.where(both, s - t, 0.0)
        loss = tl.sum(g * g) * w
        factor = 2.0 * w
    else:
        q, q_top, q_mass = softmax(s, real)
        p, p_top, p_mass = softmax(t, real)
        if KIND == 0:
            along = tl.where(both, p * ((t - p_top[:, None]) - (s - q_top[:, None])), 0.0)
            logs = tl.log(q_mass) - tl.log(p_mass)
            factor = w / n
            loss = (tl.sum(along) + tl.sum(tl.where(real, logs, 0.0))) * factor
            g = tl.where(both, q - p, 0.0)
        else:
            apart = tl.where(both, q - p, 0.0)
            loss = tl.sum(apart * apart) * w
            g = q * (apart - tl.sum(q * apart, 1)[:, None])
            factor = 2.0 * w
    tl.store(losses_ptr + pid, loss)
    g = g.to(x_ptr.dtype.element_ty)
    factor = factor * scale
    for start in range(0, D, BLOCK_D):
        c = start + tl.arange(0, BLOCK_D)
        if NEED_X:
            y = load_part(y_ptr, y_stride, first, live, i, c, part, D)
            by_x = tl.dot(g, y, input_precision="ieee")
            if OWN:
                by_x = tl.dot(tl.trans(g), y, by_x, input_precision="ieee")
            store_part(dx_ptr, out_stride, first, real, i, c, part, D, by_x * factor)
        if NEED_Y:
            x = load_part(x_ptr, x_stride, first, live, i, c, part, D)
            by_y = tl.dot(tl.trans(g), x, input_precision="ieee")
            store_part(dy_ptr, out_stride, first, real, i, c, part, D, by_y * factor)
