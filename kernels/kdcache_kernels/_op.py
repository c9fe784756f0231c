"""Registration of ops with torch's dispatcher.

`torch.library.custom_op` does the same and imports torch._dynamo at the first call of any op, which
takes 3 seconds; this is what is left without it. A plain call does not go through the dispatcher at
all (decision 0008).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_LIBRARY = torch.library.Library("kdcache", "FRAGMENT")


def define(
    name: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    mutates: Iterable[str] = (),
    backward: Callable[..., Any] | None = None,
    setup: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register `kdcache::name`, for every device, and return it.

    `body` has annotated parameters; `fake` makes outputs of the right shape; `mutates` names the
    tensors that `body` writes to. The last two are those of `torch.library.register_autograd`.
    """
    schema = torch.library.infer_schema(body, mutates_args=tuple(mutates))
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdcache::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.kdcache, name).default
    if backward is None or setup is None:
        return op
    torch.library.register_autograd(f"kdcache::{name}", backward, setup_context=setup, lib=_LIBRARY)
    return _shortened(name, op, body, backward, setup)


def _shortened(
    name: str,
    op: Callable[..., Any],
    body: Callable[..., Any],
    backward: Callable[..., Any],
    setup: Callable[..., Any],
) -> Callable[..., Any]:
    """The same as `op`, which is only called where somebody might look for it."""

    def forward(ctx: Any, *args: Any) -> Any:
        outputs = body(*args)
        setup(ctx, args, outputs)
        return outputs

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), members)

    def call(*args: Any) -> Any:
        return function.apply(*args) if _plain(args) else op(*args)

    return call


def _plain(args: tuple[Any, ...]) -> bool:
    """Does nobody trace, transform or intercept a call with these arguments?"""
    return not (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    ) and all(type(x) in (Tensor, torch.nn.Parameter) for x in args if isinstance(x, Tensor))
