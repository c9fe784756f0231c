"""Tables and figures of the documentation, made of the results committed here.

    python benchmarks/pages.py    writes the tables anew into the pages

A table is found in its page by its first cell. tests/test_figures.py holds every page against these
tables, and the figures in its sentences against CLAIMS.
"""

from __future__ import annotations

import re

from page_claims import CLAIMS
from page_parts import ROOT
from page_tables import TABLES

__all__ = ["CLAIMS", "TABLES", "with_tables"]


def with_tables(page: str, text: str) -> str:
    """The text of a page with its tables as the results have them."""
    for table in (table for table in TABLES if table.page == page):
        found = re.compile(rf"^\| {re.escape(table.first[0])} \|.*\n(?:\|.*\n)+", re.MULTILINE)
        made = table.text() + "\n"
        text, count = found.subn(lambda _, made=made: made, text)
        if count == 0:
            text = _appended(text, table.section, made)
        assert count <= 1, f"{page} has {count} tables that begin with {table.first[0]!r}"
    return text


def _appended(text: str, section: str, table: str) -> str:
    before, heading, rest = text.partition(f"## {section}\n")
    assert heading, f"no section {section!r}"
    inside, following, others = rest.partition("\n## ")
    body = "\n\n".join(piece for piece in (inside.strip("\n"), table) if piece)
    return f"{before}{heading}\n{body}{following}{others}"


if __name__ == "__main__":
    for page in sorted({table.page for table in TABLES}):
        path = ROOT / page
        path.write_text(with_tables(page, path.read_text("utf-8")), "utf-8")
        print(f"wrote {path}")
