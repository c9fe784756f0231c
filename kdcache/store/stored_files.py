"""The files that a store keeps beside its rows: a tokenizer, configurations, weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdcache.errors import DamageError
from kdcache.manifest import Json
from kdcache.store.format.array_reader import ArrayReader
from kdcache.store.format.commit_log import PlanFingerprints
from kdcache.store.format.zarr_metadata import read_layout, read_object
from kdcache.store.io.object_path import Root

BLOCK = 2**24  # bytes in memory at once


@dataclass(frozen=True)
class StoredFiles:
    """The files of one teacher, and the tokenizer's, by the names they had where they came from.

    Attributes:
        root: the store.
        objects: what its first commit names.
        prefix: where the teacher's arrays and files lie; "" of the first.
    """

    root: Root
    objects: Mapping[str, Json]
    prefix: str = ""

    @cached_property
    def locations(self) -> dict[str, str]:
        """Where each lies in the store, by name."""
        shards = [key for key in self.objects if key.startswith("files/") and "/c/" in key]
        names = {key.removeprefix("files/").rpartition("/c/")[0] for key in shards}
        found = {name: name for name in names if name.startswith("tokenizer/")}
        for name in names:
            own = name.removeprefix(self.prefix)
            if name.startswith(self.prefix) and not own.startswith("teachers/"):
                found[own] = name
        return dict(sorted(found.items()))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each, by name."""
        return {name: self._size(name) for name in self.locations}

    def _size(self, name: str) -> int:
        key = f"files/{self.locations[name]}/zarr.json"
        node = json.loads(read_object(self.root, key, self.objects))
        return int(node["attributes"]["bytes"])

    def read(self, name: str) -> bytes:
        """A file; DamageError if it is not there or not what was stored."""
        return b"".join(self._blocks(name))

    def extract(self, folder: Path, names: list[str]) -> None:
        """Write files into `folder`, without the folder they have in common."""
        for name in names:
            target = folder / name.partition("/")[2]
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(self._blocks(name))

    def _blocks(self, name: str) -> Iterator[bytes]:
        if name not in self.sizes:
            raise DamageError(f"{self.root} holds no file {name!r}")
        layout = read_layout(self.root, f"files/{self.locations[name]}", 1, self.objects)
        reader = ArrayReader(self.root, layout, PlanFingerprints(self.objects, self.root))
        size = self.sizes[name]
        for start in range(0, size, BLOCK):
            yield reader[start : min(size, start + BLOCK)].tobytes()
