"""Stores by URL: paths in an object store that look as much like pathlib's as the store needs.

`locate` turns what a user gives into a `Root`, a local Path or an ObjectPath; a URL must never pass
through `Path`, which takes `s3://bucket` for `s3:/bucket`. The client, obstore, has threads that do
not survive a fork, so a forked child that would use one is refused rather than left to hang.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from kdcache.errors import CacheError, ConfigError, DamageError, MissingExtraError, one_of

SCHEMES = ("s3", "gs", "az")
RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(minutes=2)}
REQUEST_TIMEOUT = "600s"  # of one request: a whole shard over a slow line

AT_ONCE = 8  # requests; each holds an object in memory

T = TypeVar("T")
R = TypeVar("R")

_process: int | None = None  # the process whose threads serve all clients


class Stat(NamedTuple):
    """What is known of an object without reading it; `etag` changes whenever its bytes do."""

    st_size: int
    etag: str


class Bucket:
    """A bucket of an object store; its client is made when first used, once a process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: Any = None

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (self.url,)

    @property
    def client(self) -> Any:
        """The obstore client; CacheError in a fork of the process that first used one."""
        global _process
        if _process not in (None, os.getpid()):
            raise CacheError(
                f"{self.url} was opened before this process was forked, and object stores do not "
                "survive a fork: read it in the process that opened it (num_workers=0), or start "
                'workers with multiprocessing_context="spawn"'
            )
        if self._made is None:
            self._made = _connect(self.url)
            _process = os.getpid()
        return self._made


def _connect(url: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError(
            f"{url} needs the extra s3: pip install 'kdcache[s3]' (obstore)"
        ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
    options: Any = {"timeout": REQUEST_TIMEOUT, "allow_http": endpoint.startswith("http://")}
    with _talking(url):
        return from_url(url, client_options=options, retry_config=RETRIES)


@contextmanager
def _talking(what: object) -> Iterator[None]:
    """Turn obstore's errors into the system's, or ours where the system has none such."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(what)) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, "there already", str(what)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise CacheError(
            f"{what}: access denied; check the credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the role) and the rights they give"
        ) from error
    except exceptions.BaseError as error:
        first = str(error).partition("\n")[0]
        raise CacheError(
            f"{what} cannot be reached: {first}; check the network, the URL and AWS_ENDPOINT_URL, "
            "then run the same command again"
        ) from error


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
        with _talking(self):
            found = obstore.head(client, self.key)
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
        with _talking(self):
            found = obstore.get(client, self.key)
            size = found.meta["size"]
            if limit is not None and size > limit:
                raise DamageError(
                    f"{self} is damaged: {size} bytes; {limit} at most can belong here"
                )
            return found.bytes().to_bytes()

    def write_bytes(self, data: bytes, *, create: bool = False) -> None:
        """Put an object, in one step; with `create`, FileExistsError if there is one."""
        import obstore

        client = self.bucket.client
        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            with _talking(self):
                obstore.put(client, self.key, data, mode=mode, use_multipart=False)
        except FileNotFoundError as error:
            raise CacheError(f"there is no bucket {self.bucket.url}; create it first") from error

    def copy_to(self, target: ObjectPath) -> None:
        """Copy an object within its bucket, without it passing through this machine."""
        import obstore

        client = self.bucket.client
        with _talking(self):
            obstore.copy(client, self.key, target.key)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object; FileNotFoundError if there is none, unless `missing_ok`."""
        import obstore

        if not missing_ok:
            self.stat()
        client = self.bucket.client
        with _talking(self):
            obstore.delete(client, self.key)

    def unlink_all(self) -> None:
        """Remove every object below; none is fine."""
        import obstore

        keys = [f"{self.key}/{key}" for key in self.below()]
        client = self.bucket.client
        with _talking(self):
            for start in range(0, len(keys), 1000):  # what one request may name
                obstore.delete(client, keys[start : start + 1000])

    def below(self) -> Iterator[str]:
        """Names of all objects below, relative to this path."""
        import obstore

        client = self.bucket.client
        with _talking(self):
            for page in obstore.list(client, prefix=self.key or None):
                yield from (found["path"][len(self.key) :].lstrip("/") for found in page)

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


Root = Path | ObjectPath
"""Where a store, or an object of one, lies."""

Place = str | Root
"""What a user may give for a Root: a folder, or a URL such as s3://bucket/train.cache."""


def locate(where: Place) -> Root:
    """The path a user means by a folder's name or by a URL such as s3://bucket/prefix.

    Raises ConfigError for a URL of an unknown kind, or one that names no prefix.
    """
    if not isinstance(where, str):
        return where
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


def at_once(
    job: Callable[[T], R],
    items: Iterable[T],
    done: Callable[[R], object] = lambda result: None,
    *,
    threads: int = AT_ONCE,
) -> None:
    """Do a job for every item, several at a time, and `done` with each result, one at a time.

    The first error, or Ctrl-C, ends it: jobs that have begun are waited for.
    """
    with ThreadPoolExecutor(threads, "kdcache-objects") as pool:
        try:
            for result in pool.map(job, items):
                done(result)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
