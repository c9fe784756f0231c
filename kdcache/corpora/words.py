"""Documents of words: lists of them with a label each, and CoNLL files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcache.corpora.packed import open_text
from kdcache.corpora.tables import Row, Table, Wanted
from kdcache.corpora.text_tables import named
from kdcache.errors import CorpusError

COLUMNS = ("tokens", "tags")
_COMMENT = re.compile(r"# ?[\w:.-]+ = |# ?new(doc|par)\s*$")  # as CoNLL-U has them
_BOUNDARY = "-DOCSTART-"
_BLANKS = re.compile(" +")  # other spaces may be within a word, as the one in 10 000


def text_of_words(where: str, words: Any, column: str) -> str:
    """Words as lines of a text; CorpusError for what is no list of them."""
    if not isinstance(words, (list, tuple)):
        kind = type(words).__name__
        raise CorpusError(
            f"{where}: column {column!r} must hold lists of words; got {kind}; name another column "
            "with --text-column"
        )
    for word in words:
        if not isinstance(word, str) or word.splitlines() != [word]:
            raise CorpusError(
                f"{where}: column {column!r} must hold words, which are texts of one line; got "
                f"{word!r:.40}: leave it and its tag out"
            )
    return "\n".join(words)


def tags_of(where: str, tags: Any, text: str, column: str) -> list[Any] | None:
    """The labels of a document's words; CorpusError unless there are as many, or none at all."""
    if tags is None:
        return None
    count = len(text.split("\n")) if text else 0
    if not isinstance(tags, (list, tuple)):
        raise CorpusError(
            f"{where}: column {column!r} must hold a list with a tag for each word; got "
            f"{type(tags).__name__}; name another column with --label-column"
        )
    if len(tags) != count:
        raise CorpusError(
            f"{where}: {len(tags)} tags in column {column!r} for {count} words: give each word one "
            "tag, or null in the place of the list where there is none"
        )
    return list(tags)


def conll_table(path: Path) -> Table:
    """Open a CoNLL file: a word a line, its tag in the last column, blank lines between documents.

    Columns are separated by tabs or else by blanks. Comments are left out, and so is -DOCSTART-,
    which ends a document, too. A comment is `# name = value` or `# newdoc`, or begins with `#` and
    a blank and has not the columns of the file's first word: another number of them, or no tabs.
    """
    return Table(name=str(path), columns=COLUMNS, rows=lambda wanted: _sentences(path, wanted))


def _sentences(path: Path, wanted: Wanted) -> Iterator[Row]:
    start, rows, seen = 1, list[Sequence[str]](), False
    with named(path), open_text(path) as file:
        like = next(filter(None, map(_columns, file)), None)
    with named(path), open_text(path) as file:
        for number, line in enumerate(file, 1):
            cells = [] if _is_comment(line, like) else _cells(path, number, line)
            if cells:
                start = start if rows else number
                rows.append(cells)
            elif rows and (not line.strip() or line.startswith(_BOUNDARY)):
                seen = seen or _require_words(path, start, rows)
                yield _row(path, start, rows)
                rows = []
    if rows:
        seen = seen or _require_words(path, start, rows)
        yield _row(path, start, rows)


def _require_words(path: Path, start: int, rows: Sequence[Sequence[str]]) -> bool:
    """Raise CorpusError where the first column numbers words; whether the rows tell."""
    numbered = [cells[0] for cells in rows] == [str(n) for n in range(1, len(rows) + 1)]
    if numbered and len(rows) > 1 and len(rows[0]) > 2:
        raise CorpusError(
            f"{path}:{start}: the first column numbers the words, and it is to hold them: leave "
            "that column out of the file"
        )
    return len(rows) > 1


def _cells(path: Path, number: int, line: str) -> list[str]:
    """The columns of a line; none of one that holds no word."""
    if not line.strip() or line.startswith(_BOUNDARY):
        return []
    cells = _split(line)
    if len(cells) < 2 or not cells[0].strip():
        raise CorpusError(
            f"{path}:{number}: malformed: expected a word and a tag, separated by a tab or blanks; "
            f"got {line.strip()!r:.40}"
        )
    return [cell.strip() for cell in cells]


def _split(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t") if "\t" in line else _BLANKS.split(line.strip())


def _columns(line: str) -> tuple[bool, int] | None:
    """Whether tabs separate the columns of a line that holds a word for sure, and their number."""
    if not line.strip() or line.startswith(("#", _BOUNDARY)):
        return None
    return "\t" in line, len(_split(line))


def _is_comment(line: str, like: tuple[bool, int] | None) -> bool:
    """Whether a line is a comment in a file whose words have such columns."""
    if not line.startswith("#"):
        return False
    alone = _split(line)[0] == "#"  # else it may be a word, as #this
    return bool(_COMMENT.match(line)) or (alone and ("\t" in line, len(_split(line))) != like)


def _row(path: Path, start: int, rows: Sequence[Sequence[str]]) -> Row:
    words, tags = [cells[0] for cells in rows], [cells[-1] for cells in rows]
    return f"{path}:{start}", dict(zip(COLUMNS, (words, tags), strict=True))
