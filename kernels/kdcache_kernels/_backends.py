"""Which file runs a kernel: one table, and one function that reads it.

A kernel is what its op's `reference.py` computes in plain torch. Its backends are files beside that
one, each with a function of the same name and parameters; a new one is such a file and its name
here. The first argument says where a call runs; a file is imported when it first does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS: dict[str, dict[str, str]] = {
    "dense_kl": {"cpu": "_numba", "cuda": "_triton"},
    "hidden_mse": {"cpu": "_numba", "cuda": "_triton"},
    "layer_costs": {"cpu": "_numba", "cuda": "_triton"},
    "layer_costs_gradient": {"cpu": "_numba", "cuda": "_triton"},
    "multiply_": {"cuda": "_triton_scale"},
    "pair_angles": {"cpu": "_numba"},
    "pair_squares": {"cpu": "_numba"},
    "quantize_rows": {"cpu": "_numba", "cuda": "_triton"},
    "topk_encode": {"cpu": "_numba", "cuda": "_triton"},
    "token_pairs": {"cpu": "_numba", "cuda": "_triton"},
    "topk_kl": {"cpu": "_numba", "cuda": "_triton"},
}
"""Of a kernel: the file that runs it on a type of device. What has none runs the reference."""

_plain = False

KERNELS: dict[str, Callable[..., Any]] = {}
"""What `dispatched` made, by name."""


def backend(kernel: str, x: Tensor) -> str:
    """The file that runs `kernel` on `x`; float64 is the reference's on every device."""
    if x.dtype == torch.float64 or _plain:
        return "reference"
    return BACKENDS[kernel].get(x.device.type, "reference")


@contextmanager
def plain_torch(on: bool = True) -> Iterator[None]:
    """Let the references run meanwhile, on every device and in all threads."""
    global _plain  # a gradient may be made in a thread of autograd's
    before, _plain = _plain, on
    try:
        yield
    finally:
        _plain = before


def dispatched(reference: Callable[P, R]) -> Callable[P, R]:
    """The kernel of `reference`, run by the backend of its first argument.

    Raises ImportError, when called, if a package that the backend needs is not installed.
    """
    kernel, folder = reference.__name__, reference.__module__.rpartition(".")[0]
    loaded = {"reference": reference}

    @wraps(reference)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        x: Any = args[0]
        file = backend(kernel, x)
        if file not in loaded:
            loaded[file] = _load(folder, file, kernel)
        return loaded[file](*args, **kwargs)

    KERNELS[kernel] = run
    return run


def _load(folder: str, file: str, kernel: str) -> Any:
    try:
        return getattr(import_module(f"{folder}.{file}"), kernel)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing == __package__:
            raise
        package = file.split("_")[1]  # files are called after what they run through
        raise ImportError(
            f"{kernel} runs on this device through {package}; {missing} is not installed: "
            f"pip install {package}"
        ) from error
