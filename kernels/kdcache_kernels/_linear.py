"""What the fused linear ops share: a head whose logits exist for one chunk of rows at a time.

Letters: N rows, V classes, H width of the hidden states X, W [V, H] the head's weight, b its bias.
A chunk's logits `X W^T + b` are written into one buffer, turned into the gradient G there, and used
up: `dX = G W`, `dW += G^T X`, `db += sum G`. So there are three matrix products and no [N, V].
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import compute_dtype, gradient_dtype
from kdcache_kernels._device import free_bytes
from kdcache_kernels._head import Products
from kdcache_kernels._rows import Rows, empty_rows

Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Loss, dX, dW, db, soft rows, hard rows; a gradient that is not needed has no rows."""

Chunk: TypeAlias = slice | Tensor
"""Which rows; indices where rows between them are left out."""

RowKernel: TypeAlias = Callable[[Chunk, Tensor, Tensor | None], Rows]
"""(rows, their logits, where the gradient goes) to (loss, soft rows, hard rows)."""

# dW is read and written once a chunk, so chunks have to be long. Measured on a CPU, V = 30522:
# 128 rows take 1.4 times as long as 512, which are as fast as whole logits. A GPU multiplies so
# fast that the traffic of dW hides only behind some 4,000 rows, whatever V and H are.
# Bytes and rows at most, and what rows are a multiple of where there are so many: the tiles of a
# GPU's products are 128 or 256 of them high, and one that is not full takes as long.
CHUNK = {"cpu": (2**26, sys.maxsize, 1)}
CHUNK_ELSEWHERE = (2**30, 4096, 256)
LEAST_ROWS = 256
# Of the memory that is free when all else is allocated a chunk takes a quarter at most. linear_kl
# has as many rows of the teacher's, which in float32 take twice the bytes of bfloat16; the last
# quarter is for what row kernels and products need, and for holes in the allocator's memory.
SHARE = 4
ALIGNMENT = 64  # elements; rows that start aligned are read 128 bits at a time
# Measured on an H100: the three products of V = 30522 classes take three times as long as those of
# 30528, of 50257 six times as long as those of 50304. So there a head gets classes of zeros.
PADDED = {"cuda"}


class Head(NamedTuple):
    """A head in the dtype of its matrix products."""

    weight: Tensor
    bias: Tensor | None

    def logits(self, x: Tensor, out: Tensor) -> Tensor:
        """Write `x W^T + b` into the first rows of `out` [C, V]; return those."""
        out = out[: x.shape[0]]
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)


