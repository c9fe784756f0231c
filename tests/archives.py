"""Caches that are committed as an archive of caches: `made.zip` within a zip."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path


def unpack(archive: Path, folder: Path) -> Path:
    """Put the files of `made.zip` of an archive into `folder`; returns the folder."""
    with zipfile.ZipFile(archive) as outer:
        inner = io.BytesIO(outer.read("made.zip"))
    with zipfile.ZipFile(inner) as made:
        made.extractall(folder)
    return folder
