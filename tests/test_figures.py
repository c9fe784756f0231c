"""Every figure of the documentation is one of benchmarks/results/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.pages import PAGES, ROOT, prose
from tests.scripts import script_of

CODE = re.compile(r"`[^`]*`|\]\([^)]*\)")
FIGURE = re.compile(r"(?<![\w.,])[-+]?\d[\d,]*(?:\.\d+|e-\d+|%| ?× |(?= times\b))+")
MEANT = ("Python 3.11", "Apache-2.0", "100%", "10%", "1e-4", "2.4 MB")
"""What looks like a figure and is none."""
UNMEASURED = {"format.md", "loading.md", "scores.md"}
"""Pages that define; their numbers are checked by the tests of their code."""

made = script_of("pages")


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", sorted({table.page for table in made.TABLES}))
def test_the_tables_are_those_of_the_results(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert made.with_tables(page, text) == text, "run python benchmarks/pages.py"


@pytest.mark.parametrize("claim", made.CLAIMS, ids=lambda claim: claim.text[:40])
def test_the_sentences_quote_the_results(claim: Any) -> None:
    assert flat(str(claim)) in flat((ROOT / claim.page).read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_without_a_result(page: Path) -> None:
    if page.name in UNMEASURED:
        return
    name = str(page.relative_to(ROOT))
    text = prose(page)
    for table in made.TABLES:
        text = text.replace(table.text(), "")
    text = flat(text)
    for claim in made.CLAIMS:
        if claim.page == name:
            text = text.replace(flat(str(claim)), "")
    text = CODE.sub("", text)
    for word in MEANT:
        text = text.replace(word, "")
    assert FIGURE.findall(text) == []
