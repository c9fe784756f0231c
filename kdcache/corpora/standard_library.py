"""The demo's corpus: text that every Python installation already has on its disk.

`docstrings` are labelled by the standard-library package they come from; `prose` is unlabelled.
"""

import ast
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Docstring", "docstrings", "prose"]

_MIN_WORDS = 5
_BLANK_LINE = re.compile(r"\n\s*\n")
_TESTS = {"test", "tests", "idle_test"}
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Docstring(NamedTuple):
    """The first paragraph of a docstring, and the top-level package or module it comes from."""

    text: str
    package: str


def docstrings(at_least: int = 40) -> list[Docstring]:
    """Read the standard library's docstrings, from packages that have `at_least` of them.

    The sources are parsed, never imported. Left out are tests, third-party code and the two
    applications that come along, IDLE and 2to3. A text that occurs more than once is kept where
    it comes first. The order is that of the sorted paths: the file system has no say in it.
    """
    stdlib = Path(sysconfig.get_path("stdlib"))
    packages: dict[str, str] = {}
    for path in _sources(stdlib):
        package = path.relative_to(stdlib).parts[0].removesuffix(".py")
        for text in _first_paragraphs(path):
            packages.setdefault(text, package)
    counts = Counter(packages.values())
    return [Docstring(t, p) for t, p in packages.items() if counts[p] >= at_least]


def prose() -> list[str]:
    """Read the paragraphs of Python's own language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    paragraphs = (p for name in sorted(topics) for p in _BLANK_LINE.split(topics[name]))
    return list(dict.fromkeys(filter(_is_long_enough, map(_collapse, paragraphs))))


def _sources(stdlib: Path) -> list[Path]:
    found = (path.relative_to(stdlib) for path in stdlib.rglob("*.py"))
    return [stdlib / path for path in sorted(found, key=lambda p: p.parts) if not _is_out(path)]


def _is_out(path: Path) -> bool:
    names = [*path.parts[:-1], path.stem]
    left_out = _TESTS | _NOT_THE_LIBRARY
    return any(name in left_out or name.startswith("test_") for name in names)


def _first_paragraphs(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the library's older files
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # a file for another Python, or a template
        return
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None
        text = _collapse(_BLANK_LINE.split(docstring)[0]) if docstring else ""
        if _is_long_enough(text):
            yield text


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _is_long_enough(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS
