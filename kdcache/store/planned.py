"""What a store is to be, known before the teacher runs: its manifest, and every array's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kdcache.manifest import FORMAT, NAMED, Json
from kdcache.plans import Plan
from kdcache.signals import ArraySpec, ModelSizes, Signal, given_by, named_arrays, to_record
from kdcache.store.format.array_reader import Layout, plan_layout
from kdcache.store.format.manifest_schema import plan_specs


def plan_record(plan: Plan) -> Json:
    """The manifest of a plan."""
    return {
        "format": FORMAT,
        "kind": "plan",
        "plan": {
            "sha256": plan.sha256 if plan.format >= NAMED else plan.sha256_in(FORMAT),
            "parts": plan.parts,
            "rows": plan.stored_rows,
            "documents": plan.documents,
            "tokens": plan.tokens,
            "masked": plan.selected,
            "config": plan.config.to_json(),
        },
    }


def cache_record(
    plan: Plan, *, teacher: Json, shape: ModelSizes, signals: Mapping[str, Signal], software: Json
) -> Json:
    """The manifest of a cache: the plan, the teacher's fingerprint and every signal's settings."""
    return {
        **plan_record(plan),
        "kind": "cache",
        "teacher": teacher,
        "shape": shape.to_json(given_by(signals.values())),
        "signals": {name: to_record(name, signal) for name, signal in signals.items()},
        "software": software,
    }


def signal_layouts(
    plan: Plan, signals: Mapping[str, Signal], shape: ModelSizes
) -> list[tuple[Layout, ArraySpec]]:
    """Layout of every signal array of a cache, exact before the teacher runs."""
    return spec_layouts(plan, named_arrays(signals, plan.task, shape))


def spec_layouts(plan: Plan, specs: Iterable[ArraySpec]) -> list[tuple[Layout, ArraySpec]]:
    """Layout of every array that `specs` name."""
    return [(_layout(plan, spec), spec) for spec in specs]


def plan_layouts(plan: Plan) -> list[Layout]:
    """Layout of every array of the plan."""
    return [_layout(plan, spec) for spec in plan_specs(plan)]


def _layout(plan: Plan, spec: ArraySpec) -> Layout:
    return plan_layout(
        spec.name,
        spec.dtype,
        spec.row_shape,
        part_rows=plan.part_rows(spec.space),
        chunk_rows=spec.chunk_rows,
        parts=plan.parts,
        packing=spec.packing,
        dims=spec.dims,
    )
