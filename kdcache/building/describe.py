"""What a plan or cache is, as JSON values for reports: counts, shapes, bytes, fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcache.building.attention_ways import smaller_ways
from kdcache.manifest import Json
from kdcache.plans import Plan
from kdcache.signals import ArraySpec, Differentiated, HasArtifacts, ModelSizes, Signal
from kdcache.store import Cache, Layout, plan_layouts, signal_layouts

BINS = 12  # rows of a length histogram, at most


def describe_plan(plan: Plan, sha256: str | None = None) -> Json:
    """Counts and settings of a plan; its hash is computed from all tokens unless it is given.

    `documents` counts what is trained on (views and windows apart), `corpus_documents` the rows of
    the corpus; `part_tokens` is what a part holds, padding included; lengths are in tokens.
    """
    config = plan.config
    return {
        "task": config.task,
        "problem": config.label_kind,
        "tokenizer": config.tokenizer["name"],
        "corpus_documents": config.corpus["documents"],
        "documents": plan.documents,
        "tokens": plan.tokens,
        "masked": plan.selected,
        "labelled": plan.labelled,
        "classes": config.classes,
        "truncated": config.corpus["truncated"],
        "max_length": config.max_length,
        "length_histogram": length_histogram(plan.per_document["doc_len"][plan.docs]),
        "parts": plan.parts,
        "part_tokens": plan.rows["token"],
        "text_columns": config.corpus["text_columns"],
        "label_column": config.corpus["label_column"],
        "seed": config.seed,
        "sha256": plan.sha256 if sha256 is None else sha256,
    }


def length_histogram(lengths: Sequence[int] | np.ndarray[Any, Any]) -> list[list[int]]:
    """At most BINS rows [shortest, longest, documents] of equal width, a power of two.

    `lengths` are positive token counts, one per document. Rows without a document are left out; the
    first begins with the shortest document, the last ends with the longest.
    """
    shortest, longest = int(np.min(lengths)), int(np.max(lengths))
    width = 1
    while (longest - 1) // width - (shortest - 1) // width >= BINS:
        width *= 2
    bins, counts = np.unique((np.asarray(lengths) - 1) // width, return_counts=True)
    return [
        [max(i * width + 1, shortest), min((i + 1) * width, longest), n]
        for i, n in zip(bins.tolist(), counts.tolist(), strict=True)
    ]


def describe_bytes(plan: Plan, signals: Mapping[str, Signal], shape: ModelSizes) -> Json:
    """Bytes of every array of a cache, known before the teacher runs, and their total.

    `arrays` are exact. `estimates` are those of compressed arrays, [least, most] as measured on
    real teachers, and of the files that a signal needs; `total` counts the most, `least` the least.
    `smaller`, if there is such a way, are signals that say the same of attention in fewer bytes.
    `forwards`, if there are such signals, is about how many of a teacher's forwards each takes that
    is a gradient, the forward itself included.
    The tokenizer's files, the teacher's configuration and the JSON metadata come on top.

    Raises ConfigError if a teacher of this shape cannot give a signal.
    """
    plan_sizes = sizes(plan, signals, shape)
    smaller = smaller_ways(
        signals, plan_sizes["total"], lambda them: int(sizes(plan, them, shape)["total"])
    )
    forwards = {
        name: round(signal.forwards(shape), 1)
        for name, signal in signals.items()
        if isinstance(signal, Differentiated)
    }
    found = {"smaller": smaller, "forwards": forwards}
    return {**plan_sizes, **{name: value for name, value in found.items() if value}}


def sizes(plan: Plan, signals: Mapping[str, Signal], shape: ModelSizes) -> Json:
    """`describe_bytes` without `smaller` and `forwards`."""
    for signal in signals.values():
        signal.check(plan.task, shape)
    arrays = {layout.name: layout.bytes for layout in plan_layouts(plan)}
    estimates = {}
    for layout, spec in signal_layouts(plan, signals, shape):
        if spec.expected is None:
            arrays[layout.name] = layout.bytes
        else:
            estimates[layout.name] = _estimate(plan, layout, spec)
    exact = sum(arrays.values())
    artifacts = [s.artifact_bytes(shape) for s in signals.values() if isinstance(s, HasArtifacts)]
    for name, size in (entry for files in artifacts for entry in files.items()):
        estimates[f"files/{name}"] = [size // 2, size]
    return {
        "arrays": arrays,
        "estimates": estimates,
        "total": exact + sum(most for _, most in estimates.values()),
        "least": exact + sum(least for least, _ in estimates.values()),
    }


def _estimate(plan: Plan, layout: Layout, spec: ArraySpec) -> list[int]:
    """Least and most bytes of a compressed array: padding takes nothing, checksums and index do."""
    assert spec.expected is not None
    rows = plan.count(spec.space)
    around = layout.bytes - layout.shape[0] * layout.row_bytes
    return [round(rows * share) + around for share in spec.expected]


def describe_cache(cache: Cache) -> Json:
    """What made a cache, what it holds, how true it is and whether all of it is there.

    Bytes are those of the finished cache, of compressed arrays those of the committed parts;
    `fidelity` is empty until it is finished.
    """
    manifest = cache.manifest
    layouts = [*plan_layouts(cache.plan), *cache.layouts.values()]
    return {
        "path": str(cache.path),
        "teacher": {**manifest["teacher"], **manifest["shape"]},
        "further_teachers": list(cache.teachers),
        "plan": describe_plan(cache.plan, manifest["plan"]["sha256"]),
        "signals": manifest["signals"],
        **({"newer": dict(cache.newer)} if cache.newer else {}),
        "arrays": [_describe_array(layout, cache.bytes[layout.name]) for layout in layouts],
        "total_bytes": sum(cache.bytes.values()),
        "fidelity": cache.fidelity,
        "completeness": {
            "complete": cache.complete,
            "parts": cache.plan.parts,
            "committed": len(cache.committed),
            "missing": cache.missing,
        },
        "files": dict(cache.files),
        "software": manifest["software"],
    }


def _describe_array(layout: Layout, size: int) -> Json:
    return {
        "name": layout.name,
        "shape": list(layout.shape),
        "dtype": str(layout.dtype),
        "bytes": size,
    }
