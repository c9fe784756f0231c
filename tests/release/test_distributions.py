"""kdcache's wheel and source distribution: what they hold, what they say, and that they import."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

import kdcache_kernels
from tests.pages import LINK
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow  # pip builds, in processes of its own

SOURCE_ROOTS = {"kdcache": ".", "kdcache_kernels": "kernels", "kdcache_cli": "cli"}
DATA = {
    "kdcache/fidelity_table.json",
    "kdcache/py.typed",
    "kdcache_cli/py.typed",
    "kdcache_kernels/py.typed",
}
REPOSITORY = "https://example.org/kdcache"


def modules() -> set[str]:
    """Python files of the three packages, as an installation has them."""
    found = {
        path.relative_to(ROOT / root).as_posix()
        for package, root in SOURCE_ROOTS.items()
        for path in (ROOT / root / package).rglob("*.py")
    }
    assert len(found) > 300
    return found


def recipes() -> set[str]:
    found = {f"kdcache/recipes/{path.name}" for path in (ROOT / "kdcache/recipes").glob("*.toml")}
    assert "kdcache/recipes/kd.toml" in found
    return found


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def source(tree: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution; made after the wheel, whose leavings it must not hold."""
    out = tmp_path_factory.mktemp("source")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, out], cwd=tree, check=True, capture_output=True)
    (file,) = out.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        archive.extractall(out, filter="data")
    return out / file.name.removesuffix(".tar.gz")


def test_the_wheel_holds_the_modules_and_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == modules() | recipes() | DATA
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_the_source_distribution_holds_what_the_wheel_is_made_of(source: Path) -> None:
    files = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    sources = {
        (Path(SOURCE_ROOTS[name.partition("/")[0]]) / name).as_posix()
        for name in modules() | recipes() | DATA
    }
    about = {name for name in files if name.startswith("kdcache.egg-info/")}
    own = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
    assert files - about == sources | own


def test_the_index_is_told_what_the_readme_says_without_a_relative_link(wheel: Path) -> None:
    about = metadata(wheel)
    assert about["Name"] == "kdcache"
    assert about["Version"] == kdcache_kernels.__version__
    assert about["Description-Content-Type"] == "text/markdown"
    text = about.get_payload()
    assert isinstance(text, str)
    assert "# kdcache" in text
    assert all(target.startswith("https://") for _, _, target in LINK.findall(text))


@pytest.mark.parametrize("repository", ["", REPOSITORY], ids=["unknown", "known"])
def test_one_setting_makes_links_images_and_urls(
    repository: str, source: Path, tmp_path: Path
) -> None:
    """Read from the source distribution, which so has all that its wheel needs."""
    project = source / "pyproject.toml"
    line = f'repository = "{repository}"'
    text, lines = re.subn(r'^repository = ".*"$', line, project.read_text("utf-8"), flags=re.M)
    assert lines == 1
    project.write_text(text, "utf-8")
    code = (
        "import sys; from setuptools import build_meta as b; "
        "b.prepare_metadata_for_build_wheel(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, tmp_path]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (file,) = tmp_path.glob("*/METADATA")
    about = email.message_from_string(file.read_text("utf-8"))
    links = LINK.findall(about.get_payload())
    targets = {target for _, _, target in links}
    images = {target for image, _, target in links if image}
    assert all(target.startswith("https://") for target in targets)
    urls = dict(line.split(", ") for line in about.get_all("Project-URL", []))
    if not repository:
        assert urls == {}
        assert images == set()
        return
    assert images >= {f"{repository}/raw/HEAD/docs/{n}.png" for n in ("amortised", "demo")}
    assert f"{repository}/blob/HEAD/docs/store.md" in targets
    assert set(urls) == {"Changelog", "Documentation", "Issues", "Repository"}
    assert all(url.startswith(repository) for url in urls.values())


def test_what_the_wheel_installs_imports_and_runs(
    wheel: Path, pip: Callable[..., str], tmp_path: Path
) -> None:
    place = tmp_path / "installed"
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", place, wheel)
    code = (
        "import sys, kdcache; from kdcache_cli.main import main; "
        "print(kdcache.__version__, sys.modules[kdcache.train.__module__].__file__, flush=True); "
        "sys.exit(main(['recipes']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.splitlines()[0].split(maxsplit=1)
    assert version == kdcache_kernels.__version__
    assert Path(file).is_relative_to(place)
    assert all(Path(name).stem in done.stdout for name in recipes())
    assert (place / "bin" / "kdcache").is_file()


def test_what_is_installed_here_fits_together(pip: Callable[..., str]) -> None:
    assert "No broken requirements" in pip("check")
