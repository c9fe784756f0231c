"""topk_encode on GPUs: torch.topk finds the largest logits, one pass the statistics of the rest.

Logits that equal the k-th largest are alike to the statistics, so that pass has no order to keep.
Where there are more of them than there is room for, which is seldom, the row is read again for the
first ones.
"""

import torch
from torch import Tensor

from kdcache_kernels._triton import (
    aligned_rows,
    at_temperature_1,
    exponentials,
    finite_or_zero,
    jit,
    load_tile,
    on_device,
    power_of,
    power_of_2,
    row_start,
    rows_of,
    tl,
)

BLOCK = 2048  # elements at once
NUM_WARPS = 4
REGISTERS = 128
FAR = tl.constexpr(60.0)  # nats; what lies further below the k-th logit has a base of its own


def topk_encode(
    logits: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.topk_encode`; nothing is read back."""
    values, ids = logits.topk(k, 1)
    rest = split(logits, values, ids, temperature)
    ids = ids.sort(1).values
    x = logits.gather(1, ids).float()
    x, order = x.sort(dim=1, descending=True, stable=True)  # ids ascend, so ties stay by id
    ids, top = ids.gather(1, order), x[:, :1]
    # Relative to the largest logit, or the normaliser of large ones would lose their digits.
    lse_rest = (rest[0] - top[:, 0]) + rest[1].log()
    x = x - top
    lse = torch.logaddexp(x.logsumexp(1), lse_rest)
    lse_rest_t = (rest[0] - top[:, 0]) / temperature + rest[2].log()
    return ids, x - lse[:, None], lse_rest - lse, lse_rest_t - lse / temperature, lse + top[:, 0]


def split(logits: Tensor, values: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Of the logits outside the support, [3, N]: a value near the largest, and two masses.

    The masses are the sums of exp(x - value) and of exp((x - value) / T). `values` and `ids` [N, k]
    are those of torch.topk; of ids whose logits equal the last the first ones take the place.
    """
    n, v = logits.shape
    rest = torch.empty((3, n), dtype=torch.float32, device=logits.device)
    last = values[:, -1].contiguous()
    above = (values > last[:, None]).sum(1, dtype=torch.int32)
    x = aligned_rows(rows_of(logits))
    block = min(BLOCK, max(64, power_of_2(v + x.align - 1)))
    if n:
        with on_device(logits):
            rows_kernel[(n,)](
                x.base,
                last,
                above,
                ids,
                rest,
                n,
                v,
                ids.shape[1],
                x.stride,
                x.head,
                temperature,
                -(-(v + x.align - 1) // block),
                POWER=power_of(temperature),
                ALIGN=x.align,
                BLOCK=block,
                num_warps=NUM_WARPS,
                maxnreg=REGISTERS,
            )
    return rest


@jit
def below(
    x_ptr: tl.tensor,
    last: tl.tensor,
    base: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    T: tl.tensor,
    blocks: tl.tensor,
    POWER: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Of the logits below the last: the largest, the masses; and how many equal it."""
    tops = tl.full([BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    sums_t = tl.zeros([BLOCK], tl.float32)
    equals = tl.zeros([BLOCK], tl.int32)
    for i in range(blocks):
        o = i * BLOCK + tl.arange(0, BLOCK)
        x = load_tile(x_ptr, o, shift, V, ALIGN, "").to(tl.float32)
        inside = (o >= shift) & (o < shift + V)
        equals += (inside & (x == last)).to(tl.int32)
        x = tl.where(inside & ((x >= last) == 0), x, float("-inf"))
        tops = tl.maximum(tops, x)
        x -= base
        e = exponentials(x, T)
        sums_t += e
        sums += at_temperature_1(e, x, POWER)
    return tl.max(tops, 0), tl.sum(sums, 0), tl.sum(sums_t, 0), tl.sum(equals, 0)


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, V], rows of `stride` from `head` on
    last_ptr: tl.tensor,  # [N], the k-th largest
    above_ptr: tl.tensor,  # [N], how many are larger
    ids_ptr: tl.tensor,  # [N, K]
    rest_ptr: tl.tensor,  # [3, N]
    N: tl.tensor,
    V: tl.tensor,
    K: tl.tensor,
    stride: tl.tensor,
    head: tl.tensor,
    T: tl.tensor,
    blocks: tl.tensor,
    POWER: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Statistics of the rest of one row, and its ids where there is a choice."""
    row = tl.program_id(0).to(tl.int64)
    start, shift = row_start(row, stride, head, ALIGN)
    x_ptr += start
    last = tl.load(last_ptr + row).to(tl.float32)
    above = tl.load(above_ptr + row)
    room = K - above  # for logits that equal the last
    base = finite_or_zero(last)
    top, mass, mass_t, equals = below(
        x_ptr, last, base, shift, V, T, blocks, POWER, ALIGN, BLOCK
    )  # fmt: skip
    if equals > room:
        ids_ptr += row * K + above
        found = room * 0
        for i in range(blocks):
            o = i * BLOCK + tl.arange(0, BLOCK)
            x = load_tile(x_ptr, o, shift, V, ALIGN, "").to(tl.float32)
            equal = ((o >= shift) & (o < shift + V) & (x == last)).to(tl.int32)
            place = found + tl.cumsum(equal, 0) - 1
            tl.store(ids_ptr + place, (o - shift).to(tl.int64), mask=(equal != 0) & (place < room))
            found += tl.sum(equal, 0)
        surplus = (equals - room).to(tl.float32)
        mass += surplus * exponentials(last - base, 1.0)
        mass_t += surplus * exponentials(last - base, T)
        top = last
    elif last - top > tl.minimum(T, 1.0) * FAR:
        base = finite_or_zero(top)
        _top, mass, mass_t, _equals = below(
            x_ptr, last, base, shift, V, T, blocks, POWER, ALIGN, BLOCK
        )  # fmt: skip
    tl.store(rest_ptr + row, tl.where(top == float("-inf"), top, base))
    tl.store(rest_ptr + N + row, mass)
    tl.store(rest_ptr + 2 * N + row, mass_t)
