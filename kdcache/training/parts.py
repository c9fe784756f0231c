"""Which documents of a cache a run trains on: all, or those of parts that are committed already."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate.utils import broadcast_object_list

from kdcache.errors import ConfigError, IncompleteError
from kdcache.manifest import digest
from kdcache.plans import Docs
from kdcache.store import Cache
from kdcache.store.commits.committed_parts import part_documents, parts_in_place

Parts = list[int] | None
"""Parts to train on; None: all of a complete cache."""


def choose_parts(cache: Cache, record: Path, *, allow_partial: bool, resume: bool) -> Parts:
    """The parts of a run; a run that is resumed keeps those that `record`, its cache.json, names.

    Raises IncompleteError if the cache lacks parts and `allow_partial` does not allow for it, or
    no part is there yet.
    """
    if resume and record.is_file():
        recorded = _recorded(record)
        gone = set(recorded or ()) - set(parts_in_place(cache)) if recorded else set()
        if gone:
            raise IncompleteError(f"{cache.path} has lost part {min(gone)}, which the run was on")
        if recorded is not None:
            return recorded
    if cache.complete or not allow_partial:
        cache.require_complete()
        return None
    found = parts_in_place(cache)
    if not found:
        raise IncompleteError(f"{cache.path} holds no part yet; wait until the build commits one")
    return found


def _recorded(record: Path) -> Parts:
    try:
        parts = json.loads(record.read_text("utf-8")).get("parts")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{record} is damaged: {error}; train into another folder") from error
    if parts is None or (isinstance(parts, list) and all(type(part) is int for part in parts)):
        return parts
    raise ConfigError(f"{record} is damaged: its parts are {parts!r}; train into another folder")


def agree(parts: Parts) -> Parts:
    """The parts that the first process has found: a build may commit more while others look."""
    shared: list[Parts] = [parts]
    broadcast_object_list(shared)
    return shared[0]


def documents_of(cache: Cache, parts: Parts) -> Docs:
    """Documents (rows of the plan's document space) of the parts of a run."""
    return cache.plan.docs if parts is None else part_documents(cache, parts)


def contents_of(cache: Cache, parts: Parts) -> str | None:
    """Digest of what the parts hold, for telling whether a resumed run reads what it did."""
    if parts is None:
        return str(cache.completion["contents"]) if cache.completion else None
    return digest([cache.commit(part)["objects"] for part in parts])
