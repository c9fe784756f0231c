"""Every backend in the table, whatever it is: what it takes, what it computes, what it lacks."""

import inspect
import sys
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

import pytest
import torch

import kdcache_kernels
from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_check import Check
from kdcache.bench.kernels_inputs import Size
from kdcache_kernels import _backends, hidden_mse
from kdcache_kernels._backends import BACKENDS, KERNELS, dispatched
from kdcache_kernels.hidden_mse import reference

# The interpreter computes with NumPy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SIZE = Size(rows=2, vocab=41, k=7, hidden=16)
ENTRIES = [(kernel, *entry) for kernel, files in BACKENDS.items() for entry in files.items()]
EVERYWHERE = [(kernel, "cpu", "reference") for kernel in BACKENDS]


def implementation(kernel, file):
    folder = inspect.unwrap(KERNELS[kernel]).__module__.rpartition(".")[0]
    return getattr(import_module(f"{folder}.{file}"), kernel)


def test_the_table_and_the_kernels_are_the_same():
    assert set(BACKENDS) == set(KERNELS)


def test_every_op_has_a_case_to_be_tried_by():
    packages = {module.name for module in iter_modules(kdcache_kernels.__path__) if module.ispkg}
    assert packages == {case.op for case in CASES}


@pytest.mark.parametrize(("kernel", "device", "file"), ENTRIES)
def test_a_backend_takes_what_its_reference_takes(kernel, device, file):
    wanted = inspect.signature(inspect.unwrap(KERNELS[kernel]))
    assert inspect.signature(implementation(kernel, file)) == wanted


@pytest.mark.parametrize(
    ("kernel", "device", "file"),
    [e for e in ENTRIES + EVERYWHERE if e[0] != "multiply_"],  # no op needs it on a CPU: test_scale
)
def test_a_backend_is_as_near_to_float64_as_plain_torch(kernel, device, file, monkeypatch):
    """Triton's on a GPU if there is one, interpreted otherwise.

    By all cases of the op that the kernel is of, and by the first of every other op, some of which
    run it too, on many rows.
    """
    reached, tried = set(), set()
    own = inspect.unwrap(KERNELS[kernel]).__module__.split(".")[1]

    def backend(name, x):
        if name != kernel or x.dtype == torch.float64:
            return "reference"
        reached.add(name)
        return file

    monkeypatch.setattr(_backends, "backend", backend)
    there = torch.device(device if torch.cuda.is_available() else "cpu")
    for case in CASES:
        if case.op in tried - {own}:
            continue
        tried.add(case.op)
        x = case.draw(SIZE, torch.float32, there, False)
        assert Check(case, x, torch.float32).wrong() is None, f"{case.op} {case.variant}"
    assert reached == {kernel}


def test_a_new_backend_is_a_file_and_a_line(monkeypatch):
    file, seen = ModuleType("kdcache_kernels.hidden_mse._toy"), []

    def toy(student, *others):
        seen.append(student.dtype)
        loss, gradient = reference.hidden_mse(student, *others)
        return loss + 1, gradient

    file.hidden_mse = toy
    monkeypatch.setitem(sys.modules, file.__name__, file)
    student, codes, weight = *torch.randn(2, 3, 4).unbind(), torch.rand(3)
    how = {"weight": weight, "normalize": "l2"}  # means of few elements are torch's own
    before = hidden_mse(student, codes, **how)
    monkeypatch.setitem(BACKENDS["hidden_mse"], "cpu", "_toy")
    after = hidden_mse(student.requires_grad_(), codes, **how)
    torch.testing.assert_close(after, before + 1)
    assert seen == [torch.float32]
    hidden_mse(student.double(), codes, **how)
    assert seen == [torch.float32]  # float64 is the reference's on every device


@pytest.mark.parametrize(("file", "package"), [("_numba", "numba"), ("_triton", "triton")])
def test_a_package_that_is_missing_is_named_with_its_installation(file, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("kdcache_kernels", "kdcache_kernels.hidden_mse"):
        monkeypatch.delitem(sys.modules, f"{name}.{file}", raising=False)
    monkeypatch.setattr(_backends, "KERNELS", {})
    monkeypatch.setattr(_backends, "backend", lambda kernel, x: file)
    with pytest.raises(ImportError, match=f"hidden_mse .*through {package}; .*install {package}"):
        dispatched(reference.hidden_mse)(torch.zeros(1, 2))


def test_an_import_of_ours_that_fails_says_so_itself(monkeypatch):
    monkeypatch.setattr(_backends, "KERNELS", {})
    monkeypatch.setattr(_backends, "backend", lambda kernel, x: "_no_such_file")
    with pytest.raises(ModuleNotFoundError, match=r"No module named '.*\._no_such_file'"):
        dispatched(reference.hidden_mse)(torch.zeros(1, 2))
