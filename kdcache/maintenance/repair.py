"""Repair a cache: make what is damaged again, and nothing else, to the byte.

Metadata follows from the manifest. Rows come from the teacher, run as it was when the part was
committed; whatever it says now is kept only where its checksums are those of the commit. So a cache
is either what it was, or says what is still damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.building.capture import Capture
from kdcache.errors import CacheError, DamageError
from kdcache.maintenance.merging import joined_sums, merged_commit
from kdcache.maintenance.rebuild_sources import Sources
from kdcache.maintenance.restore_metadata import (
    restore_columns,
    restore_manifest,
    restore_metadata,
    restore_plan_commit,
)
from kdcache.maintenance.verifying import COMPLETE, MANIFEST, PLAN, Finding, find_damage
from kdcache.manifest import Json, require_current
from kdcache.progress import Progress, Shown, shown
from kdcache.store import Place, Root, locate
from kdcache.store.commits.writer import commit_record, completion_record, encode_part
from kdcache.store.format.commit_log import part_name
from kdcache.store.format.zarr_metadata import group_json, read_record
from kdcache.store.io.durable_writes import Pieces, replace_synced, writing
from kdcache.store.io.fingerprints import shard_fingerprint
from kdcache.store.io.safe_paths import inside


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was wrong with a cache and is not any more, and what still is."""

    repaired: tuple[Finding, ...]
    left: tuple[Finding, ...]


def repair(
    path: Place,
    *,
    teacher: str | Path | None = None,
    tokenizer: str | Path | None = None,
    corpus: Any = None,
    device: str | None = None,
    progress: Shown = None,
) -> Repair:
    """Make the damaged objects of the cache at `path` again.

    Args:
        teacher: its folder or hub name, if it is not where it was.
        tokenizer: where it lies, if not with the teacher.
        corpus: documents, or the folder of a plan, as given to `build`; needed only where rows of
            the plan (tokens, labels, documents) are damaged.
        device: to run the teacher on; by default the kind of device the part was made on.

    Raises ModelError if the teacher is needed and not there, MismatchError if it is another one,
    CacheError if there is no cache or it cannot be written.
    """
    progress = shown(progress)
    root = locate(path)
    with suppress(DamageError):
        require_current(read_record(root) or {}, str(root))
    before = _see(root, progress)
    sources = Sources(root, teacher, tokenizer, device, progress)
    found = _restore(root, before, progress)
    if corpus is not None and any(map(_of_plan, found)):
        with sources.plan(corpus, progress) as plan:
            restore_columns(root, _keys(found), plan)
        found = _look(root, found)
    if found and not any(_of_whole(finding) or _of_plan(finding) for finding in found):
        _drop_completion(root)
        files = [key for key in _keys(found) if key.startswith("files/")]
        if files:
            _restore_files(sources, files)
        _Rows(sources, progress).repair(found)
        found = _look(root, found)
    return Repair(
        repaired=tuple(finding for finding in before if finding.object not in _keys(found)),
        left=tuple(_advise(finding) for finding in found),
    )


def _see(root: Root, progress: Progress) -> list[Finding]:
    return find_damage(root, full=True, progress=progress)


def _look(root: Root, before: Collection[Finding]) -> list[Finding]:
    """What is still wrong, reading in full only what was wrong before."""
    return find_damage(root, deep=_keys(before))


def _keys(found: Collection[Finding]) -> set[str]:
    return {finding.object for finding in found}


def _restore(root: Root, found: list[Finding], progress: Progress) -> list[Finding]:
    """Make again what all else hangs on; returns what is wrong then, all of it seen only then."""
    if any(map(_of_whole, found)):
        restore_manifest(root)
        restore_plan_commit(root)
        found = _see(root, progress)
    metadata = [key for key in _keys(found) if Path(key).name == "zarr.json"]
    if not metadata or any(map(_of_whole, found)):
        return found
    restore_metadata(root, metadata)
    return _see(root, progress)


def _restore_files(sources: Sources, keys: Collection[str]) -> None:
    """Make files again, whole: shards behind damaged metadata have not been looked at."""
    arrays = tuple({key.rpartition("/c/")[0] or key.removesuffix("/zarr.json") for key in keys})
    named = sources.view().objects
    whole = [key for key in named if key.startswith(tuple(f"{array}/" for array in arrays))]
    restore_metadata(sources.root, whole, sources.files())


def _drop_completion(root: Root) -> None:
    """Remove a record of completion that cannot be read: it is made last, of all commits."""
    try:
        read_record(inside(root, COMPLETE).parent)
    except DamageError:
        with writing(root):
            (root / COMPLETE).unlink()


def _require_known(sources: Sources) -> None:
    """Raise CacheError for a signal that only a newer version knows, which records tell of."""
    for view in map(sources.view, (None, *sources.view().teachers)):
        for name in view.newer:
            view.signal(name)


def _of_whole(finding: Finding) -> bool:
    """Whether nothing else can be seen before this is repaired."""
    return finding.object in (MANIFEST, PLAN)


def _of_plan(finding: Finding) -> bool:
    return finding.object.startswith(("plan/", "tokens/"))


