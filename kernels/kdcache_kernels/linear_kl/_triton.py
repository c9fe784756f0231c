"""The row kernel of linear_kl on NVIDIA GPUs: one Triton program a row, a block of it at a time.

The first pass over both rows finds maxima, masses and the mean of log p - log q together; the last
writes the gradient over the student's logits and finds the rows in the second cache. Beside the
matrix products that make the rows, two passes hardly count.
"""

import torch
from torch import Tensor

from kdcache_kernels._triton import (
    PIECE_BYTES,
    at_temperature_1,
    exponentials,
    finite_or_zero,
    jit,
    js_terms,
    load_tile,
    on_device,
    power_of,
    power_of_2,
    tl,
)
from kdcache_kernels.linear_kl.spec import Spec
from kdcache_kernels.topk_kl.spec import DIVERGENCES

FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)
JS = DIVERGENCES.index("js")
BLOCK = 4096
NUM_WARPS = 8
REGISTERS = 128  # two blocks a multiprocessor; no kernel spills


def dense_kl(
    logits: Tensor,
    teacher: Tensor,
    teacher_bias: Tensor | None,
    weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.dense_kl`, for float32 and bfloat16 logits and a float32 teacher.

    Both come in buffers whose columns from V to the end of a row are padding: nothing but zeros is
    written there, for the products that follow read them.
    """
    n, v = logits.shape
    rows = torch.empty(3, n, dtype=torch.float32, device=logits.device)
    kind = DIVERGENCES.index(spec.divergence)
    block = block_of(v, kind, labels is not None)
    align = _align(logits, teacher)
    if teacher_bias is not None:  # whole pieces of it are read, as of the rows
        teacher_bias = torch.nn.functional.pad(teacher_bias, (0, -v % align))
    if n:
        with on_device(logits):
            rows_kernel[(n,)](
                logits,
                teacher,
                weight if teacher_bias is None else teacher_bias,
                weight.contiguous(),
                weight if labels is None else labels.contiguous(),
                rows,
                n,
                v,
                logits.stride(0),
                teacher.stride(0),
                spec.temperature,
                spec.soft_weight,
                spec.hard_weight,
                spec.ignore_index,
                BIAS=teacher_bias is not None,
                KIND=kind,
                HARD=labels is not None,
                POWER=power_of(spec.temperature) if labels is not None else 1,
                NEED_GRAD=need_grad,
                ALIGN=align,
                BLOCK=block,
                BLOCKS=-(-v // block),
                num_warps=NUM_WARPS,
                maxnreg=REGISTERS,
            )
    return rows[0].sum(), rows[1], rows[2]


def block_of(v: int, kind: int, labels: bool) -> int:
    """Elements of a row at once; Jensen-Shannon with labels holds too much of each for as many."""
    most = BLOCK // 2 if kind == JS and labels else BLOCK
    return min(most, max(64, power_of_2(v)))


def _align(*sides: Tensor) -> int:
    """Elements in 16 bytes of the narrower dtype if all rows start on such a boundary, else 1."""
    align = PIECE_BYTES // min(x.element_size() for x in sides)
    starts = all(x.data_ptr() % PIECE_BYTES == 0 and x.stride(0) % align == 0 for x in sides)
    return align if starts else 1


@jit
def load_below(
    row_ptr: tl.tensor, o: tl.tensor, V: tl.tensor, ALIGN: tl.constexpr, EVICT: tl.constexpr
) -> tl.tensor:
    """Elements `o` of a row of `V` in float32, -inf behind its end."""
    x = load_tile(row_ptr, o, 0, V, ALIGN, EVICT).to(tl.float32)
    return tl.where(o < V, x, float("-inf"))


@jit
def load_teacher(
    row_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    o: tl.tensor,
    V: tl.tensor,
    ALIGN: tl.constexpr,
    EVICT: tl.constexpr,
    BIAS: tl.constexpr,
) -> tl.tensor:
    """The same of the teacher's row, its bias added."""
    t = load_below(row_ptr, o, V, ALIGN, EVICT)
    if BIAS:
        t += load_tile(bias_ptr, o, 0, V, ALIGN, "").to(tl.float32)
    return t


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, V] logits, rows of `stride`; the gradient in the end
    t_ptr: tl.tensor,  # [N, V] the teacher's, rows of `t_stride`
    bias_ptr: tl.tensor,  # [V], what is added to the teacher's
    weight_ptr: tl.tensor,  # [N]
    labels_ptr: tl.tensor,  # [N]
    rows_ptr: tl.tensor,  # [3, N]: loss, T^2 D, CE
    N: tl.tensor,
    V: tl.tensor,
    stride: tl.tensor,
    t_stride: tl.tensor,
    T: tl.tensor,
    soft_weight: tl.tensor,
    hard_weight: tl.tensor,
    ignore: tl.tensor,
    BIAS: tl.constexpr,
    KIND: tl.constexpr,
    HARD: tl.constexpr,
    POWER: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Losses and gradient of one row; d is (t - x) / T, both relative to their largest."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    t_ptr += row * t_stride
    dtype = x_ptr.dtype.element_ty
    w = tl.load(weight_ptr + row).to(tl.float32)
    tile = tl.arange(0, BLOCK)
    past = (V + ALIGN - 1) // ALIGN * ALIGN
    if w == 0:
        for i in range(3):
            tl.store(rows_ptr + i * N + row, 0.0)
        if NEED_GRAD:
            for i in range(BLOCKS):
                o = i * BLOCK + tile
                tl.store(x_ptr + o, tl.zeros([BLOCK], dtype), mask=o < past)
    else:
        to_d = 1.0 / T
        top = tl.full((), float("-inf"), tl.float32)
        top_t = tl.full((), float("-inf"), tl.float32)
        mass = tl.zeros((), tl.float32)
        mass_t = tl.zeros((), tl.float32)
        mass_1 = tl.zeros((), tl.float32)
        along = tl.zeros((), tl.float32)  # sum of exp * d, by the teacher's or the student's
        for i in range(BLOCKS):
            x = load_below(x_ptr, i * BLOCK + tile, V, ALIGN, "evict_last")
            t = load_teacher(t_ptr, bias_ptr, i * BLOCK + tile, V, ALIGN, "evict_last", BIAS)
            high = tl.maximum(top, tl.max(x, 0))
            high_t = tl.maximum(top_t, tl.max(t, 0))
            base = finite_or_zero(high)
            base_t = finite_or_zero(high_t)
            moved = (base - finite_or_zero(top) - (base_t - finite_or_zero(top_t))) / T
            x -= base
            t -= base_t
            e = exponentials(x, T)
            e_t = exponentials(t, T)
            d = (t - x) * to_d
            down = exponentials(top - base, T)
            down_t = exponentials(top_t - base_t, T)
            if KIND == FORWARD:
                along = tl.where(down_t == 0, 0.0, down_t * (along + moved * mass_t))
                along += tl.sum(tl.where(e_t == 0, 0.0, e_t * d), 0)
            if KIND == REVERSE:
                along = tl.where(down == 0, 0.0, down * (along + moved * mass))
                along += tl.sum(tl.where(e == 0, 0.0, e * d), 0)
            mass = mass * down + tl.sum(e, 0)
            mass_t = mass_t * down_t + tl.sum(e_t, 0)
            if POWER != 1:
                mass_1 = mass_1 * tl.exp(top - base) + tl.sum(at_temperature_1(e, x, POWER), 0)
            top = high
            top_t = high_t
        if POWER == 1:
            mass_1 = mass
        base = finite_or_zero(top)
        base_t = finite_or_zero(top_t)
        logs = tl.log(mass_t) - tl.log(mass)  # log p - log q is d - logs
        mean = along / mass
        to_q = 1.0 / mass
        to_p = 1.0 / mass_t
        pulls = tl.zeros((), tl.float32)
        if KIND == FORWARD:
            soft = along / mass_t - logs
        elif KIND == REVERSE:
            soft = logs - mean
        else:
            soft = tl.zeros((), tl.float32)
            for i in range(BLOCKS):
                x = load_below(x_ptr, i * BLOCK + tile, V, ALIGN, "evict_last")
                t = load_teacher(t_ptr, bias_ptr, i * BLOCK + tile, V, ALIGN, "evict_last", BIAS)
                x -= base
                t -= base_t
                q = exponentials(x, T) * to_q
                p = exponentials(t, T) * to_p
                pull, both = js_terms(q, p, (t - x) * to_d - logs)
                pulls += tl.sum(pull, 0)
                soft += tl.sum(both, 0)
        soft *= T * T
        use = soft_weight != 0  # times 0, an infinite divergence would be NaN
        loss = tl.where(use, w * soft_weight * soft, 0.0)
        a = soft_weight * w * T
        hard = tl.zeros((), tl.float32)
        c = tl.zeros((), tl.float32)
        wrong = tl.zeros((), tl.float32)
        y = tl.full((), -1, tl.int64)
        if HARD:
            y = tl.load(labels_ptr + row)
            counts = y != ignore
            valid = (y >= 0) & (y < V)
            x_label = tl.load(x_ptr + y, mask=counts & valid, other=0.0).to(tl.float32)
            ce = tl.where(valid, tl.log(mass_1) - (x_label - base), float("nan"))
            hard = tl.where(counts, ce, 0.0)
            use_hard = counts & (hard_weight != 0)
            loss += tl.where(use_hard, w * hard_weight * ce, 0.0)
            c = tl.where(use_hard, w * hard_weight, 0.0)
            wrong = tl.where(use_hard & (valid == 0), float("nan"), 0.0)
        tl.store(rows_ptr + row, loss)
        tl.store(rows_ptr + N + row, soft)
        tl.store(rows_ptr + 2 * N + row, hard)

        if NEED_GRAD:
            q_scale = a * to_q
            p_scale = a * to_p
            hard_scale = c / mass_1
            tl.debug_barrier()  # the label's logit is read before it is overwritten
            for i in range(BLOCKS):
                o = i * BLOCK + tile
                x = load_below(x_ptr, o, V, ALIGN, "evict_first") - base
                t = load_teacher(t_ptr, bias_ptr, o, V, ALIGN, "evict_first", BIAS) - base_t
                e = exponentials(x, T)
                e_t = exponentials(t, T)
                if KIND == FORWARD:
                    g = e * q_scale - e_t * p_scale
                elif KIND == REVERSE:
                    g = tl.where(e == 0, 0.0, e * q_scale * (mean - (t - x) * to_d))
                else:
                    q = e * to_q
                    pull, _ = js_terms(q, e_t * to_p, (t - x) * to_d - logs)
                    g = a * (pull - q * pulls)
                g = tl.where(use, g, 0.0)
                if HARD:
                    g += at_temperature_1(e, x, POWER) * hard_scale + wrong
                    g -= tl.where(o == y, c, 0.0)
                tl.store(x_ptr + o, g.to(dtype), mask=o < past)
