"""The table of topk_kl's shapes, from what a GPU session timed.

    python benchmarks/gpu_table.py OUT/shapes.json --capability 9.0
    python benchmarks/gpu_table.py OUT/shapes.json --capability 9.0 --write

prints the entry of that compute capability for `SHAPES` in kdcache_kernels/topk_kl/_shapes.py, or
writes it there, in the place of an earlier one: for each vocabulary the shape with the least time
in place and out of place together, which holds up to the middle between two vocabularies. Whether
one spills where there are labels is not in the times: `kernel_resources.py` tells, once the entry
stands in the table.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

Shape = tuple[int, int, int]
SOURCE = Path(__file__).parents[1] / "kernels" / "kdcache_kernels" / "topk_kl" / "_shapes.py"
WIDTH = 100  # of a line of that file


def fastest(items: list[dict[str, Any]]) -> dict[int, Shape]:
    """The shape of the least time by vocabulary; one that failed at a place is left out."""
    seconds: dict[int, Counter[Shape]] = {}
    places: Counter[tuple[int, Shape]] = Counter()
    for item in items:
        if "seconds" in item:
            _, vocab, *numbers = item["item"].rsplit(maxsplit=4)
            block, warps, registers = map(int, numbers)
            shape = (block, warps, registers)
            seconds.setdefault(int(vocab), Counter())[shape] += item["seconds"]
            places[int(vocab), shape] += 1
    most = max(places.values(), default=0)
    found = {}
    for vocab, times in sorted(seconds.items()):
        whole = {shape: time for shape, time in times.items() if places[vocab, shape] == most}
        found[vocab] = min(whole, key=whole.__getitem__)
    return found


def bounds(found: dict[int, Shape]) -> dict[int, Shape]:
    """The longest rows that each shape is for; neighbours that are alike share an entry."""
    vocabularies = list(found)
    table: dict[int, Shape] = {}
    for vocab, longer in zip(vocabularies, [*vocabularies[1:], None], strict=True):
        if longer is None or found[longer] != found[vocab]:
            table[sys.maxsize if longer is None else math.isqrt(vocab * longer)] = found[vocab]
    return table


def entry(table: dict[int, Shape], capability: tuple[int, int]) -> str:
    """The Python that goes into the table, a line if it fits."""
    cells = [
        f"{'sys.maxsize' if most == sys.maxsize else most}: Shape{shape}"
        for most, shape in table.items()
    ]
    line = f"{capability}: {{{', '.join(cells)}}},"
    if len(f"    {line}") <= WIDTH:
        return line
    return "\n".join([f"{capability}: {{", *(f"    {cell}," for cell in cells), "},"])


def written(source: str, added: str, capability: tuple[int, int]) -> str:
    """The source of the table with an entry for that capability, the former one replaced."""
    tables = {
        node.target.id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    table = tables["SHAPES"]
    assert isinstance(table, ast.Dict)
    assert table.end_lineno is not None
    lines = source.splitlines()
    first = last = table.end_lineno - 1  # of what is replaced: nothing, before the closing brace
    for key, value in zip(table.keys, table.values, strict=True):
        assert key is not None
        assert value.end_lineno is not None
        if ast.literal_eval(key) == capability:
            first, last = key.lineno - 1, value.end_lineno
    lines[first:last] = [f"    {line}" for line in added.split("\n")]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shapes", type=Path, help="shapes.json of a session")
    parser.add_argument("--capability", default="9.0", help="of the GPU that it ran on")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=SOURCE,
        metavar="FILE",
        help="write it into the table, by default that of the kernels, and print nothing",
    )
    given = parser.parse_args()
    found = fastest(json.loads(given.shapes.read_text("utf-8"))["items"])
    if not found:
        sys.exit(f"error: {given.shapes} holds no times: was it written by --stage shapes?")
    major, minor = map(int, given.capability.split("."))
    added = entry(bounds(found), (major, minor))
    if given.write is None:
        print(added)
    else:
        changed = written(given.write.read_text("utf-8"), added, (major, minor))
        given.write.write_text(changed, "utf-8")


if __name__ == "__main__":
    main()
