"""Repair a cache: make what is damaged again, and nothing else, to the byte.

Metadata follows from the manifest. Rows come from the teacher, run as it was when the part was
committed; whatever it says now is kept only where its checksums are those of the commit. So a cache
is either what it was, or says what is still damaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdcache.builder import kept_files
from kdcache.capture import Capture
from kdcache.errors import CacheError, DamageError
from kdcache.manifest import Json, digest
from kdcache.models import Teacher, load_tokenizer
from kdcache.models.same import load_same_teacher
from kdcache.progress import Progress, quiet
from kdcache.store import Writer, locate
from kdcache.store.files import Pieces, replace_synced, writing
from kdcache.store.ledger import part_name
from kdcache.store.objects import Place, Root
from kdcache.store.paths import inside
from kdcache.store.restore import restore_metadata, restore_plan_commit
from kdcache.store.verify import COMPLETE, MANIFEST, PLAN, Finding, find_damage
from kdcache.store.zarrs import group_json, read_record

USUAL = {"batch_tokens": 8192, "device": "cpu"}


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
    device: str | None = None,
    progress: Progress = quiet,
) -> Repair:
    """Make the damaged objects of the cache at `path` again.

    Args:
        teacher: its folder or hub name, if it is not where it was.
        tokenizer: where it lies, if not with the teacher.
        device: to run the teacher on; by default the kind of device the part was made on.

    The manifest and the plan's rows cannot be made again: they came from the corpus.

    Raises ModelError if the teacher is needed and not there, MismatchError if it is another one,
    CacheError if there is no cache or it cannot be written.
    """
    root = locate(path)
    before = found = find_damage(root, full=True, progress=progress)
    if any(finding.object == PLAN for finding in found):
        restore_plan_commit(root)
        found = find_damage(root, full=True, progress=progress)
    if any(finding.object in (MANIFEST, PLAN) for finding in found):
        return _result(before, found)
    restore_metadata(root, [finding.object for finding in found])
    found = find_damage(root, full=True, progress=progress)
    source = _Source(root, teacher, tokenizer, device)
    files = [finding.object for finding in found if finding.object.startswith("files/")]
    if files:
        restore_metadata(root, files, source.files())
    if not any(_of_plan(finding) for finding in found):
        _Rows(source, progress).repair(found)
    if not found:
        return _result(before, found)
    return _result(before, find_damage(root, full=True, progress=progress))


def _of_plan(finding: Finding) -> bool:
    return finding.object.startswith(("plan/", "tokens/"))


def _result(before: Iterable[Finding], left: Collection[Finding]) -> Repair:
    bad = {finding.object for finding in left}
    return Repair(
        repaired=tuple(finding for finding in before if finding.object not in bad),
        left=tuple(_advise(finding) for finding in left),
    )


def _advise(finding: Finding) -> Finding:
    """What to do about a finding that repair could not help."""
    if finding.object == MANIFEST or _of_plan(finding):
        way = "it was made of the corpus: build the cache anew in another folder"
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


class _Source:
    """The teacher of a cache, loaded when first needed."""

    def __init__(
        self,
        root: Root,
        teacher: str | Path | None,
        tokenizer: str | Path | None,
        device: str | None,
    ) -> None:
        self.root, self.source, self.device = root, teacher, device
        self.tokenizer = tokenizer
        self._loaded: dict[str, Teacher] = {}

    @cached_property
    def writer(self) -> Writer:
        """Of the cache, which can be opened by now."""
        return Writer(self.root)

    def teacher(self, device: str) -> Teacher:
        """The teacher on a device."""
        place = self.device or device
        if place not in self._loaded:
            cache = self.writer.cache
            self._loaded[place] = load_same_teacher(
                cache.manifest["teacher"],
                task=cache.plan.config.task,
                source=self.source,
                device=place,
            )
        return self._loaded[place]

    def files(self) -> dict[str, bytes | Path]:
        """The files the cache keeps, made again."""
        cache = self.writer.cache
        teacher = self.teacher("cpu")
        place = self.tokenizer or self.source or cache.manifest["teacher"]["source"]
        names = {key for key in cache.objects if key.startswith("files/teacher/")}
        return kept_files(
            cache.plan,
            teacher,
            cache.signals,
            load_tokenizer(place),
            weights=any(".safetensors/" in name for name in names),
        )


class _Rows:
    """Commits and rows of parts."""

    def __init__(self, source: _Source, progress: Progress) -> None:
        self.source, self.progress = source, progress
        self.root = source.root

    def repair(self, found: Collection[Finding]) -> None:
        """Make commits again, then the objects they name, then the record of completion."""
        commits = {f.part for f in found if f.part is not None and f.object.startswith("commits/")}
        if commits:
            self._commits(sorted(commits))
            found = find_damage(self.root, full=True)
        damaged: dict[int, list[str]] = {}
        for finding in found:
            if finding.part is not None and not finding.object.startswith("commits/"):
                damaged.setdefault(finding.part, []).append(finding.object)
        for part, keys in sorted(damaged.items()):
            self._objects(part, keys)
        if any(finding.object == COMPLETE for finding in found):
            self._complete()

    def _commits(self, parts: list[int]) -> None:
        """Write commits anew; those of a finished cache only if its record vouches for them."""
        cache = self.source.writer.cache
        made = {part: self._run(part)[1] for part in parts}
        completion = _completion(self.root)
        if completion is not None:
            records = [made.get(part) or cache.commit(part) for part in range(cache.plan.parts)]
            if digest([record["objects"] for record in records]) != completion["contents"]:
                return
        for part, record in made.items():
            self._write(f"commits/{part_name(part)}/zarr.json", group_json(record))

    def _objects(self, part: int, keys: list[str]) -> None:
        """Write the objects of a part anew that come out as they were committed."""
        committed = self.source.writer.cache.commit(part)["objects"]
        encoded, record = self._run(part)
        for key in keys:
            if record["objects"][key] == committed[key]:
                self._write(key, b"".join(encoded[key]))

    def _complete(self) -> None:
        writer = self.source.writer
        try:
            record = writer.completion()
        except CacheError:
            return  # a commit is still missing or damaged, and is reported
        if _completion(self.root) is None:
            self._write(COMPLETE, group_json(record))

    def _run(self, part: int) -> tuple[Mapping[str, Pieces], Json]:
        """The objects and the commit of a part, made again as they were."""
        writer, forward = self.source.writer, self._forward(part)
        capture = Capture(
            writer.cache, self.source.teacher(forward["device"]), forward["batch_tokens"]
        )
        plan = writer.cache.plan
        total = plan.extent(plan.part_docs(part), "token")
        with self.progress.bar(f"making part {part} again", unit="tokens", total=total) as advance:
            arrays, fidelity = capture.part(part, advance)
        encoded = writer.encode(part, arrays)
        return encoded, writer.record(part, encoded, fidelity, forward)

    def _forward(self, part: int) -> Json:
        """How a part was computed; as most others, if its commit does not say."""
        cache = self.source.writer.cache
        known: Counter[tuple[tuple[str, object], ...]] = Counter()
        for other in cache.committed:
            try:
                forward = cache.commit(other)["forward"]
            except DamageError:
                continue
            if other == part:
                return dict(forward)
            known[tuple(forward.items())] += 1
        return dict(known.most_common(1)[0][0]) if known else dict(USUAL)

    def _write(self, key: str, data: bytes) -> None:
        with writing(self.root):
            replace_synced(inside(self.root, key), data)


def _completion(root: Root) -> Json | None:
    """The record of completion; None where it is damaged or missing."""
    try:
        return read_record(inside(root, COMPLETE).parent)
    except DamageError:
        return None
