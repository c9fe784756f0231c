"""Results as text: what the tables and sentences of the documentation are made with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SST2, WORDS = "cached_vs_online_sst2_steps", "cached_vs_online_masked_lm_steps"
Json = dict[str, Any]
Row = Sequence[str]


@cache
def result(name: str) -> Json:
    """A committed result."""
    found: Json = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


@dataclass(frozen=True)
class Table:
    """A table of a page, made of a result; one that the page lacks goes to the end of `section`.

    One without a `result` is made of the sources.
    """

    page: str
    section: str
    result: str
    head: Row | Callable[[], Row]
    rows: Callable[[], Iterator[Row]]

    @property
    def first(self) -> Row:
        return self.head() if callable(self.head) else self.head

    def text(self) -> str:
        return markdown(self.first, self.rows())


def markdown(head: Row, rows: Iterator[Row]) -> str:
    """A table as Markdown has it."""
    return "\n".join(map(_line, [head, ["---"] * len(head), *rows]))


def _line(cells: Row) -> str:
    return plain("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))


def plain(text: str) -> str:
    """Small numbers as people write them: 8e-5."""
    return re.sub(r"(?<=\de-)0", "", text)


README = "README.md"
STORE, FIDELITY, KERNELS = "docs/store.md", "docs/fidelity.md", "docs/kernels.md"
METHODS, OTHERS = "docs/methods.md", "docs/others.md"
RECIPES, SCALE = "docs/recipes.md", "docs/scale.md"
COMPARISON = "../../docs/comparison"  # read by people, not measured: it lies beside its page


@dataclass(frozen=True)
class Claim:
    """A sentence whose `{}` are `figures`, read from committed results."""

    page: str
    text: str
    figures: Callable[[], Sequence[float]]

    def __str__(self) -> str:
        return plain(self.text.format(*self.figures()))


def best_rival(row: Json) -> Json:
    """The rival, and the allocator where both were tried, that comes nearest to ours."""
    if row.get("best"):
        best: Json = row["best"]
        return best
    timed = [{"rival": name, **v} for name, v in row["rivals"].items() if "seconds" in v]
    return min(timed, key=lambda rival: float(rival["ratio"]))
