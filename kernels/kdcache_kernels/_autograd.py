"""What the ops share of autograd: a gradient made in the forward, rescaled in the backward."""

from typing import Any, cast

import torch
from torch import Tensor


def keep_gradient(ctx: Any, outputs: tuple[Tensor, ...], *, made: bool, dtype: torch.dtype) -> None:
    """Save the gradient, second of the op's outputs (loss, gradient, ...), for `input_gradient`."""
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.set_materialize_grads(False)  # or autograd fills a zero [N, V] for the gradient output
    ctx.save_for_backward(outputs[1])
    ctx.gradient_made = made
    ctx.input_dtype = dtype


def input_gradient(ctx: Any, name: str, grad_loss: Tensor | None) -> Tensor | None:
    """Multiply the saved gradient by that of the loss, None if nothing depends on the loss.

    Raises RuntimeError if the forward pass made no gradient; under `create_graph` the result
    raises it when differentiated again.
    """
    if grad_loss is None:
        return None
    if not ctx.gradient_made:
        raise RuntimeError(f"{name} ran without gradients (need_grad=False): nothing to propagate")
    (gradient,) = ctx.saved_tensors
    return rescaled(name, gradient, grad_loss, ctx.input_dtype)


def rescaled(name: str, gradient: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply a saved gradient by that of the loss; `name` is the op that has no second one."""
    with torch.no_grad():
        scaled = _scaled(gradient, grad_loss, dtype)
    if not torch.is_grad_enabled():
        return scaled
    anchor = torch.zeros((), device=scaled.device, requires_grad=True)
    last = _Last.apply(scaled, anchor, name)  # type: ignore[no-untyped-call]  # so in torch
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
    kept = torch._C._autograd._get_current_graph_task_keep_graph()
    if dtype == gradient.dtype:  # without the graph, what was saved is nobody else's
        return scale_(gradient.clone() if kept else gradient, factor)
    by = factor.item() if factor.device.type == "cpu" else factor
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
    if factor.device.type == "cpu":
        by = factor.item()
        if by != 1.0:
            return gradient.mul_(by)
        torch.autograd.graph.increment_version(gradient)  # whoever asks again finds out
        return gradient
    if not (gradient.is_cuda and gradient.is_contiguous()) or gradient.dtype == torch.float64:
        return gradient.mul_(factor)
    from kdcache_kernels._triton_scale import scale_ as on_gpu

    return on_gpu(gradient, factor)
