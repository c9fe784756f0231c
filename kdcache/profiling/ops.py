"""What kdcache's ops do in a step: their time, the bytes they have to move, and their products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdcache.bench.head_parts import HeadShape, head_flops
from kdcache.bench.timing import (
    Stopwatch,
    copy_probe,
    gemm_probe,
    interleave,
    probe_dtypes,
)
from kdcache.manifest import Json
from kdcache.profiling.recorder import Clock

REPEATS = 5
"""Of the copy and the product that the limits are measured by."""


def _head(args: Sequence[Any], made: Sequence[Tensor], teacher_width: int = 0) -> int:
    """Products of a head: the logits, and the gradients that were asked for."""
    hidden, weight = args[:2]
    gradients = (bool(gradient.numel()) for gradient in made[1:4])
    shape = HeadShape(
        rows=len(hidden),
        classes=len(weight),
        width=weight.shape[1],
        item=weight.itemsize,
        chunk=len(hidden),
        teacher_width=teacher_width,
        **dict(zip(("hidden", "weight", "bias"), gradients, strict=True)),
    )
    return head_flops(shape)


def _both_heads(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """The same, and the logits of the teacher's head."""
    return _head(args, made, teacher_width=args[4].shape[1])


def _relations(args: Sequence[Any], made: Sequence[Tensor]) -> int:
    """Products of tokens with tokens of each document: both sides', and the gradients."""
    student, keys, teacher, _, lengths = args[:5]
    of_student = 2 if keys is None else 1
    gradients = [bool(gradient.numel()) for gradient in made[1:3]]
    width = student.shape[1] * (1 + of_student * gradients[0] + gradients[1]) + teacher.shape[1]
    return int(2 * lengths.square().sum().item() * width)


FLOPS: dict[str, Callable[[Sequence[Any], Sequence[Tensor]], int]] = {
    "linear_topk_kl": _head,
    "linear_kl": _both_heads,
    "relation_kl": _relations,
    "attention_mse": _relations,
}
"""Floating-point operations of the matrix products of an op; others have none."""


@dataclass(frozen=True)
class Call:
    """One call of an op.

    Attributes:
        bytes: one read of every input, and one write of every output.
    """

    op: str
    bytes: int
    flops: int
    dtype: torch.dtype
    begin: Any
    end: Any


class OpWatch(TorchDispatchMode):
    """Notes every call of an op of kdcache's while it is the mode."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # so in torch
        self.clock = clock
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "kdcache":
            return func(*args, **(kwargs or {}))
        begin = self.clock.mark()
        made = func(*args, **(kwargs or {}))
        end = self.clock.mark()
        op = func._schema.name.partition("::")[2]
        arguments = zip(func._schema.arguments, args, strict=False)
        written = [x for spec, x in arguments if spec.is_out or _is_written(spec)]
        moved = _bytes(args) + _bytes(made) + _bytes(written)
        flops = FLOPS[op](args, made) if op in FLOPS else 0
        self.calls.append(Call(op.rstrip("_"), moved, flops, args[0].dtype, begin, end))
        return made


def _is_written(spec: Any) -> bool:
    return spec.alias_info is not None and bool(spec.alias_info.is_write)


def _bytes(tensors: Any) -> int:
    """Bytes of tensors, each counted once."""
    found = {id(x): x for x in tree_leaves(tensors) if isinstance(x, Tensor)}
    return sum(x.numel() * x.itemsize for x in found.values())


def op_rows(steps: Sequence[Sequence[Call]], clock: Clock, device: torch.device) -> list[Json]:
    """A row for each op: what its calls in a step come to, and what the machine could do it in.

    The limit is that of `kdcache bench kernels`: a copy of as many bytes or the matrix products,
    whichever takes longer, measured now.
    """
    watch = Stopwatch(device)
    names = list(dict.fromkeys(call.op for step in steps for call in step))
    return [_row(name, steps, clock, watch) for name in names]


def _row(name: str, steps: Sequence[Sequence[Call]], clock: Clock, watch: Stopwatch) -> Json:
    found = [[call for call in step if call.op == name] for step in steps]
    calls = [step for step in found if step]  # steps of several caches have ops of their own
    seconds = statistics.median(sum(clock.between(c.begin, c.end) for c in step) for step in calls)
    last = calls[-1]
    moved, flops = sum(call.bytes for call in last), sum(call.flops for call in last)
    bound, limit = _limit(moved // len(last), flops // len(last), last[0].dtype, watch)
    limit *= len(last)
    return {
        "op": name,
        "calls": len(last),
        "seconds": seconds,
        "bytes": moved,
        "flops": flops,
        "bytes_per_s": moved / seconds,
        "bound": bound,
        "limit_seconds": limit,
        "share_of_limit": limit / seconds,
    }


def _limit(moved: int, flops: int, dtype: torch.dtype, watch: Stopwatch) -> tuple[str, float]:
    """What holds a call back, and the seconds that the machine needs for that alone."""
    probes, shares = {"copy": copy_probe(moved, watch.device)}, {"copy": 1.0}
    for kind in probe_dtypes(dtype, watch.device) if flops else ():
        probes[str(kind)], done = gemm_probe(kind, watch.device)
        shares[str(kind)] = flops / done
    seconds = interleave(watch, probes, REPEATS, warm_up=1)
    limits = {name: statistics.median(took) * shares[name] for name, took in seconds.items()}
    copied = limits.pop("copy")
    product = min(limits.values(), default=0.0)
    return ("copy", copied) if copied >= product else ("product", product)
