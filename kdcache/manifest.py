"""The manifest: what made a plan or cache, as canonical JSON with a digest of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kdcache.errors import DamageError, MismatchError

FORMAT = 3
FORMATS = (1, 2, 3)
FIRST = 1
"""The first format, which is read, not written: commits know a shard by its size alone."""
NAMED = 3
"""The first format in which dimensions have names, and teachers a configuration."""
Json = dict[str, Any]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def seal(record: Json) -> Json:
    """Wrap a record as Zarr group attributes: the record and its digest."""
    return {"kdcache": record, "sha256": digest(record)}


def unseal(attributes: Mapping[str, Any], where: str) -> Json:
    """Return the record of sealed attributes; DamageError if it is not what was sealed."""
    record = attributes.get("kdcache")
    if not isinstance(record, dict):
        raise DamageError(f"{where} holds no kdcache record; is this a kdcache plan or cache?")
    try:
        seen = digest(record)
    except (ValueError, RecursionError) as error:  # NaN, or tables within tables without end
        raise DamageError(f"{where} is damaged: its record is no JSON ({error})") from error
    if attributes.get("sha256") != seen:
        raise DamageError(f"{where} is damaged: its record does not match its SHA-256")
    return record


def require_current(record: Json, where: str) -> None:
    """MismatchError if a store is of the first format, which does not say how to add to it."""
    if record.get("format") == FIRST:
        raise MismatchError(
            f"{where} is of format {FIRST}: it can be read, verified, copied and trained from; to "
            f"repair or merge it, build it anew, in format {FORMAT}"
        )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key in sorted(value):
            yield from _flat(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


COUNTED = {"rows", "parts", "documents", "tokens", "masked", "truncated", "sha256", "parameters"}


def _is_cause(name: str) -> bool:
    """Whether a field was chosen rather than counted: the better one to name."""
    return COUNTED.isdisjoint(name.split("."))


def differences(stored: Json, asked: Json) -> list[tuple[str, Any, Any]]:
    """The fields in which two records differ: (dotted name, stored value, asked value).

    Settings come before what follows from them.
    """
    have, want = dict(_flat(stored)), dict(_flat(asked))
    found = [
        (name, have.get(name, "(absent)"), want.get(name, "(absent)"))
        for name in sorted(have.keys() | want.keys())
        if have.get(name, "(absent)") != want.get(name, "(absent)")
    ]
    return sorted(found, key=lambda field: not _is_cause(field[0]))


def require_same(stored: Json, asked: Json, where: str) -> None:
    """Raise MismatchError naming the first differing field, both values and the way out."""
    found = differences(stored, asked)
    if not found:
        return
    kind, other = stored.get("kind", "cache"), asked.get("kind", "cache")
    if kind != other:
        raise MismatchError(f"{where} holds a {kind}, not a {other}; choose another output folder")
    name, have, want = found[0]
    more = f" (and {len(found) - 1} more: {_names(found[1:])})" if len(found) > 1 else ""
    raise MismatchError(
        f"{where} holds another {kind}: {brief(name)} is {brief(have)} there and {brief(want)} now"
        f"{more}; choose another output folder, or repeat the command that made it"
    )


def _names(found: list[tuple[str, Any, Any]]) -> str:
    names = [brief(name) for name, _, _ in found[:4]]
    return ", ".join(names) + (", ..." if len(found) > 4 else "")


def brief(value: Any) -> str:
    """A value of a record for a message: on one line, and no more than its beginning."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= 60 else text[:57] + "..."
