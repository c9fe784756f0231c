"""Rows as they are measured, kept beside the report: a run that is stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from kdcache.bench.report import Json


class Notes:
    """Rows in the order they are measured in, a line of JSON each below what they are measured of.

    Attributes:
        rows: those of a run that was stopped, of the same head, and those added since.
    """

    def __init__(self, path: Path | None, head: Json) -> None:
        """`path` is the file, None: rows are not kept; `head` says what is measured, and where."""
        self._path = path
        self.rows: list[Json] = []
        if path is None:
            return
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last one may be half written
        first = json.dumps(head) + "\n"
        if whole[:1] != [first]:
            whole = [first]
        self.rows = [json.loads(line) for line in whole[1:]]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(whole), "utf-8")

    def add(self, row: Json) -> None:
        """Keep one more row."""
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
