"""kdcache-kernels: built from `kernels/`, installed beside torch alone, never two versions."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import kdcache_kernels
from kdcache_kernels._version import require_one_version
from tests.pages import blocks, run_python
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow  # pip builds, and makes an environment

VERSION = kdcache_kernels.__version__
OP = """
import sys
import torch
from torch.nn import functional
from kdcache_kernels import topk_encode, topk_kl

student = torch.randn(5, 31, dtype=torch.float64, requires_grad=True)
teacher = torch.randn(5, 31, dtype=torch.float64)
ids, logprobs, tail, stat = topk_encode(teacher, 31)
loss = topk_kl(student, ids, logprobs)
loss.backward()
want = functional.kl_div(
    student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
)
torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-6)  # logprobs are float32
gradient = (student.softmax(1) - teacher.softmax(1)).detach() / 5
torch.testing.assert_close(student.grad, gradient, rtol=1e-6, atol=1e-6)
assert not {"kdcache", "numba", "numpy"} & set(sys.modules)
try:
    topk_kl(student.float(), ids, logprobs)
except ImportError as error:
    print(error)
"""


def required(name: str) -> list[Distribution]:
    """An installed distribution and all that it requires here."""
    found: dict[tuple[str, str], Distribution] = {}
    left = [Requirement(name)]
    while left:
        wanted = left.pop()
        for extra in {"", *wanted.extras}:
            if (wanted.name, extra) in found:
                continue
            one = found[wanted.name, extra] = distribution(wanted.name)
            each = (Requirement(text) for text in one.requires or ())
            left += [r for r in each if r.marker is None or r.marker.evaluate({"extra": extra})]
    return list(found.values())


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    return found


@pytest.fixture(scope="module")
def bare(
    kernels_wheel: Path, pip: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Python where torch, what it requires, and the kernels are installed and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    for one in required("torch"):
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():  # a folder may be of several distributions
                (packages / top).symlink_to(Path(str(one.locate_file(top))))
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", "--no-compile", kernels_wheel)
    pip("--python", python, "check")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = clean | ({"PYTHONPATH": str(path)} if path else {})
        return subprocess.run(
            [python, "-c", code],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def pretend(folder: Path, **versions: str) -> Path:
    """Distributions of which nothing but their name and version is there."""
    for name, version in versions.items():
        about = folder / f"{name}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        (about / "METADATA").write_text(text, "utf-8")
    return folder


def test_the_wheel_holds_the_kernels_and_the_licence(kernels_wheel: Path) -> None:
    with zipfile.ZipFile(kernels_wheel) as archive:
        names = set(archive.namelist())
    about = f"kdcache_kernels-{VERSION}.dist-info"
    files = {p.relative_to(ROOT / "kernels") for p in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names if not name.startswith(about)} == {
        "kdcache_kernels/py.typed",
        *(file.as_posix() for file in files),
    }
    assert f"{about}/licenses/LICENSE" in names
    assert (ROOT / "kernels" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_torch_is_the_only_requirement_and_bounds_are_those_of_kdcache() -> None:
    own, whole = project(ROOT / "kernels"), project(ROOT)
    extras = own["optional-dependencies"]
    assert [Requirement(text).name for text in own["dependencies"]] == ["torch"]
    assert {*own["dependencies"], *extras["cpu"]} <= set(whole["dependencies"])
    assert extras["gpu"] == whole["optional-dependencies"]["gpu"]
    assert own["requires-python"] == whole["requires-python"]


def test_ops_run_beside_torch_alone_and_name_what_they_lack(
    bare: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = bare(OP)
    assert done.returncode == 0, done.stderr
    assert "topk_kl runs on this device through numba; numpy is not installed" in done.stdout
    assert "pip install numba" in done.stdout


def test_kernels_beside_a_kdcache_of_another_version_are_not_imported(
    bare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = bare("import kdcache_kernels", pretend(tmp_path, kdcache="9.0.0"))
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith(f"ImportError: kdcache 9.0.0 and kdcache-kernels {VERSION} are both")
    assert "pip uninstall -y kdcache-kernels" in told
    assert "kdcache 9.0.0 again" in told


@pytest.mark.parametrize(("alone", "refused"), [("3.0.1", False), ("3.0.0", True)])
def test_two_distributions_of_the_kernels_are_of_one_version(
    alone: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(pretend(tmp_path, kdcache="3.0.1", kdcache_kernels=alone))
    if not refused:
        require_one_version()
        return
    with pytest.raises(ImportError, match=re.escape("kdcache 3.0.1 and kdcache-kernels 3.0.0")):
        require_one_version()


def test_what_the_page_of_the_kernels_shows_runs(tmp_path: Path) -> None:
    page = tmp_path / "readme.md"
    page.write_text(project(ROOT / "kernels")["readme"]["text"], "utf-8")
    names = run_python(blocks(page, "python"))
    assert names["logits"].grad.isfinite().all()
