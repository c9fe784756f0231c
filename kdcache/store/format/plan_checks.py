"""Whether the rows of a plan are what its manifest speaks of, and what there can be at all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kdcache.errors import DamageError
from kdcache.labels.base import MAX_CLASSES
from kdcache.plans import Array, Docs, Plan
from kdcache.store.format.fields import damaged
from kdcache.store.format.manifest_schema import COUNTS, ManifestSchema
from kdcache.store.io.object_path import Root
from kdcache.tasks import IGNORE_INDEX, Space


def check_parts(schema: ManifestSchema, objects: Iterable[str], root: Root) -> None:
    """DamageError if there are more parts than the plan's commit names objects of their rows.

    Whatever loops over parts is bounded by what was committed.
    """
    shards = sum(key.startswith("plan/doc_len/c/") for key in objects)
    if schema.parts > shards:
        raise damaged(root / "zarr.json", "plan.parts", schema.parts, f"{shards} at most")


def check_counts(schema: ManifestSchema, plan: Plan, root: Root) -> None:
    """DamageError if the manifest counts other documents, tokens or selected positions than the
    plan holds.
    """
    for name, count in schema.counts.items():
        if plan.count(COUNTS[name]) != count:
            found = f"{plan.count(COUNTS[name])}, as many as the plan holds"
            raise damaged(root / "zarr.json", f"plan.{name}", count, found)


def check_documents(plan: Plan, root: Root, outputs: int | None) -> None:
    """DamageError if documents lie outside their part, or there are none, or a label,
    of a document or a word, is none of the teacher's `outputs` classes.

    The rows have passed their checksums; this keeps a plan made by something else from pointing a
    reader anywhere.
    """
    if not len(plan.docs):
        raise DamageError(f"{root} is damaged: its plan holds no document")
    part = plan.docs // plan.rows["document"]
    spaces: list[tuple[str, Space]] = [("doc", "token")]
    if "selected" in plan.rows:
        spaces.append(("masked", "selected"))
    for name, space in spaces:
        starts = plan.per_document[f"{name}_start"][plan.docs]
        counts = plan.per_document[f"{name}_len"][plan.docs]
        first, size = part * plan.rows[space], plan.rows[space]
        inside = (starts >= first) & (counts >= 0) & (counts <= size)
        _require(inside & (starts - first <= size - counts), plan, root, f"{name}_start")
    pairs, lens = (plan.per_document[name][plan.docs] for name in ("pair_start", "doc_len"))
    _require((lens > 0) & (pairs >= 0) & (pairs <= lens), plan, root, "pair_start")
    if plan.task.labelled:
        # Words have more labels than should be in memory at once.
        parts = map(plan.part_docs, range(plan.parts)) if plan.task.selects else [plan.docs]
        for docs in parts:
            _check_labels(plan, docs, root, outputs)


def _check_labels(plan: Plan, docs: Docs, root: Root, outputs: int | None) -> None:
    """DamageError if a label of documents, or of one of their words, is none that there can be."""
    kind = plan.label_kind
    if kind.sound is None and not kind.numbered:
        return
    labels = plan.labels(docs)
    sound = np.ones(len(labels), np.bool_) if kind.sound is None else kind.sound(labels)
    if kind.numbered:
        most = outputs or len(plan.config.classes or ()) or MAX_CLASSES
        sound &= (labels == IGNORE_INDEX) | (labels >= 0) & (labels < most)
    owners = np.repeat(docs, plan.spans(docs, plan.task.rows)[1])
    _require(sound, plan, root, "masked_label" if plan.task.selects else kind.column, owners)


def _require(sound: Array, plan: Plan, root: Root, column: str, owners: Docs | None = None) -> None:
    """DamageError for the first that is not `sound` of what `owners` have, or each document."""
    if not sound.all():
        row = int((plan.docs if owners is None else owners)[int((~sound).argmax())])
        raise DamageError(
            f"{root / 'plan' / column} is damaged: row {row}, of part "
            f"{row // plan.rows['document']}, says what cannot be"
        )
