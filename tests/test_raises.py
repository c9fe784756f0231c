"""Whatever people call says under `Raises:` which errors it answers with."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Any

import pytest

import kdcache
import kdcache.errors
import kdcache.losses
import kdcache.students
import kdcache_kernels
from kdcache.store import Cache

ERRORS = {
    name
    for name, found in vars(kdcache.errors).items()
    if isinstance(found, type) and issubclass(found, kdcache.errors.KdcacheError)
}
CHECKS = ("one_of", "require", "check", "whole_number")
"""What functions that raise for whoever calls them are called, or begin with."""


def functions() -> Iterator[tuple[str, Any, Any]]:
    """Every function and class that pages name, and their methods: with what runs, and what says
    what it raises.
    """
    for module in (kdcache, kdcache_kernels, kdcache.losses, kdcache.students):
        for name in module.__all__:
            found = getattr(module, name)
            where = f"{module.__name__}.{name}"
            if inspect.isfunction(found):
                yield where, found, found
            elif inspect.isclass(found) and module is kdcache:
                own = vars(found)
                yield where, own.get("__post_init__", own.get("__init__")), found
                yield from methods(where, found)
    yield from methods("kdcache.store.Cache", Cache)


def methods(where: str, kind: type) -> Iterator[tuple[str, Any, Any]]:
    for name, found in vars(kind).items():
        plain = getattr(found, "fget", None) or getattr(found, "func", found)
        if not name.startswith("_") and inspect.isfunction(plain):
            yield f"{where}.{name}", plain, plain


@cache
def raised(function: FunctionType) -> frozenset[str]:
    """Errors of ours that a function raises itself, or a check that it calls does."""
    if function.__code__.co_filename.startswith("<"):
        return frozenset()  # written by `dataclass`
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found |= {ast.unparse(node.exc.func)} & ERRORS
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = function.__globals__.get(node.func.id)
            ours = inspect.isfunction(called) and called.__module__.startswith("kdcache")
            if ours and node.func.id.lstrip("_").startswith(CHECKS):
                found |= raised(called) if called is not function else set()
    return frozenset(found)


GIVEN = {name: (runs, says) for name, runs, says in functions()}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_raised_is_said(name: str) -> None:
    runs, says = GIVEN[name]
    text = inspect.getdoc(says) or ""
    section = re.search(r"^Raises:\n((?: +.*\n?)*)", text, re.MULTILINE)
    below = section[1] if section else ""
    named = set(re.findall(r"^    (\w+(?:, \w+)*): ", below, re.MULTILINE))
    named = {error for line in named for error in line.split(", ")}
    assert named <= ERRORS | set(dir(builtins)), f"{named}: no errors"
    assert not re.search(r"\bRaises (?!:)", text), "errors stand in a section of their own"
    wanted = raised(runs) if inspect.isfunction(runs) else frozenset()
    lacking = {
        error
        for error in wanted
        if not any(issubclass(getattr(kdcache.errors, error), kind) for kind in known(named))
    }
    assert not lacking, f"{sorted(lacking)} are not under Raises:"


def known(names: set[str]) -> tuple[type, ...]:
    return tuple(getattr(kdcache.errors, n, None) or getattr(builtins, n) for n in names)


def test_the_functions_that_read_or_write_say_what_they_raise() -> None:
    """However deep below them it is raised."""
    for name in set(kdcache.__all__) - {"KdcacheError", "Tap", "DistillationTrainer"}:
        assert "Raises:\n" in (inspect.getdoc(getattr(kdcache, name)) or ""), name
