"""The source roots, what a wheel holds, and what an import costs: docs/decisions/0001."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FIND = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
PACKAGES = sorted(
    package
    for where in FIND["where"]
    for package in find_packages(str(ROOT / where), include=FIND["include"])
)


def python(*arguments: str) -> str:
    """Run this interpreter from the repository's root, where `kernels/` lies in the way."""
    roots = [str(ROOT / where) for where in FIND["where"]]
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", ["kernels/__init__.py", "cli/__init__.py", "tests/kernels"])
def test_source_roots_are_no_packages(path):
    assert not (ROOT / path).exists(), "see docs/decisions/0001-source-roots.md"


def test_a_wheel_holds_the_three_packages_and_nothing_else():
    assert {name.partition(".")[0] for name in PACKAGES} == {
        "kdcache",
        "kdcache_cli",
        "kdcache_kernels",
    }


def test_every_source_folder_is_a_package():
    """The wheel would leave out a folder of sources without `__init__.py`."""
    roots = ["kdcache", "kernels/kdcache_kernels", "cli/kdcache_cli"]
    folders = {source.parent for root in roots for source in (ROOT / root).rglob("*.py")}
    assert folders
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("package", ["kdcache", "kdcache_cli", "kdcache_kernels"])
def test_packages_are_marked_as_typed(package):
    folder = Path(importlib.import_module(package).__file__).parent
    assert (folder / "py.typed").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_imports(package):
    importlib.import_module(package)


def test_kernels_folder_is_no_importable_package_of_ours():
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s.origin if s else None)"
    origin = python("-c", code).strip()
    assert origin == "None" or not Path(origin).is_relative_to(ROOT / "kernels")


@pytest.mark.slow
def test_transformers_is_not_misled_by_the_kernels_folder():
    python("-c", "import transformers.integrations.hub_kernels, transformers.modeling_utils")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("kdcache", {"numba", "torch", "transformers", "triton"}),
        ("kdcache_kernels", {"numba", "transformers", "triton", "zarr"}),
        ("kdcache_cli.main", {"numba", "torch", "transformers", "triton"}),
    ],
)
def test_import_leaves_heavy_packages_alone(package, forbidden):
    loaded = python("-c", f"import {package}, sys; print(*sys.modules)").split()
    assert package in loaded
    assert forbidden.intersection(loaded) == set()


def test_few_modules_lie_outside_the_rooms():
    assert len(list((ROOT / "kdcache").glob("*.py"))) <= 8


def test_command_line_runs_as_a_module():
    assert "Usage" in python("-m", "kdcache_cli", "--help")


def test_console_script_names_the_command_line():
    module, _, function = PYPROJECT["project"]["scripts"]["kdcache"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_extras_are_the_documented_ones():
    assert set(PYPROJECT["project"]["optional-dependencies"]) == {
        "demo",
        "dev",
        "docs",
        "gpu",
        "ner",
        "onnx",
        "s3",
        "search",
    }
