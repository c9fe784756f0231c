"""topk_encode on GPUs: torch.topk finds the k-th largest logit, one pass does the rest.

Given that threshold the pass takes what is above it and, of the logits that equal it, as many of
the first ones as there is room for; all others go into the statistics of the tail. So ties need no
second look, and the logits are read once more than torch.topk reads them.
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
    max_registers,
    on_device,
    power_of,
    power_of_2,
    row_start,
    rows_of,
    tl,
)

BLOCK = 4096  # elements at once


def topk_encode(
    logits: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.topk_encode`; nothing is read back."""
    values = logits.topk(k, 1).values
    last = values[:, -1].contiguous()
    above = (values > last[:, None]).sum(1, dtype=torch.int32)
    ids, rest = split(logits, last, above, k, temperature)
    x = logits.gather(1, ids).float()
    x, order = x.sort(dim=1, descending=True, stable=True)  # ids ascend, so ties stay by id
    ids, top = ids.gather(1, order), x[:, :1]
    # Relative to the largest logit, or the normaliser of large ones would lose their digits.
    lse_rest = (rest[0] - top[:, 0]) + rest[1].log()
    x = x - top
    lse = torch.logaddexp(x.logsumexp(1), lse_rest)
    lse_rest_t = (rest[0] - top[:, 0]) / temperature + rest[2].log()
    return ids, x - lse[:, None], lse_rest - lse, lse_rest_t - lse / temperature, lse + top[:, 0]


def split(
    logits: Tensor, last: Tensor, above: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Ids of the k largest, ascending, [N, k] int64; of the rest, [3, N]: largest, masses.

    `last` [N] is the k-th largest logit, `above` [N] how many are larger. The masses are the sums
    of exp(x - largest) and of exp((x - largest) / T).
    """
    n, v = logits.shape
    ids = torch.zeros((n, k), dtype=torch.int64, device=logits.device)
    rest = torch.empty((3, n), dtype=torch.float32, device=logits.device)
    x = aligned_rows(rows_of(logits))
    block = min(BLOCK, max(64, power_of_2(v + x.align - 1)))
    num_warps = max(1, block // 512)
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
                k,
                x.stride,
                x.head,
                temperature,
                POWER=power_of(temperature),
                ALIGN=x.align,
                BLOCK=block,
                BLOCKS=-(-(v + x.align - 1) // block),
                num_warps=num_warps,
                maxnreg=max_registers(num_warps),
            )
    return ids, rest


@jit
def rows_kernel(
    x_ptr: tl.tensor,  # [N, V], rows of `stride` from `head` on
    last_ptr: tl.tensor,  # [N]
    above_ptr: tl.tensor,  # [N]
    ids_ptr: tl.tensor,  # [N, K]
    rest_ptr: tl.tensor,  # [3, N]
    N: tl.tensor,
    V: tl.tensor,
    K: tl.tensor,
    stride: tl.tensor,
    head: tl.tensor,
    T: tl.tensor,
    POWER: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """Split one row into its k largest and the rest."""
    row = tl.program_id(0).to(tl.int64)
    start, shift = row_start(row, stride, head, ALIGN)
    x_ptr += start
    last = tl.load(last_ptr + row).to(tl.float32)
    room = K - tl.load(above_ptr + row)  # for logits that equal the last
    taken = room * 0
    equals = room * 0
    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.zeros((), tl.float32)
    mass_t = tl.zeros((), tl.float32)
    for i in range(BLOCKS):
        o = i * BLOCK + tl.arange(0, BLOCK)
        x = load_tile(x_ptr, o, shift, V, ALIGN, "").to(tl.float32)
        inside = (o >= shift) & (o < shift + V)
        equal = inside & (x == last)
        rank = equals + tl.cumsum(equal.to(tl.int32), 0)
        keep = (inside & (x > last)) | (equal & (rank <= room))
        place = taken + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(ids_ptr + row * K + place, (o - shift).to(tl.int64), mask=keep)
        equals += tl.sum(equal.to(tl.int32), 0)
        taken += tl.sum(keep.to(tl.int32), 0)
        x = tl.where(keep | (inside == 0), float("-inf"), x)
        high = tl.maximum(top, tl.max(x, 0))
        x -= finite_or_zero(high)
        down = top - finite_or_zero(high)
        e = exponentials(x, T)
        mass_t = mass_t * exponentials(down, T) + tl.sum(e, 0)
        mass = mass * exponentials(down, 1.0) + tl.sum(at_temperature_1(e, x, POWER), 0)
        top = high
    tl.store(rest_ptr + row, top)
    tl.store(rest_ptr + N + row, mass)
    tl.store(rest_ptr + 2 * N + row, mass_t)
