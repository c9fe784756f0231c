"""Open a plan or a cache and read rows of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from kdcache.errors import CacheError, ConfigError, IncompleteError
from kdcache.manifest import Json, digest
from kdcache.plans import Array, Docs
from kdcache.plans.batch import Batch, collate, epoch_order
from kdcache.signals import (
    LOGITS,
    SAMPLED_ROWS,
    LayerRows,
    Signal,
    SoftLabels,
    Tap,
    TeacherOutputs,
    holder,
    of_signal,
    with_artifacts,
)
from kdcache.store import described
from kdcache.store.format.array_reader import Layout
from kdcache.store.format.commit_log import CommitLog, part_name, plan_objects, read_completion
from kdcache.store.format.compressed_reader import reader_of, stored_bytes
from kdcache.store.format.manifest_schema import (
    AT_POINTS,
    read_schema,
    signal_of,
    teacher_name,
    teacher_prefix,
)
from kdcache.store.format.zarr_metadata import require_record
from kdcache.store.io.object_path import Place, Root, absolute, locate
from kdcache.store.opening import (
    known_teacher,
    layouts_of,
    newer_layouts,
    other_spaces,
    plan_in,
    spaces_of,
)
from kdcache.store.planned import plan_layouts
from kdcache.store.stored_files import StoredFiles
from kdcache.store.stored_rows import StoredRows
from kdcache.store.stored_signals import StoredSignals
from kdcache.tasks import RowSpace, Subset

if TYPE_CHECKING:
    from kdcache.models.kept_tokens import KeptTokens

Content = bytes  # the class has a property of that name


def open_cache(path: Place, *, teacher: str | None = None) -> Cache:
    """Open the cache at `path`, a folder or a URL, for reading; what it holds is in its `repr`.

    A merged cache holds outputs of several teachers; `teacher` names one of them, by default the
    first.

    Raises:
        CacheError: there is no cache.
        DamageError: its bytes are not what was written.
        ConfigError: there is no such teacher.
    """
    return Cache(locate(path), teacher=teacher)


class Cache:
    """A cache on disk: a plan and, for each of its documents, outputs of the teacher.

    A document is named by its row in the document space (`plan.docs` lists them). Rows come back in
    the order of the documents asked for. Of a merged cache one teacher is seen; arrays and files
    have the names they had where they came from. Seen as its first, rows of the others' arrays are
    read under the names they have in the store, "teachers/NAME/logits/values".

    A copy, and what another process unpickles, opens the same place again; CacheError if another
    cache lies there by then.

    Attributes:
        teacher: the one it was opened with, beside the first; None for the first.
        first: name of the first teacher.
        teachers: names of the teachers beside the first.
        prefix: where the arrays of a teacher beside the first lie in the store.
        newer: signals that only a newer version can read, and what is new about each.
        reworded: whether its texts are read in another vocabulary than the teacher's.
        kept: the tokens of the teacher's vocabulary that it is read with; None: all.
    """

    reworded: ClassVar[bool] = False
    kept: KeptTokens | None = None

    def __init__(self, path: Root, teacher: str | None = None) -> None:
        self.path = path
        self.manifest = require_record(path, "cache")
        self.objects = plan_objects(path, self.manifest)
        schema = read_schema(self.manifest, path)
        self.teachers = tuple(schema.teachers)
        self.plan = plan_in(path, schema, self.objects)
        layouts = layouts_of(path, schema, self.objects)
        self._newer, unread = newer_layouts(path, schema, self.objects)
        every = [*layouts.values(), *self._newer]
        self.commit_log = CommitLog(path, every, self.plan.parts, unread=unread, old=schema.old)
        self.completion = read_completion(path, self.plan.parts, old=schema.old)
        self.first = teacher_name(self.manifest["teacher"]["name"])
        self.teacher = None if teacher == self.first else teacher
        self.prefix, of_teacher = "", schema
        if self.teacher is not None:
            of_teacher = known_teacher(schema, self.teacher, self.first, path)
            self.manifest = {**self.manifest, **self.manifest["teachers"][self.teacher]}
            self.prefix = teacher_prefix(self.teacher)
        assert of_teacher.shape is not None
        self.plan = self.plan.read_as(of_teacher.task)
        self.shape, self.newer = of_teacher.shape, of_teacher.newer
        self.spaces = spaces_of(self.plan, of_teacher)
        self.layouts: dict[str, Layout] = {n: layouts[self.prefix + n] for n in self.spaces}
        others = {} if self.teacher else other_spaces(self.plan, schema)
        self.spaces |= others
        self._readers = {
            name: reader_of(path, layout, self.commit_log.fingerprint)
            for name, layout in (self.layouts | {n: layouts[n] for n in others}).items()
        }
        self._rows = StoredRows(self.plan, self.spaces, self._readers)
        self.signals: dict[str, Signal] = with_artifacts(of_teacher.signals, self.shape, self.file)
        self._signals = StoredSignals(path, self.plan.task, self.shape, self.signals, self.newer)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (absolute(self.path), self.teacher, digest(self.manifest))

    @cached_property
    def views(self) -> Mapping[str, Cache]:
        """This cache as each of its teachers, by name; of one seen as a teacher, only that."""
        if self.teacher is not None:
            return {self.teacher: self}
        return {self.first: self, **{name: Cache(self.path, name) for name in self.teachers}}

    @property
    def readable(self) -> Collection[str]:
        """Names of the arrays that rows can be read of: those of other teachers come last."""
        return self._readers.keys()

    @property
    def committed(self) -> list[int]:
        """Parts that are committed now."""
        names = {path.parent.name for path in self.path.glob("commits/*/zarr.json")}
        return [part for part in range(self.plan.parts) if part_name(part) in names]

    @property
    def missing(self) -> list[int]:
        """Parts that no writer has committed."""
        return sorted(set(range(self.plan.parts)) - set(self.committed))

    @property
    def complete(self) -> bool:
        """Whether every part is committed and the cache was finished."""
        return self.completion is not None

    @property
    def original(self) -> Cache:
        """The cache as it was built: by its tokens two documents are told to have one text."""
        return self

    @property
    def at_points(self) -> bool:
        """Whether its teacher was run at points (`ascend`), and not on the texts."""
        return AT_POINTS in self.manifest["teacher"]

    @property
    def fidelity(self) -> Json:
        """Measured distance between what is decoded and the teacher's outputs, by signal."""
        figures = self.completion["fidelity"] if self.completion else {}
        return {
            name.removeprefix(self.prefix): values
            for name, values in figures.items()
            if name.rpartition("/")[0] == self.prefix.rstrip("/")
        }

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of every array once complete, by name: the plan's, and all of this teacher's.

        Those of packed arrays are known of committed parts only, and counted for those. An array
        that only a newer version can read is among them if its metadata can be read.
        """
        own = tuple(f"{self.prefix}{name}/" for name in self.newer)
        newer = [layout for layout in self._newer if layout.name.startswith(own)]
        layouts = [*plan_layouts(self.plan), *self.layouts.values(), *newer]
        return {layout.name: self._bytes(layout) for layout in layouts}

    @cached_property
    def stored_files(self) -> StoredFiles:
        """The files of this teacher, and the tokenizer's."""
        return StoredFiles(self.path, self.objects, self.prefix)

    def _bytes(self, layout: Layout) -> int:
        if not layout.packing:
            return layout.bytes
        return stored_bytes(layout, self.commit_log.fingerprint, self.committed)

    def commit(self, part: int) -> Json:
        """The commit record of a part; IncompleteError if there is none, DamageError."""
        return self.commit_log.commit(part)

    def require_complete(self) -> None:
        """See to it that every part is there.

        Raises:
            IncompleteError: not every part is there.
            DamageError: the commits are not those it was finished with.
        """
        if not self.complete:
            done, parts = len(self.committed), self.plan.parts
            raise IncompleteError(
                f"{self.path} is incomplete: {done} of {parts} parts are committed; run the same "
                "`kdcache build` again to add the rest"
            )
        assert self.completion is not None
        self.commit_log.require_commits(self.completion)

    def signal(self, name: str) -> Signal:
        """A signal by its name.

        Raises:
            ConfigError: there is none of that name.
            CacheError: it is of a newer version.
        """
        return self._signals[name]

    def arrays_of(self, signal: str, tap: Tap | None = None) -> list[str]:
        """Names of the arrays of a signal, or those that one of its taps is read from."""
        return self._signals.arrays(signal, tap)

    def holder(self, tap: Tap) -> str | None:
        """Name of the signal that `decode` gives a tap of, such as the logits; None: there is none.

        Of several it is the one that is called like the tap, or else the first.
        """
        return holder(self.signals, tap)

    def decode(self, rows: Mapping[str, torch.Tensor], tap: Tap = LOGITS, signal: str = "") -> Any:
        """What losses take, of stored rows by name such as a `Batch` has them.

        Of the logits these are `SoftLabels`, whatever their codec, of a layer `LayerRows`. `signal`
        names one of several that give the tap.

        Raises:
            ConfigError: the cache holds no such tap, or an array that it is decoded from was not
                read.
            CacheError: the signal is of a newer version.
        """
        return self._signals.decode(rows, tap, signal or self._signals.holder(tap))

    def stored(self, docs: Docs, tap: Tap, signal: str = "") -> Any:
        """`decode` of the rows of documents."""
        name = signal or self._signals.holder(tap)
        return self.decode(self._rows_of(docs, self.arrays_of(name, tap)), tap, name)

    def columns(self, docs: Docs, signal: str) -> dict[str, torch.Tensor]:
        """What a signal says of documents as plain numbers, by name, whatever its codec."""
        rows = self._rows_of(docs, self.arrays_of(signal))
        return self.signal(signal).columns(of_signal(rows, signal), self.shape)

    def _rows_of(self, docs: Docs, arrays: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(rows) for name, rows in self.rows(docs, arrays).items()}

    def space_of(self, signal: str) -> RowSpace:
        """The row space of a signal; all its arrays share it."""
        return self.spaces[self.arrays_of(signal)[0]]

    def sampled_rows(self, signal: str, docs: Docs) -> Array:
        """Which of the documents' tokens or selected positions a signal has a row for: their
        numbers, counted over all of `docs`, one document after the other. All of them without
        `fraction`.
        """
        return self.plan.sampled_rows(np.asarray(docs, np.int64), self.space_of(signal))

    def read(self, array: str, docs: Docs) -> Array:
        """Stored rows of an array for documents, one document after the other.

        Raises:
            ConfigError: a row that holds no document, or an array that is not there.
            DamageError: bytes are not what was written.
            IncompleteError: the part is not there.
        """
        return self.rows(docs, [array])[array]

    def rows(
        self,
        docs: Docs,
        arrays: Iterable[str] | None = None,
        *,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Stored rows of several arrays, by default all, as `read` gives those of one.

        Where they lie is worked out once for arrays that lie alike. With `out`, a contiguous array
        of the same dtype and at least as many rows for each name, the rows are read into its
        beginning, which is returned.

        Raises:
            ConfigError: a row that holds no document, or an array that is not there.
            DamageError: bytes are not what was written.
            IncompleteError: the part is not there.
        """
        return self._rows.read(docs, self.layouts if arrays is None else arrays, out)

    def soft_labels(self, docs: Docs) -> SoftLabels:
        """Decoded soft labels of documents.

        Raises:
            ConfigError: the cache has no logits, or such as are no classes of which a document has
                one: `stored(docs, LOGITS).values` are those.
        """
        decoded: SoftLabels | TeacherOutputs = self.stored(docs, LOGITS)
        if isinstance(decoded, TeacherOutputs):
            kind = self.plan.label_kind.called
            raise ConfigError(
                f"{self.path}: the teacher is a {kind}, which gives no probabilities that sum to "
                "one: read its outputs with stored(docs, LOGITS).values"
            )
        return decoded

    def hidden(self, layer: int, docs: Docs) -> LayerRows:
        """Stored hidden states of one layer for documents; `.dense()` decodes them."""
        decoded: LayerRows = self.stored(docs, Tap("hidden", layer))
        return decoded

    def batch(self, docs: Docs, arrays: list[str] | None = None) -> Batch:
        """Inputs, labels and stored signal rows of documents, padded to the longest."""
        names = self.layouts if arrays is None else arrays
        rows = self.rows(docs, names)
        for name, space in {signal_of(name): self.spaces[name] for name in names}.items():
            if isinstance(space, Subset):
                rows[f"{name}/{SAMPLED_ROWS}"] = self.plan.sampled_rows(
                    np.asarray(docs, np.int64), space
                )
        return collate(self.plan, docs, rows)

    def batches(
        self, size: int, *, seed: int = 0, epoch: int = 0, arrays: list[str] | None = None
    ) -> Iterator[Batch]:
        """One epoch of batches of `size` documents, in an order fixed by (seed, epoch).

        Raises:
            ConfigError: a batch of no document.
        """
        if size < 1:
            raise ConfigError(f"a batch holds 1 document or more; got size={size}")
        order = self.plan.docs[epoch_order(self.plan.documents, seed=seed, epoch=epoch)]
        return (self.batch(order[i : i + size], arrays) for i in range(0, len(order), size))

    @property
    def files(self) -> Mapping[str, int]:
        """Files stored in the cache (tokenizer, configuration, weights) and their bytes."""
        return self.stored_files.sizes

    def file(self, name: str) -> Content:
        """A file stored in the cache.

        Raises:
            DamageError: it is not there, or not what was stored.
        """
        return self.stored_files.read(name)

    def extract(self, folder: Path, names: list[str]) -> None:
        """Write files stored in the cache into `folder`, without the folder they have in common."""
        self.stored_files.extract(folder, names)

    def __repr__(self) -> str:
        return described.in_line(self)

    def _repr_html_(self) -> str:
        return described.as_html(self)


def _reopen(path: Root, teacher: str | None, manifest: str) -> Cache:
    """The cache of that manifest; CacheError if it is gone or another took its place."""
    cache = Cache(path, teacher)
    if digest(cache.manifest) != manifest:
        raise CacheError(
            f"{path} holds another cache than the one that was copied or sent to this process; "
            "open it there with open_cache"
        )
    return cache
