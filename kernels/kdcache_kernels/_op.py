"""Registration of ops with torch's dispatcher.

`torch.library.custom_op` does the same and imports torch._dynamo at the first call of any op, which
takes 3 seconds; this is what is left without it (decision 0008).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

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
    if backward is not None:
        torch.library.register_autograd(
            f"kdcache::{name}", backward, setup_context=setup, lib=_LIBRARY
        )
    op: Callable[..., Any] = getattr(torch.ops.kdcache, name).default
    return op
