"""The Triton kernel of topk_kl: a program takes one row after the other."""

from kdcache_kernels._triton import (
    edge_offsets,
    finite_or_zero,
    jit,
    out_start,
    row_start,
    store_tile,
    tl,
)
from kdcache_kernels.topk_kl._triton_row import (
    dense_gradient,
    flag_support,
    largest,
    load_packed,
    masses,
    rest_of,
    store_gradient,
    widened,
)
from kdcache_kernels.topk_kl._triton_support import (
    load_support,
    normaliser,
    soft_loss,
    support_mass,
    teacher_classes,
)

LEAST = tl.constexpr(1e-20)  # a sum of exponentials that has all its digits, and whose inverse
MOST = tl.constexpr(1e20)  # times each of them has, too


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, V] logits, rows of `stride` from `head` on
    out_ptr: tl.tensor,  # [N, V] gradient; may be the logits
    flags_ptr: tl.tensor,  # [programs, WORDS] int32
    ids_ptr: tl.tensor,  # [N, K]
    logprobs_ptr: tl.tensor,  # [N, K]
    rest_ptr: tl.tensor,  # [N]
    weight_ptr: tl.tensor,  # [N]
    labels_ptr: tl.tensor,  # [N]
    rows_ptr: tl.tensor,  # [3, N]: loss, T^2 D, CE
    N: tl.tensor,
    V: tl.tensor,
    K: tl.constexpr,
    stride: tl.tensor,
    head: tl.tensor,
    out_stride: tl.tensor,
    out_head: tl.tensor,
    T: tl.tensor,
    soft_weight: tl.tensor,
    hard_weight: tl.tensor,
    ignore: tl.tensor,
    inner: tl.tensor,
    BLOCK_K: tl.constexpr,
    UNSIGNED: tl.constexpr,
    HARD: tl.constexpr,
    KIND: tl.constexpr,
    BUCKET: tl.constexpr,
    DIVIDE: tl.constexpr,
    HAS_REST: tl.constexpr,
    POWER: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    ALIGN: tl.constexpr,
    SAME: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Losses and gradients of every row that is this program's."""
    flags_ptr += tl.program_id(0) * WORDS
    for n in range(tl.program_id(0), N, tl.num_programs(0)):
        row = n + tl.zeros((), tl.int64)
        start, shift = row_start(row, stride, head, ALIGN)
        x_row = x_ptr + start
        out_row = out_ptr + out_start(row, out_stride, out_head, shift, ALIGN, SAME)
        w = tl.load(weight_ptr + row).to(tl.float32)
        tile_o = tl.arange(0, BLOCK)
        o, edge = edge_offsets(shift, V, ALIGN)
        if w == 0:
            for i in range(3):
                tl.store(rows_ptr + i * N + row, 0.0)
            if NEED_GRAD:
                zero = tl.zeros([BLOCK], tl.float32)
                for i in range(inner + LAST):
                    store_tile(out_row, i * BLOCK + tile_o, zero, shift, V, ALIGN, SAME)
                tl.store(out_row + o, (o * 0).to(out_ptr.dtype.element_ty), mask=edge)
        else:
            first = load_packed(x_row, 0, shift, V, ALIGN, "evict_last", BLOCK)
            # Whatever needs no more than the support runs while the row is on its way.
            j, inside, xs, lp, bad = load_support(
                x_row + shift, ids_ptr + row * K, logprobs_ptr + row * K, K, V, BLOCK_K, UNSIGNED
            )
            flag_support(flags_ptr, j, inside, shift, V, WORDS)
            if HARD:
                label = tl.load(labels_ptr + row)
                has_label = label != ignore
                y = tl.where(has_label & (label >= 0) & (label < V), label, -1).to(tl.int32)
                x_label = tl.load(x_row + shift + y, mask=y >= 0, other=0.0).to(tl.float32)
            if NEED_GRAD:
                x_edge = tl.load(x_row + o, mask=edge, other=float("-inf")).to(tl.float32)
            rest = tl.full((), float("-inf"), tl.float32)
            if HAS_REST:
                rest = tl.load(rest_ptr + row).to(tl.float32)
            lp, lp_tail = teacher_classes(lp, rest, T, BUCKET, DIVIDE)
            top_s, mass_s = support_mass(xs, T)
            if POWER != 1:
                _, mass1_s = support_mass(xs, 1.0)
            else:
                mass1_s = mass_s

            # One read of the row: relative to the largest of its first tile, which is seldom far
            # from that of all. Where it is, exp overflows or vanishes, and the row is read again.
            x = rest_of(widened(first, x_ptr, BLOCK), flags_ptr, 0, shift, V, BLOCK)
            near = finite_or_zero(tl.max(x, 0))
            mass, mass1 = masses(
                x_row, flags_ptr, x, near, shift, V, T, inner, POWER, ALIGN, BLOCK, LAST
            )  # fmt: skip
            if (tl.minimum(mass, mass1) < LEAST) | (tl.maximum(mass, mass1) > MOST):
                near = largest(x_row, flags_ptr, shift, V, inner + LAST, ALIGN, BLOCK)
                near = finite_or_zero(near)
                again = load_packed(x_row, 0, shift, V, ALIGN, "evict_last", BLOCK)
                x = rest_of(widened(again, x_ptr, BLOCK), flags_ptr, 0, shift, V, BLOCK)
                mass, mass1 = masses(
                    x_row, flags_ptr, x, near, shift, V, T, inner, POWER, ALIGN, BLOCK, LAST
                )  # fmt: skip
            top = tl.where(mass == 0, float("-inf"), near)  # nothing in the rest

            lse, share, base = normaliser(top_s, mass_s, top, mass, T)
            lq = (xs - base) / T - lse
            soft, g, a = soft_loss(lq, lp, share, lp_tail, T, KIND)
            wrong = tl.where(bad != 0, float("nan"), 0.0)
            soft += wrong
            use = soft_weight != 0
            factor = soft_weight * w * T
            g = tl.where(use, factor * g + wrong, 0.0)
            a = tl.where(use, factor * a / tl.where(mass == 0, 1.0, mass) + wrong, 0.0)
            loss = tl.where(use, w * soft_weight * soft, 0.0)
            b = tl.zeros((), tl.float32)  # not 0 times what may be infinite or NaN
            hard = tl.zeros((), tl.float32)
            if HARD:
                lse, share, base = normaliser(top_s, mass1_s, top, mass1, 1.0)
                ce = tl.where(y >= 0, lse - (x_label - base), float("nan"))
                hard = tl.where(has_label, ce, 0.0)
                use = has_label & (hard_weight != 0)
                loss += tl.where(use, w * hard_weight * ce, 0.0)
                c = tl.where(use, w * hard_weight, 0.0)
                wrong = tl.where(use & (y < 0), float("nan"), 0.0)
                g += tl.where(use, c * tl.exp(xs - base - lse), 0.0) + wrong
                g -= tl.where(inside & (j == y), c, 0.0)
                b = c * tl.exp(share) / tl.where(mass1 == 0, 1.0, mass1)
                b = tl.where(use, b, 0.0) + wrong
            tl.store(rows_ptr + row, loss)
            tl.store(rows_ptr + N + row, soft)
            tl.store(rows_ptr + 2 * N + row, hard)

            if NEED_GRAD:
                store_gradient(
                    x_row, out_row, near, a, b, shift, V, T, inner, POWER, ALIGN, SAME, BLOCK, LAST
                )  # fmt: skip
                dtype = out_ptr.dtype.element_ty
                gradient = dense_gradient(x_edge - near, T, a, b, POWER)
                tl.store(out_row + o, gradient.to(dtype), mask=edge)
                tl.debug_barrier()
                tl.store(out_row + shift + j, g.to(dtype), mask=inside)
                if HARD:
                    g_label = dense_gradient(x_label - near, T, a, b, POWER) - c
                    loose = (y >= 0) & (tl.max(tl.where(inside & (j == y), 1, 0), 0) == 0)
                    tl.store(out_row + shift + y, g_label.to(dtype), mask=loose)
            tl.debug_barrier()  # before the flags are those of another row
