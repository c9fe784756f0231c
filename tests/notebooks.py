"""Notebooks, run cell by cell as a kernel runs them, without one.

`python -m tests.notebooks NOTEBOOK`, in the folder that the notebook goes on in, runs it and keeps
what its cells put out.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PLAIN, PICTURE = "text/plain", "image/png"
Json = dict[str, Any]


def cells(path: Path) -> list[Json]:
    """The cells of a notebook that hold code."""
    found: list[Json] = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def source(cell: Json) -> str:
    return "".join(cell["source"])


def outputs(codes: list[str]) -> Iterator[list[Json]]:
    """What each of some cells puts out, run one after the other in one namespace."""
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, code in enumerate(codes, 1):
        *body, last = ast.parse(code).body
        shown = isinstance(last, ast.Expr)
        printed, value = io.StringIO(), None
        with contextlib.redirect_stdout(printed):
            _run(ast.Module([*body] if shown else [*body, last], []), "exec", number, names)
            if isinstance(last, ast.Expr):
                value = _run(ast.Expression(last.value), "eval", number, names)
        yield [*_stream(printed.getvalue()), *_result(value, number)]


def _run(tree: Any, mode: str, number: int, names: Json) -> Any:
    return eval(compile(tree, f"cell {number}", mode), names)


def _stream(text: str) -> Iterator[Json]:
    if text:
        yield {"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}


def _result(value: Any, number: int) -> Iterator[Json]:
    if value is None:
        return
    data: Json = {PLAIN: repr(value).splitlines(keepends=True)}
    if isinstance(value, Figure):
        file = io.BytesIO()
        value.savefig(file, format="png", dpi=72, metadata={"Software": None})
        data[PICTURE] = base64.b64encode(file.getvalue()).decode()
    yield {
        "output_type": "execute_result",
        "execution_count": number,
        "data": data,
        "metadata": {},
    }


def text_of(found: list[Json]) -> str:
    """What outputs say in words."""
    pieces = [output.get("text") or output["data"][PLAIN] for output in found]
    return "\n".join("".join(piece) for piece in pieces)


def main(path: Path) -> None:
    """Run a notebook in the working folder and write its outputs into it."""
    notebook: Json = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    made = list(outputs([source(cell) for cell in code]))
    for number, (cell, found) in enumerate(zip(code, made, strict=True), 1):
        cell |= {"execution_count": number, "outputs": found}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
