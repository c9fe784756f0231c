"""What the ops share of autograd: gradients made in the forward, rescaled in the backward."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kdcache_kernels._backends import dispatched


def keep_gradients(
    ctx: Any, leaves: Sequence[Tensor | None], outputs: tuple[Tensor, ...], made: Sequence[bool]
) -> None:
    """Save the gradients of the leaves for `input_gradients`.

    They are the op's outputs after the loss, those that are not `made` empty.
    """
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)  # or autograd fills a zero [N, V] for the gradient output
    ctx.save_for_backward(*outputs[1 : 1 + len(leaves)])
    ctx.made = made
    ctx.dtypes = [None if x is None else x.dtype for x in leaves]


def input_gradients(ctx: Any, name: str, grad_loss: Tensor | None) -> list[Tensor | None]:
    """The saved gradients times that of the loss; None where not asked for.

    Raises RuntimeError if one is asked for that the forward pass did not make; under `create_graph`
    the results raise it when differentiated again.
    """
    if grad_loss is None:
        return [None] * len(ctx.made)
    wanted, saved = ctx.needs_input_grad, ctx.saved_tensors
    found: list[Tensor | None] = []
    for i, made in enumerate(ctx.made):
        if wanted[i] and not made:
            raise RuntimeError(f"{name} ran without this gradient: nothing to propagate")
        found.append(rescaled(name, saved[i], grad_loss, ctx.dtypes[i]) if wanted[i] else None)
    return found


def rescaled(name: str, gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply a saved gradient by that of the loss; `name` is the op that has no second one."""
    if not torch.is_grad_enabled():  # as a rule
        return _scaled(gradient, grad_loss, dtype)
    with torch.no_grad():
        scaled = _scaled(gradient, grad_loss, dtype)
    return once(name, scaled)


def once(name: str, gradient: Tensor) -> Tensor:
    """A gradient that refuses to be differentiated, under `create_graph`, and names the op."""
    if not torch.is_grad_enabled():
        return gradient
    anchor = torch.zeros((), device=gradient.device, requires_grad=True)
    last = _Last.apply(gradient, anchor, name)  # type: ignore[no-untyped-call]  # so in torch
    return cast(Tensor, last)


class _Last(torch.autograd.Function):
    """Identity that refuses to be differentiated; `anchor` only puts it on the graph."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor, name: str) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        raise RuntimeError(
            f"{ctx.name} has no double backward: its gradient is computed in the forward pass and "
            "is not itself differentiable; for second derivatives use plain torch operations"
        )


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    if not _plain(factor):
        return (gradient * factor).to(dtype)
    keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph()
    if dtype == gradient.dtype and not keeps_graph:  # what was saved is nobody else's
        return scale_(gradient, factor)
    # One pass. On a device the factor gets a dimension, or torch rounds it to the gradient's dtype.
    by = factor.item() if factor.is_cpu else factor.view(1)
    return torch.mul(gradient, by, out=torch.empty_like(gradient, dtype=dtype))


def _plain(factor: Tensor) -> bool:
    """Is it one number? A traced backward sees a subclass, a batched one several numbers."""
    return not (
        type(factor) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._functorch.is_legacy_batchedtensor(factor)
        or torch._C._functorch.is_functorch_wrapped_tensor(factor)
    )


def scale_(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiply by a scalar tensor in place; where that is 1, which is the rule, touch nothing.

    On a CPU reading the scalar is free, and as a number it is not rounded to the gradient's dtype.
    Elsewhere it would be a host synchronisation: a kernel looks.
    """
    if not factor.is_cpu:
        return multiply_(gradient, factor)
    by = factor.item()
    if by != 1.0:
        return gradient.mul_(by)
    torch.autograd.graph.increment_version(gradient)  # whoever asks again finds out
    return gradient


@dispatched
def multiply_(x: Tensor, factor: Tensor) -> Tensor:
    """`x` times a scalar on the same device, in place."""
    return x.mul_(factor)
