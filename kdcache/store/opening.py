"""What lies in a store: its plan and the arrays of its teachers, opened and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kdcache.errors import CacheError, ConfigError, DamageError, one_of
from kdcache.manifest import Json
from kdcache.plans import Plan, document_columns
from kdcache.store.format.array_reader import ArrayReader, Layout
from kdcache.store.format.commit_log import PlanFingerprints, plan_objects
from kdcache.store.format.manifest_schema import (
    ManifestSchema,
    plan_specs,
    read_schema,
    teacher_prefix,
)
from kdcache.store.format.plan_checks import check_counts, check_documents, check_parts
from kdcache.store.format.zarr_metadata import read_layout, read_record
from kdcache.store.io.object_path import Place, Root, locate
from kdcache.store.planned import signal_layouts
from kdcache.tasks import RowSpace


def open_plan(path: Place) -> Plan:
    """Open the plan at `path`: folder or URL of a plan or a cache.

    Raises:
        CacheError: there is no plan.
        DamageError: its bytes are not what was written.
    """
    root = locate(path)
    record = read_record(root)
    if record is None:
        raise CacheError(f"{root} is not a kdcache plan: it holds no zarr.json")
    return plan_in(root, read_schema(record, root), plan_objects(root, record))


def plan_in(root: Root, schema: ManifestSchema, objects: Mapping[str, Json]) -> Plan:
    check_parts(schema, objects, root)
    committed = PlanFingerprints(objects, root)
    columns, per_document = {}, {}
    documents = document_columns(schema.config)
    for spec in plan_specs(schema.plan):
        layout = read_layout(root, spec.name, schema.parts, objects)
        schema.require_fit(layout, spec, root)
        name, reader = spec.name.removeprefix("plan/"), ArrayReader(root, layout, committed)
        if name in documents:
            reader.require_whole()
            per_document[name] = reader[0 : layout.shape[0]]
        else:
            columns[name] = reader
    plan = dataclasses.replace(schema.plan, per_document=per_document, columns=columns)
    outputs = None if schema.shape is None else schema.shape.outputs
    check_documents(plan, root, outputs)
    check_counts(schema, plan, root)
    return plan


def spaces_of(plan: Plan, schema: ManifestSchema) -> dict[str, RowSpace]:
    """The row spaces of a teacher's arrays, by their own names."""
    assert schema.shape is not None
    specs = signal_layouts(plan.read_as(schema.task), schema.signals, schema.shape)
    return {spec.name: spec.space for _, spec in specs}


def known_teacher(schema: ManifestSchema, name: str, first: str, root: Root) -> ManifestSchema:
    """What the manifest says of a teacher beside the first; ConfigError if there is none."""
    if not schema.teachers:
        raise ConfigError(f"{root} holds what one teacher said; open it without naming {name!r}")
    return schema.teachers[one_of("teacher of this cache", name, (first, *schema.teachers))]


def other_spaces(plan: Plan, schema: ManifestSchema) -> dict[str, RowSpace]:
    """The row spaces of the arrays of all teachers beside the first, as they are in the store."""
    return {
        teacher_prefix(teacher) + name: space
        for teacher, theirs in schema.teachers.items()
        for name, space in spaces_of(plan, theirs).items()
    }


def layouts_of(
    root: Root, schema: ManifestSchema, objects: Mapping[str, Json]
) -> dict[str, Layout]:
    """Layouts of the arrays of all teachers, as they are named in the store."""
    found = {}
    for spec in schema.array_specs():
        layout = found[spec.name] = read_layout(root, spec.name, schema.parts, objects)
        schema.require_fit(layout, spec, root)
    return found


def newer_layouts(
    root: Root, schema: ManifestSchema, objects: Mapping[str, Json]
) -> tuple[list[Layout], list[str]]:
    """Layouts of what only a newer version can read, of all teachers, as the store has them.

    Behind them the names of arrays whose metadata is damaged, or says what only that version knows.
    """
    names = {key.removesuffix("/zarr.json") for key in objects if key.endswith("/zarr.json")}
    groups = {name.rpartition("/")[0] for name in names}
    starts = tuple(f"{name}/" for name in schema.newer_names())
    own = sorted(name for name in names - groups if f"{name}/".startswith(starts))
    layouts, unread = [], []
    for name in own:
        try:
            layouts.append(read_layout(root, name, schema.parts, objects))
        except DamageError:
            unread.append(name)
    return layouts, unread
