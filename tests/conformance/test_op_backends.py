"""Every op by every backend that runs here, against the float64 formulas of the benchmarks.

Nothing is listed: an op is a package of kdcache_kernels, a backend a module beside its reference
that has the function they share. What is drawn, and the formula, are those of the table CASES.
"""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType

import pytest
import torch

import kdcache_kernels
from kdcache.bench.kernels_case import Case
from kdcache.bench.kernels_cases import CASES, OPS
from kdcache.bench.kernels_check import Check
from kdcache.bench.kernels_inputs import Size

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = Size(rows=7, vocab=257, k=8, hidden=48)
PLAIN = "reference"
ON_CPU = "_numba"
# The interpreter computes with NumPy, which warns of the infinities that are meant here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def modules(package: str) -> list[str]:
    """The modules of a package, by their full names; packages first."""
    found = list(pkgutil.iter_modules(import_module(package).__path__))
    return [f"{package}.{m.name}" for m in sorted(found, key=lambda m: (not m.ispkg, m.name))]


def op_module(op: str) -> ModuleType:
    """The package of an op, which the op's function hides."""
    return import_module(f"{kdcache_kernels.__name__}.{op}")


def own_functions(module: ModuleType) -> set[str]:
    """Names of the public functions that a module defines."""
    found = vars(module).items()
    return {
        name
        for name, value in found
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__ == module.__name__
    }


def backends(op: str) -> dict[str, ModuleType]:
    """The backends of an op by the names of their files, those that can be imported here."""
    home = op_module(op)._backend.__module__  # that of the op whose rows it shares, or its own
    found = {}
    for name in modules(home):
        try:
            found[name.rpartition(".")[2]] = import_module(name)
        except ImportError:  # of a package that this machine lacks
            continue
    shared = own_functions(found[PLAIN]) & own_functions(found[ON_CPU])
    return {name: m for name, m in found.items() if shared <= own_functions(m)}


PAIRS = [(case, backend) for case in CASES for backend in backends(case.op)]


def test_every_op_is_tried_by_its_reference_and_one_that_is_compiled() -> None:
    packages = [m for m in pkgutil.iter_modules(kdcache_kernels.__path__) if m.ispkg]
    assert {package.name for package in packages} == set(OPS)
    for op in OPS:
        assert {PLAIN, ON_CPU} <= set(backends(op))


@pytest.mark.parametrize(
    ("case", "backend"), PAIRS, ids=[f"{c.op} {c.variant} {b}" for c, b in PAIRS]
)
def test_a_backend_is_right(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32; by the backend that an op takes of itself, in every dtype: test_bench_kernels."""
    chosen = backends(case.op)[backend]
    monkeypatch.setattr(op_module(case.op), "_backend", lambda rows: chosen)
    x = case.draw(SIZE, torch.float32, DEVICE, False)
    assert Check(case, x, torch.float32).wrong() is None
