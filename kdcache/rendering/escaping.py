"""Texts as HTML and Markdown: whatever they hold stays text, but for `code` between backticks."""

from __future__ import annotations

import re
from html import escape

CODE = re.compile(r"(`[^`]*`)")


def plain(text: str) -> str:
    """A text as HTML, within an attribute too, all of it."""
    return escape(text)


def html(text: str) -> str:
    """A text as HTML."""
    return "".join(_code(piece) or escape(piece) for piece in CODE.split(text))


def _code(piece: str) -> str:
    inner = piece[1:-1] if CODE.fullmatch(piece) else ""
    return f"<code>{escape(inner)}</code>" if inner else ""


def markdown(text: str) -> str:
    """A text as Markdown on one line: what would be read as a tag or a link is not."""
    pieces = CODE.split(" ".join(text.split()))
    return "".join(piece if CODE.fullmatch(piece) else _inert(piece) for piece in pieces)


def _inert(text: str) -> str:
    return text.replace("<", "&lt;").replace("[", "\\[")


def cell(text: str) -> str:
    """A text that stays in its cell of a table whatever a model, a file or a loss is called."""
    return markdown(text).replace("|", "\\|")
