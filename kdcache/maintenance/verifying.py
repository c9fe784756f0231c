"""Check a cache against what was committed: every object's identity, or every byte."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdcache.errors import CacheError, DamageError, IncompleteError
from kdcache.manifest import Json
from kdcache.progress import Progress, Shown, quiet, short, shown
from kdcache.store.cache import Cache
from kdcache.store.format.array_reader import ArrayReader, Layout
from kdcache.store.format.commit_log import (
    CommitLog,
    PlanFingerprints,
    part_name,
    plan_objects,
    read_completion,
)
from kdcache.store.format.compressed_reader import PackedReader, reader_of
from kdcache.store.format.manifest_schema import ManifestSchema, plan_specs, read_schema
from kdcache.store.format.plan_checks import check_parts
from kdcache.store.format.zarr_metadata import read_layout, read_object, require_record
from kdcache.store.io.object_path import Place, Root, locate
from kdcache.store.opening import newer_layouts
from kdcache.store.planned import spec_layouts

MANIFEST, PLAN, COMPLETE = "zarr.json", "commits/plan/zarr.json", "complete/zarr.json"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with a store.

    Attributes:
        object: key of the object, a path inside the store.
        part: the part whose rows or commit it holds; None where it belongs to no part.
        problem: what is wrong with it.
    """

    root: Root = field(repr=False)
    object: str
    part: int | None
    problem: str

    def __str__(self) -> str:
        part = "" if self.part is None else f" (part {self.part})"
        return f"{self.root / self.object}{part}: {self.problem}"

    def to_json(self) -> Json:
        """Object, part and problem."""
        return {"object": self.object, "part": self.part, "problem": self.problem}


def verify(path: Place, *, full: bool = False, progress: Shown = None) -> list[str]:
    """Problems of the cache at `path`, each naming object and part; empty if there are none.

    As `find_damage`, one line each.

    Raises:
        CacheError: there is no cache; what is wrong with one is returned.
    """
    progress = shown(progress)
    return [str(finding) for finding in find_damage(path, full=full, progress=progress)]


def find_damage(
    path: Place, *, full: bool = False, deep: Collection[str] = (), progress: Progress = quiet
) -> list[Finding]:
    """What is wrong with the cache at `path`.

    Every record must match its digest and every committed object must be there, with its size and
    the checksums it was committed with. `full` also reads every byte and checks it against those;
    `deep` names objects of which that is done at any rate.

    Raises CacheError if there is no cache at `path`.
    """
    root = locate(path)
    if not root.is_dir():
        raise CacheError(f"no such cache: {root}")
    survey = _Survey(root)
    try:
        if (root / PLAN).is_file() and not (root / MANIFEST).is_file():
            raise DamageError(f"{root / MANIFEST} is missing")
        manifest = require_record(root, "cache")
        schema = read_schema(manifest, root)
        objects = plan_objects(root, manifest)
        check_parts(schema, objects, root)
    except DamageError as error:
        survey.note(PLAN if PLAN in str(error) else MANIFEST, None, error)
        return survey.findings
    survey.plan(schema, objects)
    survey.parts(schema, objects)
    with progress.bar(
        f"verifying {short(str(path))}", unit="objects", total=len(survey.jobs)
    ) as advance:
        survey.run(full, deep, advance)
    if not survey.findings:
        survey.open()
    return survey.findings


@dataclass(frozen=True)
class _Job:
    """A shard to look at."""

    reader: ArrayReader | PackedReader
    shard: int
    part: int | None

    @property
    def key(self) -> str:
        return self.reader.layout.key(self.shard)


