"""The site: its reference names the public surface and no more, and no link of it is dead."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import kdcache
import kdcache_kernels
from kdcache import errors, students
from tests.pages import DOCS, ROOT

REFERENCE = DOCS / "reference"
SURFACE = {
    "kdcache.md": {f"kdcache.{n}" for n in kdcache.__all__ if n != "KdcacheError"}
    | {"kdcache.store.Cache"},
    "kernels.md": {f"kdcache_kernels.{n}" for n in kdcache_kernels.__all__},
    "errors.md": {
        f"kdcache.errors.{n}"
        for n, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, errors.KdcacheError)
    },
    "losses.md": {f"kdcache.students.{n}" for n in students.__all__ if n != "STUDENTS"}
    | {
        f"kdcache.losses.{n}"
        for n in ("hard_loss", "hidden_loss", "logit_mse", "mutual_rows", "soft_and_hard", "Moment")
    },
}


def named(page: str) -> list[str]:
    """What a page of the reference shows."""
    return re.findall(r"^::: (\S+)$", (REFERENCE / page).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", sorted(SURFACE))
def test_the_reference_is_the_public_surface(page: str) -> None:
    assert sorted(named(page)) == sorted(SURFACE[page])


def test_members_of_the_reference_are_there() -> None:
    text = (REFERENCE / "kdcache.md").read_text("utf-8")
    (members,) = re.findall(r"members: \[(.+)\]", text)
    cache = import_module("kdcache.store").Cache
    assert all(getattr(cache, name).__doc__ for name in members.split(", "))


@pytest.mark.slow
def test_the_site_builds_and_no_link_of_it_is_dead(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs the extra docs")
    paths = os.pathsep.join(str(ROOT / where) for where in (".", "kernels", "cli"))
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    front = (tmp_path / "index.html").read_text("utf-8")
    assert "runs the teacher" in front or "Two commands" in front
    assert "repair" in (tmp_path / "reference/commands/index.html").read_text("utf-8")
