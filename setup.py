"""What pyproject.toml cannot say: links that work on the package index, and what is not shipped.

`repository` in pyproject.toml is all that it takes: links of the README lead into it, its images
come from it, and the project's other URLs lie in it. Without, a link is its text, an image is left
out.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build import build
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?://)([^)\s]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown without a relative link."""

    def replaced(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        if not repository:
            return "" if image else words
        return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/HEAD/{target})"

    return LINK.sub(replaced, text)


def urls(repository: str) -> dict[str, str]:
    """What the package index shows beside the README."""
    if not repository:
        return {}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


class FreshBuild(build):
    """A wheel of what is there: setuptools would add what an earlier build left in build/lib."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class SourcesAlone(sdist):
    """No tests: setuptools would add tests/test*.py, without what they import."""

    def make_distribution(self) -> None:
        self.filelist.prune("tests")
        super().make_distribution()


project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))
repository = project["tool"]["kdcache"]["repository"]
setup(
    long_description=absolute((HERE / "README.md").read_text("utf-8"), repository),
    long_description_content_type="text/markdown",
    project_urls=urls(repository),
    cmdclass={"build": FreshBuild, "sdist": SourcesAlone},
)
