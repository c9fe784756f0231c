"""Who works on which part: advice that keeps builders of one cache from doing the same work.

Nothing depends on it: any number of writers may write one part, and one commit wins. So a claim is
never waited for and never expires. Parts that a killed builder had claimed are done last.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kdcache.store.format.commit_log import part_name
from kdcache.store.io.durable_writes import put_if_absent
from kdcache.store.io.object_path import Root


class Claims:
    """The claims of one builder, in a folder that all builders of a cache share."""

    def __init__(self, folder: Root) -> None:
        self.folder = folder
        self._mine: set[int] = set()

    def take(self, missing: Sequence[int]) -> int | None:
        """A part to work on next: one that nobody has claimed, else the first; None of none."""
        for part in missing:
            if part in self._mine or self._claim(part):
                return part
        return missing[0] if missing else None

    def _claim(self, part: int) -> bool:
        holder = f"{platform.node()} {os.getpid()}\n".encode()
        scratch = self.folder / f"claim.{uuid.uuid4().hex}"
        if not put_if_absent(self.folder / part_name(part), holder, scratch):
            return False
        self._mine.add(part)
        return True

    def drop(self) -> None:
        """Give up every claim: the parts are committed, or someone else's to do."""
        for part in self._mine:
            (self.folder / part_name(part)).unlink(missing_ok=True)
        self._mine.clear()
        if isinstance(self.folder, Path):
            with suppress(OSError):  # not empty, or gone: others are at work
                self.folder.rmdir()
                self.folder.parent.rmdir()
