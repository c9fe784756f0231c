"""The client of an object store: one a bucket, patient, its errors say what to do, no fork.

The client, obstore, has threads that do not survive a fork, so a forked child that would use one is
refused rather than left to hang. It is imported when it is first used.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from kdcache.errors import CacheError, ConfigError, MissingExtraError

T = TypeVar("T")
log = logging.getLogger("kdcache")

PATIENCE = "KDCACHE_PATIENCE"
DEFAULT_PATIENCE = "120"  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.1, 15.0  # seconds between tries
ANNOUNCE_AFTER = 3.0  # seconds of waiting that go without a word

# Of one request, by the client: conflicts of conditional puts, mostly. `patiently` does the rest,
# for the client repeats neither listings nor answers that break off.
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
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
    with _talking(url):
        return from_url(url, client_options=options, retry_config=RETRIES)


class _Unanswered(CacheError):
    """A store that did not answer, or not to the end: it may, asked again."""


_here = threading.local()


def ends_with(ended: threading.Event) -> None:
    """Let this thread wait for no answer any more once `ended` is set: nobody waits for it."""
    _here.ended = ended


def patiently(what: object, job: Callable[[], T]) -> T:
    """The result of a job that asks an object store for something, repeated until it is answered.

    Waits double from try to try, shortened at random so that many readers do not come back at
    once. KDCACHE_PATIENCE is how many seconds to go on, 120 by default; 0: one try.

    Raises CacheError when patience ends, FileNotFoundError and FileExistsError as the store says.
    """
    started, wait, patience, announced = time.monotonic(), FIRST_WAIT, _patience(), False
    ended: threading.Event = getattr(_here, "ended", None) or threading.Event()
    while True:
        try:
            with _talking(what):
                return job()
        except _Unanswered as error:
            waited = time.monotonic() - started
            if waited >= patience or ended.is_set():
                raise
            if not announced and waited > ANNOUNCE_AFTER:
                announced = True
                log.warning("%s does not answer; trying for %.0f s", what, patience - waited)
            log.debug("%s", error)
        ended.wait(min(wait * random.uniform(0.5, 1), patience - waited))
        wait = min(2 * wait, LONGEST_WAIT)


def _patience() -> float:
    text = os.environ.get(PATIENCE, DEFAULT_PATIENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{PATIENCE} takes a number of seconds, 0 or more; got {text!r}")
    return seconds


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
    except exceptions.GenericError as error:
        raise _Unanswered(_unreachable(what, error)) from error
    except exceptions.BaseError as error:
        raise CacheError(_unreachable(what, error)) from error


def _unreachable(what: object, error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return (
        f"{what} cannot be reached: {first}; check the network, the URL and AWS_ENDPOINT_URL, "
        "then run the same command again"
    )