def _advise(finding: Finding) -> Finding:
    """What to do about a finding that repair could not help."""
    if _of_plan(finding):
        way = (
            "it was made of the corpus: say where that is (--corpus FILE); a frame or a data "
            "set in memory has to be written to a file for it, such as .parquet, which keeps types"
        )
    elif _of_whole(finding):
        way = "too much is damaged to make it again: build the cache anew in another folder"
    elif finding.object.startswith("commits") and finding.part is None:
        way = "run the same `kdcache build` again"
    else:
        way = "what is made now is not what was committed: run the versions and device of then"
    return Finding(
        root=finding.root,
        object=finding.object,
        part=finding.part,
        problem=f"{finding.problem}; {way}",
    )


class _Rows:
    """Commits and rows of parts."""

    def __init__(self, sources: Sources, progress: Progress) -> None:
        self.sources, self.progress = sources, progress
        self.root, self.cache = sources.root, sources.view()

    def repair(self, found: Collection[Finding]) -> None:
        """Make commits again, then the objects they name, then the record of completion."""
        commits = {f.part for f in found if f.part is not None and f.object.startswith("commits/")}
        if commits:
            self._commits(sorted(commits))
            found = _see(self.root, self.progress)
        damaged: dict[int, list[str]] = {}
        for finding in found:
            if finding.part is not None and not finding.object.startswith("commits/"):
                damaged.setdefault(finding.part, []).append(finding.object)
        for part, keys in sorted(damaged.items()):
            self._objects(part, keys)
        self._complete()

    def _commits(self, parts: list[int]) -> None:
        """Write commits anew; those of a finished cache only if its record vouches for them.

        Raises CacheError if some of what they name only a newer version can make.
        """
        _require_known(self.sources)
        if self._forwards(parts[0]) is None:
            return  # no commit is left to say how the teacher was run
        made = {part: self._commit(part) for part in parts}
        completion = read_record(self.root / "complete")
        if completion is not None:
            count = self.cache.plan.parts
            records = [made.get(part) or self.cache.commit(part) for part in range(count)]
            if self.cache.commit_log.completion_problem(completion, records):
                return
        for part, record in made.items():
            self._write(f"commits/{part_name(part)}/zarr.json", group_json(record))

    def _commit(self, part: int) -> Json:
        """The commit of a part, made again as it was."""
        runs = [self._run(part, share) for share in range(len(self.sources.shares))]
        records = [
            commit_record(self.cache, part, run.encoded, run.fidelity, run.forward) for run in runs
        ]
        if "merged" in self.cache.manifest:
            return merged_commit(
                records[0],
                {
                    key: fingerprint
                    for record in records
                    for key, fingerprint in record["objects"].items()
                },
                joined_sums(run.fidelity for run in runs),
                [run.forward for run in runs],
            )
        return records[0]

    def _objects(self, part: int, keys: list[str]) -> None:
        """Write the objects of a part anew that come out as they were committed."""
        committed = self.cache.commit(part)["objects"]
        for number, share in enumerate(self.sources.shares):
            wanted = [key for key in keys if share.owns(key)]
            encoded = self._run(part, number).encoded if wanted else {}
            for key in wanted:
                if shard_fingerprint(encoded[key]) == committed[key]:
                    self._write(key, b"".join(encoded[key]))

    def _complete(self) -> None:
        if read_record(self.root / "complete") is not None:
            return
        _require_known(self.sources)
        signals = {
            share.prefix + name: self.sources.view(share.teacher).signals[name]
            for share in self.sources.shares
            for name in share.signals
        }
        try:
            record = completion_record(self.cache, signals)
        except CacheError:
            return  # a commit is still missing or damaged, and is reported
        self._write(COMPLETE, group_json(record))

    def _run(self, part: int, number: int) -> _Run:
        """What one build stored of a part, made again as it was."""
        forwards = self._forwards(part)
        assert forwards is not None
        share, forward = self.sources.shares[number], forwards[number]
        cache = self.sources.view(share.teacher)
        teacher = self.sources.teacher(share.teacher, forward["device"])
        capture = Capture(cache, teacher, forward["batch_tokens"], self.progress)
        total = cache.plan.extent(cache.plan.part_docs(part), "token")
        with self.progress.bar(f"making part {part} again", unit="tokens", total=total) as advance:
            arrays, fidelity = capture.part(part, advance)
        stored = {name: rows for name, rows in arrays.items() if share.holds(name)}
        return _Run(
            encoded=encode_part(cache, part, stored),
            fidelity={
                share.prefix + name: share.sums(name, stats)
                for name, stats in fidelity.items()
                if name in share.signals
            },
            forward=forward,
        )

    def _forwards(self, part: int) -> list[Json] | None:
        """How a part was computed by each build; as the first other, if its commit is damaged."""
        for other in sorted(self.cache.committed, key=lambda known: known != part):
            try:
                record = self.cache.commit(other)
            except DamageError:
                continue
            found: list[Json] = record.get("forwards", [record["forward"]])
            if len(found) == len(self.sources.shares):
                return found
        return None

    def _write(self, key: str, data: bytes) -> None:
        with writing(self.root):
            replace_synced(inside(self.root, key), data)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one build stored of a part: its objects, and its share of the commit."""

    encoded: Mapping[str, Pieces]
    fidelity: Json
    forward: Json
