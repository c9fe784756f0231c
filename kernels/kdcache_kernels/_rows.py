"""A loss alone, and a loss with its rows: one signature, written once."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, Protocol, TypeAlias, cast, overload

from torch import Tensor

from kdcache_kernels._checks import compute_dtype

P = ParamSpec("P")

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""A loss, and the rows of its soft and of its hard part, [N]."""


class Loss(Protocol[P]):
    """A function of the parameters `P` that returns a loss, or with `return_rows` its rows too.

    A type checker holds `P` against the first form; for the others there is the `_rows` function.
    """

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    @overload
    def __call__(self, *args: Any, return_rows: Literal[True], **kwargs: Any) -> Rows: ...
    @overload
    def __call__(self, *args: Any, return_rows: Literal[False], **kwargs: Any) -> Tensor: ...


def loss_of(rows: Callable[P, Rows]) -> Loss[P]:
    """The function that takes what `rows` takes and returns the first of what that returns."""

    @wraps(rows)
    def loss(*args: Any, return_rows: bool = False, **kwargs: Any) -> Tensor | Rows:
        found: Rows = rows(*args, **kwargs)
        return found if return_rows else found[0]

    signature = inspect.signature(rows)
    more = inspect.Parameter("return_rows", inspect.Parameter.KEYWORD_ONLY, default=False)
    loss.__signature__ = signature.replace(  # type: ignore[attr-defined]  # inspect looks for it
        parameters=[*signature.parameters.values(), more], return_annotation=Tensor | Rows
    )
    loss.__name__ = loss.__qualname__ = rows.__name__.removesuffix("_rows")
    loss.__doc__ = (
        f"The loss of `{rows.__name__}`, a scalar; with `return_rows=True` all that it returns."
        f"\n\n    {rows.__doc__}"
    )
    return cast("Loss[P]", loss)


def empty_rows(x: Tensor) -> Rows:
    """The shapes and dtypes of a loss and its rows, for what has the rows of `x`."""
    dtype, rows = compute_dtype(x), x.shape[:1]
    return (
        x.new_empty((), dtype=dtype),
        x.new_empty(rows, dtype=dtype),
        x.new_empty(rows, dtype=dtype),
    )
