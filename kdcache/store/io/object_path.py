"""Stores by URL: paths in an object store that look as much like pathlib's as the store needs.

`locate` turns what a user gives into a `Root`, a local Path or an ObjectPath; a URL must never pass
through `Path`, which takes `s3://bucket` for `s3:/bucket`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from kdcache.errors import CacheError, ConfigError, DamageError, one_of, require_path
from kdcache.store.io.object_client import Bucket, ends_with, patiently

SCHEMES = ("s3", "gs", "az")
AT_ONCE = 8  # requests; each holds an object in memory

T = TypeVar("T")
R = TypeVar("R")


class Stat(NamedTuple):
    """What is known of an object without reading it; `etag` changes whenever its bytes do."""

    st_size: int
    etag: str


class ObjectPath:
    """A path in an object store. Folders exist as far as objects lie in them."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self.bucket, self.key = bucket, key

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}"

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and str(self) == str(other)

    def __lt__(self, other: ObjectPath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, key: str | PurePosixPath) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{key}".strip("/"))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """The folder it lies in."""
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """The path beside this one."""
        return self.parent / name

    def relative_to(self, root: ObjectPath) -> PurePosixPath:
        """The path inside `root`; ValueError if it does not lie there."""
        return PurePosixPath(self.key).relative_to(root.key)

    def stat(self) -> Stat:
        """Size and identity of an object; FileNotFoundError if there is none."""
        import obstore

        client = self.bucket.client
        found = patiently(self, lambda: obstore.head(client, self.key))
        return Stat(found["size"], str(found["e_tag"]))

    def is_file(self) -> bool:
        """Whether there is an object of that name."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether any object lies below."""
        return next(self.below(), None) is not None

    def exists(self) -> bool:
        """Whether there is an object of that name, or any below."""
        return self.is_file() or self.is_dir()

    def read_bytes(self, limit: int | None = None) -> bytes:
        """The bytes of an object; FileNotFoundError if there is none, DamageError past `limit`."""
        import obstore

        client = self.bucket.client

        def read() -> bytes:
            found = obstore.get(client, self.key)
            size = found.meta["size"]
            if limit is not None and size > limit:
                raise DamageError(
                    f"{self} is damaged: {size} bytes; {limit} at most can belong here"
                )
            return found.bytes().to_bytes()

        return patiently(self, read)

    def write_bytes(self, data: bytes, *, create: bool = False) -> None:
        """Put an object, in one step; with `create`, FileExistsError if there is one."""
        import obstore

        client = self.bucket.client
        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            patiently(
                self, lambda: obstore.put(client, self.key, data, mode=mode, use_multipart=False)
            )
        except FileNotFoundError as error:
            raise CacheError(f"there is no bucket {self.bucket.url}; create it first") from error

    def copy_to(self, target: ObjectPath) -> None:
        """Copy an object within its bucket, without it passing through this machine."""
        import obstore

        client = self.bucket.client
        patiently(self, lambda: obstore.copy(client, self.key, target.key))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object; FileNotFoundError if there is none, unless `missing_ok`."""
        import obstore

        if not missing_ok:
            self.stat()
        client = self.bucket.client
        patiently(self, lambda: obstore.delete(client, self.key))

    def unlink_all(self) -> None:
        """Remove every object below; none is fine."""
        import obstore

        keys = [f"{self.key}/{key}" for key in self.below()]
        client = self.bucket.client
        for start in range(0, len(keys), 1000):  # what one request may name
            some = keys[start : start + 1000]
            patiently(self, partial(obstore.delete, client, some))

    def below(self) -> Iterator[str]:
        """Names of all objects below, relative to this path."""
        return (found["path"][len(self.key) :].lstrip("/") for found in self._list())

    def sizes(self) -> dict[str, int]:
        """Bytes of all objects below, by name relative to this path."""
        return {found["path"][len(self.key) :].lstrip("/"): found["size"] for found in self._list()}

    def _list(self) -> Iterator[Any]:
        """Objects below, page by page; a listing that breaks off goes on after its last page."""
        pages = _Pages(self.bucket.client, self.key or None)
        while found := patiently(self, pages.turn):
            yield from found

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects below that match, as pathlib's: `*` within a folder, `**` any folders."""
        fixed, star, _ = pattern.partition("*")
        folder = fixed.rpartition("/")[0] if star else fixed
        wanted = re.compile(
            "".join(
                {"**/": "(?:.*/)?", "*": "[^/]*"}.get(piece, re.escape(piece))
                for piece in re.split(r"(\*\*/|\*)", pattern)
            )
        )
        for key in (self / folder).below():
            found = f"{folder}/{key}".lstrip("/")
            if wanted.fullmatch(found):
                yield self / found

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Objects in any folder below that match."""
        return self.glob(f"**/{pattern}")


class _Pages:
    """The pages of a listing, asked for one by one."""

    def __init__(self, client: Any, prefix: str | None) -> None:
        self.client, self.prefix = client, prefix
        self.last: str | None = None
        self.stream: Iterator[Any] | None = None

    def turn(self) -> Sequence[Any]:
        """The next page, empty after the last. What is raised leaves the place as it was."""
        import obstore

        if self.stream is None:
            self.stream = iter(obstore.list(self.client, prefix=self.prefix, offset=self.last))
        try:
            page: Sequence[Any] = next(self.stream, ())
        except BaseException:
            self.stream = None
            raise
        self.last = page[-1]["path"] if page else self.last
        return page


Root = Path | ObjectPath
"""Where a store, or an object of one, lies."""

Place = str | Root
"""What a user may give for a Root: a folder, or a URL such as s3://bucket/train.cache."""


def locate(where: Place) -> Root:
    """The path a user means by a folder's name or by a URL such as s3://bucket/prefix.

    Raises ConfigError for a URL of an unknown kind, or one that names no prefix.
    """
    if isinstance(where, Path | ObjectPath):
        return where
    require_path("a plan or a cache", where, "folder or URL")
    scheme, separator, _ = where.partition("://")
    if not separator:
        return Path(where)
    one_of("kind of object store", scheme, SCHEMES)
    parts = urlsplit(where, allow_fragments=False)
    key = "/".join(piece for piece in parts.path.split("/") if piece)
    if not parts.netloc or not key or parts.query:
        raise ConfigError(
            f"{where} names no store; it takes a bucket and a prefix, as in "
            f"{scheme}://bucket/train.cache"
        )
    return ObjectPath(Bucket(f"{scheme}://{parts.netloc}"), key)


def absolute(root: Root) -> Root:
    """The same place for a process that works in another folder."""
    return root.absolute() if isinstance(root, Path) else root


def at_once(
    job: Callable[[T], R],
    items: Iterable[T],
    done: Callable[[R], object] = lambda result: None,
    *,
    threads: int = AT_ONCE,
) -> None:
    """Do a job for every item, several at a time, and `done` with each result, one at a time.

    The first error, or Ctrl-C, ends it: jobs that have begun are waited for, but wait themselves
    for no store that does not answer.
    """
    ended = threading.Event()
    with ThreadPoolExecutor(threads, "kdcache-objects", ends_with, (ended,)) as pool:
        try:
            for result in pool.map(job, items):
                done(result)
        except BaseException:
            ended.set()
            pool.shutdown(cancel_futures=True)
            raise
