"""The Triton kernels of topk_kl: one program a row."""

from kdcache_kernels._triton import (
    at_temperature_1,
    edge_offsets,
    exponentials,
    finite_or_zero,
    jit,
    load_tile,
    out_start,
    row_start,
    store_tile,
    tl,
)
from kdcache_kernels.topk_kl._triton_row import (
    dense_gradient,
    drop_flagged,
    held_gradient,
    left_out,
    load_support,
    normaliser,
    soft_loss,
    support_mass,
    teacher_classes,
)


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, V] logits, rows of `stride` from `head` on
    out_ptr: tl.tensor,  # [N, V] gradient; may be the logits
    ids_ptr: tl.tensor,  # [N, K]
    logprobs_ptr: tl.tensor,  # [N, K]
    rest_ptr: tl.tensor,  # [N]
    weight_ptr: tl.tensor,  # [N]
    labels_ptr: tl.tensor,  # [N]
    rows_ptr: tl.tensor,  # [3, N]: loss, T^2 D, CE
    side_ptr: tl.tensor,  # [N, K + 1]: the gradient of support and label, for `overwrite_kernel`
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
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    LATER: tl.constexpr,
) -> None:
    """Losses and gradient of one row."""
    row = tl.program_id(0).to(tl.int64)
    start, shift = row_start(row, stride, head, ALIGN)
    x_ptr += start
    out_ptr += out_start(row, out_stride, out_head, shift, ALIGN, SAME)
    ids_ptr += row * K
    w = tl.load(weight_ptr + row).to(tl.float32)
    tile_o = tl.arange(0, BLOCK)
    o, edge = edge_offsets(shift, V, ALIGN)
    if w == 0:
        for i in range(3):
            tl.store(rows_ptr + i * N + row, 0.0)
        if NEED_GRAD:
            zero = tl.zeros([BLOCK], tl.float32)
            for i in range(BLOCKS):
                store_tile(out_ptr, i * BLOCK + tile_o, zero, shift, V, ALIGN, SAME)
            tl.store(out_ptr + o, (o * 0).to(out_ptr.dtype.element_ty), mask=edge)
    else:
        if BLOCKS == 1:
            tile = load_tile(x_ptr, tile_o, shift, V, ALIGN, "")
        # Whatever needs no more than the support runs while the tile is on its way.
        j, inside, xs, lp, bad = load_support(
            x_ptr + shift, ids_ptr, logprobs_ptr + row * K, K, V, BLOCK_K, UNSIGNED
        )
        if HARD:
            label = tl.load(labels_ptr + row)
            has_label = label != ignore
            y = tl.where(has_label & (label >= 0) & (label < V), label, -1).to(tl.int32)
            x_label = tl.load(x_ptr + shift + y, mask=y >= 0, other=0.0).to(tl.float32)
        if NEED_GRAD:
            x_edge = tl.load(x_ptr + o, mask=edge, other=float("-inf")).to(tl.float32)
        rest = tl.full((), float("-inf"), tl.float32)
        if HAS_REST:
            rest = tl.load(rest_ptr + row).to(tl.float32)
        lp, lp_tail = teacher_classes(lp, rest, T, BUCKET, DIVIDE)
        top_s, mass_s = support_mass(xs, T)
        if POWER != 1:
            _, mass1_s = support_mass(xs, 1.0)
        else:
            mass1_s = mass_s

        if BLOCKS == 1:
            words = left_out(ids_ptr, K, V, shift, 0, BLOCK // 32, UNSIGNED)
            x = drop_flagged(tile, words, BLOCK)
            top = tl.max(x, 0)
            x -= finite_or_zero(top)
            e = exponentials(x, T)
            mass = tl.sum(e, 0)
            mass1 = mass
            if POWER != 1:
                mass1 = tl.sum(at_temperature_1(e, x, POWER), 0)
        else:
            top = tl.full((), float("-inf"), tl.float32)
            mass = tl.zeros((), tl.float32)
            mass1 = tl.zeros((), tl.float32)
            for i in range(BLOCKS):
                tile = load_tile(x_ptr, i * BLOCK + tile_o, shift, V, ALIGN, "evict_last")
                words = left_out(ids_ptr, K, V, shift, i * BLOCK, BLOCK // 32, UNSIGNED)
                x = drop_flagged(tile, words, BLOCK)
                high = tl.maximum(top, tl.max(x, 0))
                x -= finite_or_zero(high)
                e = exponentials(x, T)
                down = top - finite_or_zero(high)
                mass = mass * exponentials(down, T) + tl.sum(e, 0)
                if POWER != 1:
                    e = at_temperature_1(e, x, POWER)
                    mass1 = mass1 * tl.exp(down) + tl.sum(e, 0)
                top = high
            if POWER == 1:
                mass1 = mass

        lse, lse_rest, base = normaliser(top_s, mass_s, top, mass, T)
        lq = (xs - base) / T - lse
        soft, g, a = soft_loss(lq, lp, lse_rest - lse, lp_tail, T, KIND)
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
            lse, lse_rest, base = normaliser(top_s, mass1_s, top, mass1, 1.0)
            ce = tl.where(y >= 0, lse - (x_label - base), float("nan"))
            hard = tl.where(has_label, ce, 0.0)
            use = has_label & (hard_weight != 0)
            loss += tl.where(use, w * hard_weight * ce, 0.0)
            c = tl.where(use, w * hard_weight, 0.0)
            wrong = tl.where(use & (y < 0), float("nan"), 0.0)
            g += tl.where(use, c * tl.exp(xs - base - lse), 0.0) + wrong
            g -= tl.where(inside & (j == y), c, 0.0)
            b = c * tl.exp(lse_rest - lse) / tl.where(mass1 == 0, 1.0, mass1)
            b = tl.where(use, b, 0.0) + wrong
        tl.store(rows_ptr + row, loss)
        tl.store(rows_ptr + N + row, soft)
        tl.store(rows_ptr + 2 * N + row, hard)

        if NEED_GRAD:
            dtype = out_ptr.dtype.element_ty
            base = finite_or_zero(top)
            if BLOCKS == 1:
                if POWER == 0:
                    gradient = dense_gradient(x, T, a, b, POWER)
                else:
                    gradient = held_gradient(e, a, b, POWER)
                store_tile(out_ptr, tile_o, gradient, shift, V, ALIGN, SAME)
            else:
                for i in range(BLOCKS):
                    v = (BLOCKS - 1 - i) * BLOCK + tile_o  # what was read last is still in cache
                    tile = load_tile(x_ptr, v, shift, V, ALIGN, "evict_first")
                    gradient = dense_gradient(tile.to(tl.float32) - base, T, a, b, POWER)
                    store_tile(out_ptr, v, gradient, shift, V, ALIGN, SAME)
            gradient = dense_gradient(x_edge - base, T, a, b, POWER)
            tl.store(out_ptr + o, gradient.to(dtype), mask=edge)
            if HARD:
                g_label = dense_gradient(x_label - base, T, a, b, POWER) - c
            k = tl.arange(0, BLOCK_K)
            if LATER:  # the barrier below would not reach the other blocks of a cluster
                tl.store(side_ptr + row * (K + 1) + k, g, mask=k < K)
                if HARD:
                    tl.store(side_ptr + row * (K + 1) + K, g_label)
            else:
                tl.debug_barrier()
                tl.store(out_ptr + shift + j, g.to(dtype), mask=inside)
                if HARD:
                    loose = (y >= 0) & (tl.max(tl.where(inside & (j == y), 1, 0), 0) == 0)
                    tl.store(out_ptr + shift + y, g_label.to(dtype), mask=loose)


@jit
def overwrite_kernel(
    out_ptr: tl.tensor,  # [N, V], rows of `stride` from `head` on
    ids_ptr: tl.tensor,  # [N, K]
    weight_ptr: tl.tensor,  # [N]
    labels_ptr: tl.tensor,  # [N]
    side_ptr: tl.tensor,  # [N, K + 1]
    V: tl.tensor,
    K: tl.constexpr,
    stride: tl.tensor,
    head: tl.tensor,
    ignore: tl.tensor,
    BLOCK_K: tl.constexpr,
    UNSIGNED: tl.constexpr,
    HARD: tl.constexpr,
) -> None:
    """Write the gradient of the support and of the label of one row."""
    row = tl.program_id(0).to(tl.int64)
    out_ptr += row * stride + head
    side_ptr += row * (K + 1)
    dtype = out_ptr.dtype.element_ty
    if tl.load(weight_ptr + row) != 0:
        k = tl.arange(0, BLOCK_K)
        j = tl.load(ids_ptr + row * K + k, mask=k < K, other=-1)
        if UNSIGNED:
            j = j.to(tl.int32) & 0xFFFF
        inside = (k < K) & (j >= 0) & (j < V)
        g = tl.load(side_ptr + k, mask=inside, other=0.0)
        tl.store(out_ptr + j, g.to(dtype), mask=inside)
        if HARD:
            y = tl.load(labels_ptr + row)
            valid = (y != ignore) & (y >= 0) & (y < V)
            loose = valid & (tl.max(tl.where(inside & (j == y), 1, 0), 0) == 0)
            tl.store(out_ptr + y, tl.load(side_ptr + K).to(dtype), mask=loose)
