"""Pages of the site that are made: of files elsewhere, of a notebook, of what `--help` prints.

The README is the front page, and links between files become links between pages. mkdocs calls
`on_files` and `on_page_markdown`.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from kdcache_cli import app, bench
from kdcache_cli.main import main

ROOT = Path(__file__).parents[1]
DECISIONS = "decisions/index.md"
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE",
    "docs/decisions": DECISIONS,
}
"""Where in the site lies what is not a page of docs/."""
COMMANDS, NOTEBOOK = "reference/commands.md", "tutorials/notebook"
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of files outside docs/, and a list of the decisions."""
    for source, page in OUTSIDE.items():
        if page != DECISIONS:
            text = (ROOT / source).read_text("utf-8")
            files.append(File.generated(config, page, content=text))
    made = {DECISIONS: decisions(), COMMANDS: commands(), **notebook(NOTEBOOK)}
    for page, content in made.items():
        files.append(File.generated(config, page, content=content))
    return files


def decisions() -> str:
    """A page that lists the decision records by their titles."""
    records = sorted((ROOT / "docs/decisions").glob("0*.md"))
    titles = [r.read_text("utf-8").partition("\n")[0].lstrip("# ") for r in records]
    listed = [f"- [{title}]({r.name})" for title, r in zip(titles, records, strict=True)]
    return "\n".join(["# Why things are as they are", "", *listed, ""])


def commands() -> str:
    """A page of what every command prints of itself."""
    names = [[name] for name in app.COMMANDS if name != "bench"]
    names += [["bench", name] for name in bench.COMMANDS]
    printed = [f"## {' '.join(name)}\n\n```text\n{help_of(name)}```\n" for name in names]
    return "\n".join(["# Commands\n", *printed])


def help_of(name: list[str]) -> str:
    """What a command prints for `--help`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([*name, "--help"])
    return out.getvalue().strip() + "\n"


def notebook(name: str) -> dict[str, str | bytes]:
    """A notebook as a page, with the pictures that it shows beside it."""
    cells = json.loads((ROOT / f"docs/{name}.ipynb").read_text("utf-8"))["cells"]
    pictures: dict[str, bytes] = {}
    text = "\n\n".join(piece for cell in cells for piece in pieces(cell, name, pictures))
    return {f"{name}.md": text + "\n", **pictures}


def pieces(cell: Any, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """A cell as Markdown: its text, or its code and what came of it."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if "image/png" in data:
            picture = f"{name}-{len(pictures)}.png"
            pictures[picture] = base64.b64decode(data["image/png"])
            yield f"![What the cell above draws]({os.path.basename(picture)})"
        else:
            shown = "".join(data["text/plain"]).rstrip("\n")
            yield f"```text\n{shown}\n```"


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links between files of the repository, as links between pages of the site."""
    sources = {target: source for source, target in OUTSIDE.items()}
    here = page.file.src_uri
    source = ROOT / sources.get(here, f"docs/{here}")

    def link(found: re.Match[str]) -> str:
        before, target, anchor, after = found.groups(default="")
        path = Path(os.path.normpath(source.parent / target))
        if here == DECISIONS or not path.exists():
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        name = OUTSIDE.get(name, name.removeprefix("docs/")).replace(".ipynb", ".md")
        return f"{before}{os.path.relpath(name, os.path.dirname(here) or '.')}{anchor}{after}"

    return LINK.sub(link, markdown)