class _Survey:
    """What there is to check of a store, and what was found."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.findings: list[Finding] = []
        self.jobs: list[_Job] = []

    def note(self, key: str, part: int | None, problem: str | CacheError) -> None:
        path, text = str(self.root / key), str(problem)
        for start in (f"{path} is damaged: ", f"{path} "):
            text = text.removeprefix(start)
        self.findings.append(Finding(root=self.root, object=key, part=part, problem=text))

    def plan(self, schema: ManifestSchema, objects: Mapping[str, Json]) -> None:
        """Check metadata, and list the shards, of all that was there before the first part."""
        left = set(objects)
        for key in [key for key in objects if Path(key).name == "zarr.json"]:
            left.discard(key)
            try:
                read_object(self.root, key, objects)
            except CacheError as error:
                self.note(key, None, error)
        committed = PlanFingerprints(objects, self.root)
        for name, parts in _plan_arrays(schema, objects):
            for layout in self._layout(name, parts, objects):
                reader = ArrayReader(self.root, layout, committed)
                for shard in range(layout.shape[0] // layout.shard_rows):
                    of = None if name.startswith("files/") else layout.part_of(shard)
                    self.jobs.append(_Job(reader, shard, of))
                    left.discard(layout.key(shard))
        bad = {finding.object for finding in self.findings}
        for key in sorted(left):
            if f"{key.partition('/c/')[0]}/zarr.json" not in bad:
                self.note(key, None, "it is committed but belongs to no array")

    def _layout(self, name: str, parts: int, objects: Mapping[str, Json]) -> Iterator[Layout]:
        """The layout of an array whose metadata is sound; unsound metadata has been noted."""
        try:
            yield read_layout(self.root, name, parts, objects)
        except DamageError as error:
            if not any(found.object == f"{name}/zarr.json" for found in self.findings):
                self.note(f"{name}/zarr.json", None, error)

    def parts(self, schema: ManifestSchema, objects: Mapping[str, Json]) -> None:
        """Check the commits of parts, and list the shards they name."""
        layouts = [
            next(self._layout(made.name, schema.parts, objects), made)
            for made, _ in spec_layouts(schema.plan, schema.array_specs())
        ]
        newer, unread = newer_layouts(self.root, schema, objects)  # damage has been noted
        layouts += newer
        commit_log = CommitLog(self.root, layouts, schema.parts, unread=unread, old=schema.old)
        readers = [reader_of(self.root, layout, commit_log.fingerprint) for layout in layouts]
        commits, missing = [], []
        for part in range(schema.parts):
            try:
                commits.append(commit_log.commit(part))
            except IncompleteError:
                missing.append(part)
            except CacheError as error:
                self.note(f"commits/{part_name(part)}/zarr.json", part, error)
            else:
                for reader in readers:
                    shards = reader.layout.part_shards(part)
                    self.jobs += [_Job(reader, shard, part) for shard in shards]
        self._completion(commit_log, missing, commits)

    def _completion(self, commit_log: CommitLog, missing: list[int], commits: list[Json]) -> None:
        parts = commit_log.parts
        try:
            record = read_completion(self.root, parts, old=commit_log.old)
        except CacheError as error:
            self.note(COMPLETE, None, error)
            return
        if missing and record is not None:
            for part in missing:
                self.note(f"commits/{part_name(part)}/zarr.json", part, "is missing")
        elif missing:
            lacking = f"{len(missing)} of {parts} parts are not committed: incomplete"
            self.note("commits", None, lacking)
        elif record is None:
            self.note(COMPLETE, None, "not there yet: run the same `kdcache build` again")
        elif len(commits) == parts and (problem := commit_log.completion_problem(record, commits)):
            self.note(COMPLETE, None, problem)

    def run(self, full: bool, deep: Collection[str], advance: Callable[[int], None]) -> None:
        """Look at every shard; with `full`, or where it is in `deep`, at every byte of it."""
        for job in self.jobs:
            try:
                if full or job.key in deep:
                    job.reader.check_shard(job.shard)
                else:
                    job.reader.identify(job.shard)
            except IncompleteError:
                self.note(job.key, job.part, "is missing")
            except CacheError as error:
                self.note(job.key, job.part, error)
            advance(1)

    def open(self) -> None:
        """Open the cache as a reader does: what it says must make sense, too."""
        try:
            cache = Cache(self.root)
        except CacheError as error:
            self.note(MANIFEST, None, error)
            return
        for part in cache.committed:
            count, found = cache.commit(part).get("documents"), len(cache.plan.part_docs(part))
            if count != found:
                key = f"commits/{part_name(part)}/zarr.json"
                self.note(key, part, f"it counts {count!r:.40} documents; the plan has {found}")


def _plan_arrays(schema: ManifestSchema, objects: Mapping[str, Json]) -> Iterator[tuple[str, int]]:
    """Arrays written with the plan, and how many parts they have: its own, and the files'."""
    for spec in plan_specs(schema.plan):
        yield spec.name, schema.parts
    shards = [key for key in objects if key.startswith("files/") and "/c/" in key]
    yield from ((name, 1) for name in sorted({key.rpartition("/c/")[0] for key in shards}))
