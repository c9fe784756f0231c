"""A cache whose files are those of another tokenizer than its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdcache.models import Tokenizer
from kdcache.store import Cache

TOKENIZER = "tokenizer/"


class OwnTokenizerCache(Cache):
    """A cache as a student with another tokenizer than the teacher's reads it.

    Attributes:
        source: the cache.
        tokenizer: the student's, whose files stand in the place of the teacher's.
    """

    def __init__(self, source: Cache, tokenizer: Tokenizer) -> None:
        super().__init__(source.path, source.teacher)
        self.source, self.tokenizer = source, tokenizer
        self._own = {TOKENIZER + name: data for name, data in tokenizer.files().items()}

    @property
    def original(self) -> Cache:
        """The cache in the teacher's tokens."""
        return self.source

    @property
    def files(self) -> Mapping[str, int]:
        """Files stored in the cache, with the student's tokenizer for the teacher's."""
        kept = {n: s for n, s in super().files.items() if not n.startswith(TOKENIZER)}
        return kept | {name: len(data) for name, data in self._own.items()}

    def file(self, name: str) -> bytes:
        """A file stored in the cache, or of the student's tokenizer."""
        return self._own[name] if name in self._own else super().file(name)

    def extract(self, folder: Path, names: list[str]) -> None:
        """Write files into `folder`, without the folder they have in common."""
        super().extract(folder, [name for name in names if name not in self._own])
        for name in names:
            if name in self._own:
                place = folder / name.removeprefix(TOKENIZER)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self._own[name])
