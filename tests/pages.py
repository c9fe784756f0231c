"""Pages of the documentation as data: their blocks, run one after the other, and their links.

A block of `python` runs, and a block of `output` below it is what it prints. In a block of
`console` every line that begins with `$` is a command, and what stands below it is what it prints:
the words are compared, not the figures, which are those of another corpus or machine; `...` stands
for anything.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache_cli.main import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
TUTORIALS = DOCS / "tutorials"
PAGES = (README, *sorted(DOCS.glob("*.md")), *sorted(TUTORIALS.glob("*.md")))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s]+)\)")
LONG = frozenset({"bench", "demo", "sweep"})
"""Commands that take minutes: their options are read and nothing is run."""
SLOW = LONG | {"ship"}
"""Commands that take half a minute, for tests that have less."""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a console block and what is printed below it."""
        for piece in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = piece.splitlines()
            end = next(i for i, line in enumerate(lines) if not line.endswith("\\")) + 1
            yield "\n".join(lines[:end]), "\n".join(lines[end:])


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in some languages, in their order."""
    text = page.read_text("utf-8")
    found = [
        Block(page, text[: m.start(2)].count("\n"), m.group(1), m.group(2))
        for m in FENCE.finditer(text)
    ]
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def links(page: Path) -> list[str]:
    """What the links and images of a page lead to."""
    return [target for _, _, target in LINK.findall(prose(page))]


def run_python(page: Sequence[Block], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run Python blocks in one namespace and return it."""
    names = {"__name__": "page"} if names is None else names
    for block in page:
        code = "\n" * block.line + block.text
        exec(compile(code, str(block.page), "exec"), names)
    return names


def run_page(page: Path, *, skipped: frozenset[str] = LONG) -> None:
    """Run the blocks of a page in their order, and compare what it shows of what they print."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    for block in blocks(page, "python", "console", "output"):
        if block.language == "console":
            run_console([block], skipped=skipped)
        elif block.language == "output":
            compare(block.text, printed.getvalue(), str(block))
        else:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                run_python([block], names)


def calls_of(page: Sequence[Block], module: str) -> Iterator[tuple[str, int, set[str]]]:
    """Calls of a module's functions: name, arguments without and with a name."""
    for block in page:
        for node in ast.walk(ast.parse(block.text)):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=function)):
                    if name == module:
                        named = {str(word.arg) for word in node.keywords}
                        yield function, len(node.args), named


def run_console(page: Sequence[Block], *, skipped: frozenset[str] = LONG) -> None:
    """Run console blocks in the working directory and compare what they print.

    Of `skipped` commands the options are read; what they would have made is not run either.
    """
    for block in page:
        for command, shown in block.commands():
            words = shlex.split(command.replace("\\\n", " "))
            if words[0] == "python" and skipped > LONG:
                continue
            brief = words[0] == "kdcache" and words[1] in skipped
            code, out = PROGRAMS[words[0]]([*words[1:], *["--help"] * brief])
            out = None if brief and code == 0 else out
            assert code == 0, f"{block}: {command}\n{out}"
            if shown.strip() and out is not None:
                compare(shown, out, f"{block}: {command}")


def kdcache(words: list[str]) -> tuple[int, str | None]:
    """Run the program in this process; `> FILE` at the end is where it prints to."""
    words, _, target = _split(words, ">")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    if target:
        Path(target[0]).write_text(out.getvalue(), "utf-8")
    return code, out.getvalue() + err.getvalue()


def _split(words: list[str], mark: str) -> tuple[list[str], str, list[str]]:
    at = words.index(mark) if mark in words else len(words)
    return words[:at], mark, words[at + 1 :]


def make(words: list[str]) -> tuple[int, None]:
    """The target is there; it would take minutes."""
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    return int(not set(words) <= set(targets)), None


def pip(words: list[str]) -> tuple[int, str]:
    """What is installed is this project or its kernels, and its extras are there."""
    known: dict[str, set[str]] = {}
    for place in (".", "./kernels"):
        text = (ROOT / place / "pyproject.toml").read_text("utf-8")
        project = tomllib.loads(text)["project"]
        known[place] = known[project["name"]] = {"", *project["optional-dependencies"]}
    name, _, extras = words[-1].rstrip("]").partition("[")
    right = words[0] == "install" and set(extras.split(",")) <= known.get(name, set())
    return int(not right), ""


def python(words: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def torchrun(words: list[str]) -> tuple[int, str | None]:
    """The options of the command that every process runs."""
    return kdcache([*words[words.index("kdcache_cli") + 1 :], "--help"])


Program = Callable[[list[str]], tuple[int, str | None]]
PROGRAMS: dict[str, Program] = {
    "kdcache": kdcache,
    "make": make,
    "pip": pip,
    "python": python,
    "torchrun": torchrun,
}


def compare(shown: str, printed: str, where: str) -> None:
    """Hold what a page shows against what was printed."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    same = doctest.OutputChecker().check_output(words_of(shown), words_of(printed), options)
    assert same, f"{where}\nprints\n{printed}\nnot\n{shown}"


def words_of(text: str) -> str:
    """A text without its figures: numbers, hashes, units of sizes, rulers of tables."""
    text = re.sub(r"\b(?=[0-9a-f]*[0-9])[0-9a-f]{12,}\b", "0", text)
    text = re.sub(r"[-+]?\d(?:[\d.,]*\d)?(?:e[-+]\d+)?", "0", text)
    text = re.sub(r"0 [kMGT]?B\b", "0 B", text)
    return re.sub(r"─+", "─", text).strip() + "\n"
