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

from kdcache_kernels._autograd import rescaled
from kdcache_kernels._buffer import empty
from kdcache_kernels._checks import (
    FLOATS,
    compute_dtype,
    gradient_dtype,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
Outputs: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Loss, dX, dW, db, soft rows, hard rows; a gradient that is not needed has no rows."""

Chunk: TypeAlias = slice | Tensor
"""Which rows; indices where rows between them are left out."""

RowKernel: TypeAlias = Callable[[Chunk, Tensor, Tensor | None], Rows]
"""(rows, their logits, where the gradient goes) to (loss, soft rows, hard rows)."""

# dW is read and written once a chunk, so chunks have to be long. Measured on a CPU, V = 30522:
# 128 rows take 1.4 times as long as 512, which are as fast as whole logits. A GPU multiplies so
# fast that the traffic of dW hides only behind some 4,000 rows, whatever V and H are.
# Bytes and rows at most.
CHUNK = {"cpu": (2**26, sys.maxsize)}
CHUNK_ELSEWHERE = (2**30, 4096)
LEAST_ROWS = 256
ALIGNMENT = 64  # elements; rows that start aligned are read 128 bits at a time
# Measured on an H100: the three products of V = 30522 classes take three times as long as those of
# 30528, of 50257 six times as long as those of 50304. So there a head gets classes of zeros.
PADDED = {"cuda"}


class Need(NamedTuple):
    """Which gradients to make."""

    hidden: bool
    weight: bool
    bias: bool


def need(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Need:
    """The gradients that autograd would ask for."""
    on = torch.is_grad_enabled()
    return Need(
        on and hidden.requires_grad,
        on and weight.requires_grad,
        on and bias is not None and bias.requires_grad,
    )


def check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = ""
) -> tuple[int, int]:
    """Raise ValueError or TypeError unless `hidden` can go through the head; return (N, V).

    `prefix` comes before the names of the arguments in messages.
    """
    names = [f"{prefix}{name}" for name in ("hidden", "weight", "bias")]
    require_matrix(names[0], hidden)
    require_matrix(names[1], weight)
    require_dtype(names[0], hidden, FLOATS)
    require_dtype(names[1], weight, FLOATS)
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{names[1]} must be [V, H] with H = {hidden.shape[1]}, the width of {names[0]}; "
            f"got {tuple(weight.shape)}"
        )
    require_device(names[1], weight, hidden, names[0])
    v = weight.shape[0]
    if bias is not None:
        require_shape(names[2], bias, (v,))
        require_dtype(names[2], bias, FLOATS)
        require_device(names[2], bias, hidden, names[0])
    return hidden.shape[0], v


def gemm_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype of the matrix products and of the chunk's logits.

    That of autocast if it is on, else that both sides have (TypeError if they differ). float16
    becomes float32, or gradients would underflow before a loss scaler's factor arrives; so does
    bfloat16 on a CPU, where most have no bfloat16 units and torch no such product into float32.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        dtype = torch.get_autocast_dtype(kind)
    elif hidden.dtype == weight.dtype:
        dtype = hidden.dtype
    else:
        raise TypeError(
            f"hidden and weight must have one dtype; got {hidden.dtype} and {weight.dtype}: "
            "convert one with .to(), or use torch.autocast"
        )
    if dtype == torch.float16 or (dtype == torch.bfloat16 and kind == "cpu"):
        return torch.float32
    return dtype


def check_chunk_bytes(chunk_bytes: int | None) -> int:
    """`chunk_bytes`, 0 for the default of the device; ValueError unless positive."""
    if chunk_bytes is not None and chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes must be positive; got {chunk_bytes}")
    return chunk_bytes or 0


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


def chunk_rows(n: int, v: int, dtype: torch.dtype, device: torch.device, chunk_bytes: int) -> int:
    """Rows whose logits fill `chunk_bytes`, evened out over the chunks."""
    row_bytes = _padded(v) * dtype.itemsize
    if chunk_bytes:
        rows = max(1, chunk_bytes // row_bytes)
    else:
        size, most = CHUNK.get(device.type, CHUNK_ELSEWHERE)
        rows = min(most, max(LEAST_ROWS, size // row_bytes))
    chunks = -(-n // rows)
    return -(-n // chunks) if chunks else 0


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
    needs: Need,
    dtype: torch.dtype,
    chunk_bytes: int,
    kernel: RowKernel,
) -> Outputs:
    """Send `hidden` through the head a chunk at a time and let `kernel` judge the logits.

    A row of `row_weight` 0 may hold NaN: it adds nothing to any gradient.
    """
    v = weight.shape[0]
    chunks = _chunks(row_weight, v, dtype, chunk_bytes)
    size = max((_length(chunk) for chunk in chunks), default=0)
    buffer = chunk_buffer(size, columns(v, hidden.device), dtype, hidden.device)
    gradients = _Gradients(hidden, weight, needs)
    soft, hard = (row_weight.new_zeros(len(row_weight)) for _ in range(2))
    total = row_weight.new_zeros(())
    with torch.autocast(hidden.device.type, enabled=False):
        head = cast_head(weight, bias, dtype)
        for chunk in chunks:
            # G is 0 in a row of weight 0, but 0 times NaN is NaN.
            x = hidden[chunk].to(dtype).masked_fill((row_weight[chunk] == 0)[:, None], 0)
            whole = head.logits(x, buffer)  # 0 in the columns of padding, and so is G
            logits = whole[:, :v]
            out = logits if any(needs) else None
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


def _chunks(row_weight: Tensor, v: int, dtype: torch.dtype, chunk_bytes: int) -> list[Chunk]:
    """The rows that count, cut."""
    live = live_rows(row_weight)
    n = len(row_weight) if live is None else len(live)
    size = chunk_rows(n, v, dtype, row_weight.device, chunk_bytes)
    parts = [slice(start, min(start + size, n)) for start in range(0, n, max(size, 1))]
    return [part if live is None else live[part] for part in parts]


def _length(chunk: Chunk) -> int:
    return int(chunk.stop - chunk.start) if isinstance(chunk, slice) else len(chunk)


class _Gradients:
    """dX in the dtype of `gradient_dtype`; dW and db in float32 (float64) whatever the head's."""

    def __init__(self, hidden: Tensor, weight: Tensor, needs: Need) -> None:
        (n, h), v, exact = hidden.shape, weight.shape[0], compute_dtype(hidden)
        self.needs, self.empty = needs, True
        # Rows that no chunk holds stay 0.
        shape = (n if needs.hidden else 0, h)
        self.hidden = hidden.new_zeros(shape, dtype=gradient_dtype(hidden))
        self.classes = v  # without padding
        rows = columns(v, hidden.device) if needs.weight else 0
        self.weight = empty((rows, h), exact, hidden.device)
        self.bias = hidden.new_zeros(v if needs.bias else 0, dtype=exact)

    def add(self, chunk: Chunk, g: Tensor, x: Tensor, weight: Tensor) -> None:
        """Add those of one chunk, from its gradient `g` and its hidden states `x` [C, H].

        `g` is [C, V] and padding, as is `weight` [V, H].
        """
        if self.needs.hidden and isinstance(chunk, slice):
            product(self.hidden[chunk], g, weight)
        elif self.needs.hidden:
            self.hidden[chunk] = torch.mm(g, weight).to(self.hidden.dtype)
        if self.needs.weight and self.empty:
            product(self.weight, g.t(), x)
        elif self.needs.weight:
            _add_product(self.weight, g.t(), x)
        self.empty = False
        if self.needs.bias:
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


def fake(hidden: Tensor, weight: Tensor, needs: Need) -> Outputs:
    """Shapes and dtypes of `run`."""
    (n, h), v, exact = hidden.shape, weight.shape[0], compute_dtype(hidden)
    gradient = hidden.new_empty((n if needs.hidden else 0, h), dtype=gradient_dtype(hidden))
    made = [
        hidden.new_empty(shape, dtype=exact)
        for shape in ((), (v if needs.weight else 0, h), (v if needs.bias else 0,), (n,), (n,))
    ]
    return made[0], gradient, *made[1:]  # type: ignore[return-value]  # mypy counts no list


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], outputs: Outputs, needs: Need) -> None:
    """Save the gradients made in the forward pass; the first three inputs are X, W and b."""
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*outputs[1:4])
    ctx.made = needs
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]


def input_gradients(ctx: Any, name: str, grad_loss: Tensor | None) -> list[Tensor | None]:
    """The saved gradients of X, W and b times that of the loss; None where not asked for.

    Raises RuntimeError if one is asked for that the forward pass did not make.
    """
    if grad_loss is None:
        return [None, None, None]
    found: list[Tensor | None] = []
    for wanted, made, gradient, dtype in zip(
        ctx.needs_input_grad[:3], ctx.made, ctx.saved_tensors, ctx.dtypes, strict=True
    ):
        if wanted and not made:
            raise RuntimeError(f"{name} ran without this gradient: nothing to propagate")
        found.append(rescaled(name, gradient, grad_loss, dtype) if wanted else None)
    return found
