"""The client of an object store: one a bucket, errors that say what to do, no use across a fork.

The client, obstore, has threads that do not survive a fork, so a forked child that would use one is
refused rather than left to hang. It is imported when it is first used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from kdcache.errors import CacheError, MissingExtraError

RETRIES: Any = {"max_retries": 6, "retry_timeout": timedelta(minutes=2)}
REQUEST_TIMEOUT = "600s"  # of one request: a whole shard over a slow line

_process: int | None = None  # the process whose threads serve all clients


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
    with talking(url):
        return from_url(url, client_options=options, retry_config=RETRIES)


@contextmanager
def talking(what: object) -> Iterator[None]:
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
