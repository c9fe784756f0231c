"""JSON files that are one list of objects, read object by object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from kdcache.corpora.packed import FAILURES, open_bytes, open_text
from kdcache.corpora.tables import Row, Table
from kdcache.corpora.text_tables import named
from kdcache.errors import CorpusError

CHUNK = 1 << 16  # characters read at once
MOST = 1 << 24  # characters of an object: what a file can make a reader hold

_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def array_table(path: Path) -> Table:
    """Open a JSON file that is one list of objects."""
    return Table(name=str(path), columns=None, rows=lambda wanted: _objects(path))


def is_array(path: Path) -> bool:
    """Whether a JSON file is a list, or too damaged to tell."""
    with suppress(*FAILURES), open_bytes(path) as file:
        return file.read(CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"")
    return True


def _objects(path: Path) -> Iterator[Row]:
    with named(path), open_text(path) as file:
        text = _Text(file)
        text.expect(path, "[", " a list of objects; a file of one object a line ends in .jsonl")
        number, mark = 0, text.peek()
        while mark != "]":
            if number:
                text.expect(path, ",", " or ] after an object")
            number += 1
            if text.peek() != "{":
                raise CorpusError(f"{path}:{text.line}: malformed: object {number} is none")
            where = f"{path}:{text.line}, object {number}"
            yield where, text.object(path, number)
            mark = text.peek()
        text.expect(path, "]", "")
        if text.peek():
            raise CorpusError(f"{path}:{text.line}: malformed: more text behind the list")


class _Text:
    """The text of a file, as much of it at a time as its next object takes."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.buffer, self.at, self.line = file, "", 0, 1

    def peek(self) -> str:
        """The next character that is not blank; none at the end."""
        while True:
            blanks = _BLANKS.match(self.buffer, self.at)
            self._pass(blanks.end() if blanks else self.at)
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def expect(self, path: Path, mark: str, what: str) -> None:
        """Pass over a mark; CorpusError if there is another."""
        found = self.peek()
        if found != mark:
            found = repr(found) if found else "the end of the file"
            raise CorpusError(f"{path}:{self.line}: malformed: expected {mark}{what}; got {found}")
        self._pass(self.at + 1)

    def object(self, path: Path, number: int) -> dict[str, Any]:
        """The object that begins here."""
        while True:
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.at)
            except (ValueError, RecursionError) as error:
                place = getattr(error, "pos", self.at)
                line = self.line + self.buffer.count("\n", self.at, place)
                long = len(self.buffer) - self.at > MOST
                if isinstance(error, RecursionError) or long or not self._more():
                    what = f"no JSON, or longer than {MOST:,} characters" if long else "not JSON"
                    raise CorpusError(
                        f"{path}:{line}: malformed: object {number} is {what}: "
                        f"{getattr(error, 'msg', error)}"
                    ) from error
            else:
                self._pass(end)
                return dict(found)

    def _pass(self, end: int) -> None:
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def _more(self) -> bool:
        chunk = self.file.read(max(CHUNK, len(self.buffer) - self.at))
        self.buffer, self.at = self.buffer[self.at :] + chunk, 0
        return bool(chunk)
