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
from collections.abc import Iterable


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


def one_of(what: str, value: str, options: Iterable[str]) -> str:
    """Return `value` if it is among `options`; else raise ConfigError with the nearest name."""
    known = list(options)
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"unknown {what} {value!r}{hint} (known: {', '.join(known)})")