def cast_head(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Head:
    """The head in `dtype`, padded where that is faster; the same memory where that will do."""
    return Head(_padded_rows(weight, dtype), None if bias is None else _padded_rows(bias, dtype))


def _padded_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` [V, ...] in `dtype`, with rows of zeros after it where its device is in `PADDED`."""
    rows = columns(len(x), x.device)
    if rows == len(x):
        return x.to(dtype)
    whole = x.new_empty((rows, *x.shape[1:]), dtype=dtype)
    whole[: len(x)] = x
    whole[len(x) :] = 0
    return whole


def columns(v: int, device: torch.device) -> int:
    """Columns of the logits of `v` classes, those of padding included."""
    return _padded(v) if device.type in PADDED else v


def chunk_rows(
    n: int,
    v: int,
    dtype: torch.dtype,
    device: torch.device,
    chunk_bytes: int,
    free: int | None = None,
) -> int:
    """Rows whose logits fill `chunk_bytes`, evened out over the chunks, in whole tiles.

    With `chunk_bytes` 0 they are what is fast on the device, as far as its `free` bytes allow,
    which are None where nobody knows them.
    """
    row_bytes = _padded(v) * dtype.itemsize
    size, most, tile = CHUNK.get(device.type, CHUNK_ELSEWHERE)
    if chunk_bytes:
        rows = max(1, chunk_bytes // row_bytes)
    else:
        rows = min(most, max(LEAST_ROWS, size // row_bytes))
        rows = rows if free is None else fitting_rows(rows, _padded(v), dtype.itemsize, free)
    return evened(n, rows, tile)


def evened(n: int, most: int, tile: int) -> int:
    """Rows of a chunk of `n`: at most `most`, a multiple of `tile` unless there is but one."""
    if n <= most:
        return n
    tile = tile if tile <= most else 1
    most -= most % tile
    chunks = -(-n // most)
    return -(-n // (chunks * tile)) * tile


def fitting_rows(rows: int, columns: int, item: int, free: int) -> int:
    """`rows` of `columns` of `item` bytes, halved until they are one `SHARE`th of the `free` bytes.

    Halved, lest a little more or less of free memory give other chunks, and so other last bits of
    the gradients. Fewer than `LEAST_ROWS` they never are: where those are too many, there is no
    memory to train in.
    """
    while rows > LEAST_ROWS and SHARE * rows * columns * item > free:
        rows = max(LEAST_ROWS, rows // 2)
    return rows


def chunk_buffer(rows: int, v: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised [rows, V] whose rows start aligned."""
    return empty((rows, _padded(v)), dtype, device)[:, :v]


def _padded(v: int) -> int:
    return -(-v // ALIGNMENT) * ALIGNMENT


def run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weight: Tensor,
    how: Products,
    kernel: RowKernel,
) -> Outputs:
    """Send `hidden` through the head a chunk at a time and let `kernel` judge the logits.

    A row of `row_weight` 0 may hold NaN: it adds nothing to any gradient.
    """
    v, dtype = weight.shape[0], how.dtype
    gradients = _Gradients(hidden, weight, how)
    soft, hard = (row_weight.new_zeros(len(row_weight)) for _ in range(2))
    total = row_weight.new_zeros(())
    with torch.autocast(hidden.device.type, enabled=False):
        head = cast_head(weight, bias, dtype)
        chunks = _chunks(row_weight, v, how)  # of the memory that is left by now
        size = max((_length(chunk) for chunk in chunks), default=0)
        buffer = chunk_buffer(size, columns(v, hidden.device), dtype, hidden.device)
        for chunk in chunks:
            # G is 0 in a row of weight 0, but 0 times NaN is NaN.
            x = hidden[chunk].to(dtype).masked_fill((row_weight[chunk] == 0)[:, None], 0)
            whole = head.logits(x, buffer)  # 0 in the columns of padding, and so is G
            logits = whole[:, :v]
            out = logits if how.needs_any else None
            loss, soft[chunk], hard[chunk] = kernel(chunk, logits, out)
            total += loss
            gradients.add(chunk, whole, x, head.weight)
    return total, *gradients.finished(), soft, hard


def live_rows(row_weight: Tensor) -> Tensor | None:
    """Indices of the rows of weight other than 0; None: all, or to find them would synchronise."""
    if row_weight.device.type != "cpu":
        return None
    live = row_weight.nonzero()[:, 0]
    return None if len(live) == len(row_weight) else live


def _chunks(row_weight: Tensor, v: int, how: Products) -> list[Chunk]:
    """The rows that count, cut."""
    live = live_rows(row_weight)
    n = len(row_weight) if live is None else len(live)
    asked = not how.chunk_bytes and n > LEAST_ROWS  # or it decides nothing
    free = free_bytes(row_weight) if asked else None
    size = chunk_rows(n, v, how.dtype, row_weight.device, how.chunk_bytes, free)
    parts = [slice(start, min(start + size, n)) for start in range(0, n, max(size, 1))]
    return [part if live is None else live[part] for part in parts]


def _length(chunk: Chunk) -> int:
    return int(chunk.stop - chunk.start) if isinstance(chunk, slice) else len(chunk)


class _Gradients:
    """dX in the dtype of `gradient_dtype`; dW and db in float32 (float64) whatever the head's."""

    def __init__(self, hidden: Tensor, weight: Tensor, how: Products) -> None:
        (n, h), v, exact = hidden.shape, weight.shape[0], compute_dtype(hidden)
        self.how, self.empty = how, True
        # Rows that no chunk holds stay 0.
        shape = (n if how.need_hidden else 0, h)
        self.hidden = hidden.new_zeros(shape, dtype=gradient_dtype(hidden))
        self.classes = v  # without padding
        rows = columns(v, hidden.device) if how.need_weight else 0
        self.weight = empty((rows, h), exact, hidden.device)
        self.bias = hidden.new_zeros(v if how.need_bias else 0, dtype=exact)

    def add(self, chunk: Chunk, g: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add those of one chunk, from its gradient `g` and its hidden states `x` [C, H].

        `g` is [C, V] and padding, as is `weight` [V, H].
        """
        if self.how.need_hidden and isinstance(chunk, slice):
            product(self.hidden[chunk], g, weight)
        elif self.how.need_hidden:
            self.hidden[chunk] = torch.mm(g, weight).to(self.hidden.dtype)
        if self.how.need_weight and self.empty:
            product(self.weight, g.t(), x)
        elif self.how.need_weight:
            _add_product(self.weight, g.t(), x)
        self.empty = False
        if self.how.need_bias:
            self.bias += g[:, : len(self.bias)].sum(0, dtype=self.bias.dtype)

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three gradients."""
        if self.empty:
            self.weight.zero_()
        # Detached: a view made without grad could not be changed in place.
        return self.hidden, self.weight[: self.classes].detach(), self.bias


def product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out = a b`; of 16-bit factors (never on a CPU) straight into float32."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.dtype.itemsize < out.dtype.itemsize:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a b`, summed in the dtype of `total` whatever that of the factors."""
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def fake(hidden: Tensor, weight: Tensor, *others: Any) -> Outputs:
    """Shapes and dtypes of `run`; the last argument is its `how`."""
    how: Products = others[-1]
    (n, h), v, exact = hidden.shape, weight.shape[0], compute_dtype(hidden)
    loss, soft, hard = empty_rows(hidden)
    dx = hidden.new_empty((n if how.need_hidden else 0, h), dtype=gradient_dtype(hidden))
    dw = hidden.new_empty((v if how.need_weight else 0, h), dtype=exact)
    db = hidden.new_empty((v if how.need_bias else 0,), dtype=exact)
    return loss, dx, dw, db, soft, hard
