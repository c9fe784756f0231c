"""Files of the folders that a report reads: what is damaged or missing is told, not raised."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcache.manifest import Json


class Reader:
    """Reads files of one folder.

    Attributes:
        notes: sentences on what could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    def json(self, name: str, missing: str) -> Json:
        """A file of JSON, a mapping; empty, with `missing` noted, where it is not there."""
        found = self._read(name, missing, json.loads)
        if found is None or isinstance(found, dict):
            return found or {}
        self.notes.append(f"{name} is damaged: it holds a {type(found).__name__}")
        return {}

    def entries(self, name: str, missing: str) -> list[Json]:
        """A file of JSON, a list of mappings; empty where it is not there."""
        found = self._read(name, missing, json.loads)
        rows = found if isinstance(found, list) else []
        return [row for row in rows if isinstance(row, dict)]

    def toml(self, name: str, missing: str) -> Json:
        """A file of TOML; empty where it is not there."""
        found: Json = self._read(name, missing, tomllib.loads) or {}
        return found

    def _read(self, name: str, missing: str, parse: Callable[[str], Any]) -> Any:
        path = self.folder / name
        if not path.is_file():
            if missing:
                self.notes.append(missing)
            return None
        try:
            return parse(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            self.notes.append(f"{name} is damaged: {error}")
            return None


def weights_of(folder: Path) -> dict[str, Json]:
    """SHA-256 and bytes of every file of weights that lies in a folder, by its name."""
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.onnx"), *folder.glob("*.bin")])
    return {path.name: {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in found}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
