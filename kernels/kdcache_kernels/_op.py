"""Registration of ops with torch's dispatcher.

`torch.library.custom_op` does the same and imports torch._dynamo at the first call of any op, which
takes 3 seconds; this is what is left without it. A plain call does not go through the dispatcher at
all (decision 0008).

An op's arguments are stated once, as the parameters of its body. What belongs together is one of
them, a NamedTuple; torch's schemas know none, so there its fields stand in its place.
"""

import inspect
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, ParamSpec, TypeVar, cast, get_type_hints

import torch
from torch import Tensor
from torch._library.autograd import supports_tensorlist
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from kdcache_kernels._autograd import input_gradients, keep_gradients

P = ParamSpec("P")
R = TypeVar("R")

_LIBRARY = torch.library.Library("kdcache", "FRAGMENT")

# What arguments are as a rule; of another type it is asked whether it is a kind of Tensor: slower.
PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str, torch.dtype}


def define(
    name: str,
    body: Callable[P, R],
    fake: Callable[..., R],
    *,
    leaves: int = 0,
    mutates: Iterable[str] = (),
    differentiate: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> Callable[P, R]:
    """Register `kdcache::name`, for every device, and return it, to be called by position.

    `body` has annotated parameters; `fake` takes the same and makes outputs of the right shape;
    `mutates` names the tensors that `body` writes to. The first arguments, as many as `leaves`, get
    gradients, which `body` makes: it returns the loss, a gradient for each of them, empty if it is
    not needed, and whatever else. Which are needed its last arguments say, the last of all fields.
    An op whose gradient is not made in its forward pass gives what `register_autograd` takes, setup
    and backward, in `differentiate`; its arguments may be lists of tensors, and no NamedTuples.
    """
    kinds = get_type_hints(body)
    returns = kinds.pop("return")
    fields = {
        field: kind
        for key, outer in kinds.items()
        for field, kind in (get_type_hints(outer) if _bundles(outer) else {key: outer}).items()
    }
    _LIBRARY.define(name + _schema(fields, returns, mutates), tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, _unbundled(body, kinds), "CompositeExplicitAutograd")
    torch.library.register_fake(f"kdcache::{name}", _unbundled(fake, kinds), lib=_LIBRARY)
    op = getattr(torch.ops.kdcache, name).default
    direct: Callable[..., Any] = body
    if leaves:
        backward = _backward(name, leaves, len(fields))
        setup = _setup(leaves)
        torch.library.register_autograd(
            f"kdcache::{name}", backward, setup_context=setup, lib=_LIBRARY
        )
        direct = _function(name, body, setup, _backward(name, leaves, len(kinds)))
    if differentiate is not None:
        setup, backward = differentiate
        torch.library.register_autograd(
            f"kdcache::{name}", backward, setup_context=setup, lib=_LIBRARY
        )
        direct = _function(name, body, setup, backward, lists=True)

    def call(*args: Any) -> Any:
        return direct(*args) if plain(args) else op(*flat(args))

    return cast("Callable[P, R]", call)


def flat(args: Iterable[Any]) -> list[Any]:
    """The arguments of an op as its schema has them: the fields of a NamedTuple in its place."""
    found: list[Any] = []
    for x in args:
        if isinstance(x, tuple):
            found.extend(x)
        else:
            found.append(x)
    return found


def _bundles(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple)


def _schema(fields: dict[str, Any], returns: Any, mutates: Iterable[str]) -> str:
    def prototype() -> None: ...

    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(x, by_position, annotation=kind) for x, kind in fields.items()]
    signature = inspect.Signature(parameters, return_annotation=returns)
    prototype.__signature__ = signature  # type: ignore[attr-defined]  # inspect looks for it
    return torch.library.infer_schema(prototype, mutates_args=tuple(mutates))


def _unbundled(function: Callable[..., R], kinds: dict[str, Any]) -> Callable[..., R]:
    """`function` as the dispatcher calls it."""

    def run(*args: Any) -> R:
        rest = iter(args)
        return function(
            *(
                kind._make(islice(rest, len(kind._fields))) if _bundles(kind) else next(rest)
                for kind in kinds.values()
            )
        )

    return run


def _setup(leaves: int) -> Callable[..., None]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        last = inputs[-1]
        made = last[-leaves:] if isinstance(last, tuple) else inputs[-leaves:]
        keep_gradients(ctx, inputs[:leaves], output, made)

    return setup


def _backward(name: str, leaves: int, inputs: int) -> Callable[..., tuple[Tensor | None, ...]]:
    nothing = (None,) * (inputs - leaves)

    def backward(ctx: Any, loss: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
        return (*input_gradients(ctx, name, loss), *nothing)

    return backward


def _function(
    name: str,
    body: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    *,
    lists: bool = False,
) -> Callable[..., Any]:
    """`body` and its gradients, without the dispatcher; `lists`: its tensors may be in lists."""

    def forward(ctx: Any, *args: Any) -> Any:
        outputs = body(*args)
        setup(ctx, args, outputs)
        return outputs

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), members)
    if lists:
        function = supports_tensorlist(function)
    return cast("Callable[..., Any]", function.apply)


def plain(args: tuple[Any, ...]) -> bool:
    """Does nobody trace, transform or intercept a call with these arguments?"""
    if (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    return PLAIN.issuperset(map(type, args)) or not any(map(_intercepts, flat(args)))


def _intercepts(x: Any) -> bool:
    """Is it, or does it hold, a tensor of a type of somebody's own?"""
    if type(x) is list:
        return any(map(_intercepts, x))
    return type(x) not in PLAIN and isinstance(x, Tensor)
