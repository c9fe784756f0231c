"""Every error kdcache raises for a user's mistake or a damaged file.

KdcacheError
├── ConfigError         an option, specification or recipe that cannot work
├── CorpusError         documents that cannot be read, or labels that do not fit
├── ModelError          a teacher, tokenizer or student that cannot be loaded or does not fit
├── MissingExtraError   an optional package is needed; the message names the extra
└── CacheError          a plan or cache that cannot be used
    ├── MismatchError   the folder holds something made differently; the message names the field
    ├── IncompleteError parts are missing; running `build` again adds them
    └── DamageError     bytes that are not what was written; the message names the objects
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager


class KdcacheError(Exception):
    """Base of every error kdcache raises on purpose; the command line exits with 2 on it."""


class ConfigError(KdcacheError):
    """An option, specification or recipe that cannot work."""


class CorpusError(KdcacheError):
    """Documents that cannot be read, or labels that do not fit the teacher."""


class ModelError(KdcacheError):
    """A teacher, tokenizer or student that cannot be loaded or does not fit."""


class MissingExtraError(KdcacheError):
    """An optional package is needed and not installed."""


class CacheError(KdcacheError):
    """A plan or cache that cannot be used."""


class MismatchError(CacheError):
    """The folder holds a plan or cache made differently."""


class IncompleteError(CacheError):
    """The cache lacks parts that `build` has not committed yet."""


class DamageError(CacheError):
    """Bytes on disk are not the bytes that were written."""


@contextmanager
def saying(change: Callable[[str], str]) -> Iterator[None]:
    """Let a refusal out of this block say what `change` makes of its words."""
    try:
        yield
    except ConfigError as error:
        error.args = (change(str(error)),)
        raise


def said_of(what: str) -> AbstractContextManager[None]:
    """Let a refusal out of this block begin with what it is of."""
    return saying(lambda text: f"{what}: {text}")


LISTED = 24  # names a message lists; of more, only the near ones
SUGGESTED = 3


def one_of(what: str, value: str, options: Iterable[str]) -> str:
    """Return `value` if it is among `options`; else raise ConfigError with the nearest names."""
    known = list(options)
    if value in known:
        return value
    listed = f" (known: {', '.join(known)})" if len(known) <= LISTED else ""
    raise ConfigError(f"unknown {what} {value!r}{did_you_mean(near(value, known))}{listed}")


def near(value: str, options: Iterable[str]) -> list[str]:
    """The few options that `value` may be meant for.

    Those it is but for case, "-" and "_"; else those it begins, then those it is a part of, then
    the one spelled most alike.
    """
    plain = {name: _plain(name) for name in options}
    given = _plain(value)
    for fits in (str.__eq__, str.startswith, str.__contains__):
        found = [name for name, text in plain.items() if len(given) > 1 and fits(text, given)]
        if found:
            return found[:SUGGESTED]
    alike = difflib.get_close_matches(given, plain.values(), n=1, cutoff=0.5)
    return [name for name, text in plain.items() if text in alike][:1]


def did_you_mean(names: Iterable[str]) -> str:
    """The end of a message that suggests `names`; nothing if there are none."""
    shown = " or ".join(map(repr, names))
    return f"; did you mean {shown}?" if shown else ""


def _plain(name: str) -> str:
    return str(name).casefold().replace("_", "-")


def require_path(what: str, value: object, by: str = "folder or hub name") -> None:
    """Raise ConfigError unless `value` is a path or a name; objects have to be saved first."""
    if not isinstance(value, str | os.PathLike):
        way = ": save it (save_pretrained)" if hasattr(value, "save_pretrained") else ""
        raise ConfigError(f"{what} is named by its {by}; got a {type(value).__name__}{way}")
    if not str(value):
        raise ConfigError(f"{what} is named by its {by}; got an empty name")
