"""Every message that the questions quote is one that the sources can say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.pages import DOCS, ROOT, Block, blocks

FAQ = DOCS / "faq.md"
OWN = 0.4
"""Share of a message that its source spells out; with less, anything would be of its kind."""
Parts = tuple[str | None, ...]


def parts_of(node: ast.expr) -> Iterator[str | None]:
    """A text as its literal pieces, None where a value is put in."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from parts_of(value)
        case _:
            yield None


@cache
def texts() -> frozenset[Parts]:
    """What the sources can say."""
    nodes = (
        node
        for root in ("kdcache", "cli")
        for file in (ROOT / root).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr)
    )
    return frozenset(tuple(parts_of(node)) for node in nodes)


def said(message: str) -> bool:
    """Whether a text of the sources is this message with values put in."""
    for parts in texts():
        own = [part for part in parts if part]
        if sum(map(len, own)) >= OWN * len(message) and all(part in message for part in own):
            form = "".join(".*" if part is None else re.escape(part) for part in parts)
            if re.fullmatch(form, message):
                return True
    return False


@pytest.mark.parametrize("block", blocks(FAQ, "text"), ids=str)
def test_a_message_of_the_questions_is_one_of_the_sources(block: Block) -> None:
    for message in block.text.splitlines():
        assert said(message), message


def test_what_nobody_says_is_found() -> None:
    assert said("the corpus has 5 classes; the teacher has 4")
    assert not said("the corpus has 5 classes; the teachers have 4")
