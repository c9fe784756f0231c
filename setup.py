"""The README as the package index shows it: there, links cannot be relative.

With `Repository` among the urls of pyproject.toml, links lead into it and images come from it.
Without, a link is its text, and an image is left out.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?://)([^)\s]+)\)")


def absolute(text: str, repository: str | None) -> str:
    """Markdown without a relative link."""

    def replaced(link: re.Match[str]) -> str:
        image, words, target = link.groups()
        if repository is None:
            return "" if image else words
        return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/HEAD/{target})"

    return LINK.sub(replaced, text)


project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
setup(
    long_description=absolute(
        (HERE / "README.md").read_text("utf-8"), project.get("urls", {}).get("Repository")
    ),
    long_description_content_type="text/markdown",
)
