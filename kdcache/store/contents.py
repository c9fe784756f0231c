"""What lies in a store before its first part: groups, arrays, the plan's rows and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kdcache.manifest import Json
from kdcache.plans import Array, Column, Plan
from kdcache.signals import ArraySpec
from kdcache.store.format.array_reader import Layout, encode_shard, plan_layout
from kdcache.store.format.zarr_metadata import create_arrays, create_group
from kdcache.store.io.durable_writes import write_synced
from kdcache.store.io.fingerprints import shard_fingerprint
from kdcache.store.planned import plan_layouts

FILE_UNIT = 4096
FILE_CHUNK = 2**20


def write_skeleton(
    root: Path,
    plan: Plan,
    signals: Sequence[tuple[Layout, ArraySpec]],
    files: Mapping[str, bytes | Path],
    *,
    named: bool = True,
) -> dict[str, Json]:
    """Write all that goes before the plan's rows: groups, arrays without rows, and files.

    `named` is whether dimensions have names. Returns what a commit says of the files' shards.
    """
    create_group(root, {})
    create_arrays(root, [(layout, {}) for layout in plan_layouts(plan)], named=named)
    create_arrays(root, [(layout, spec.attributes) for layout, spec in signals], named=named)
    objects: dict[str, Json] = {}
    for name, content in files.items():
        objects |= _write_file(root, name, content, named)
    create_group(root / "commits", {})
    return objects


def _column(plan: Plan, array: str) -> Column | Array:
    name = array.removeprefix("plan/")
    return plan.per_document[name] if name in plan.per_document else plan.columns[name]


def write_column(root: Path, layout: Layout, plan: Plan) -> dict[str, Json]:
    """Write the shards of one array of a plan; returns what a commit says of them."""
    rows, objects = _column(plan, layout.name), {}
    for shard in range(layout.shape[0] // layout.shard_rows):
        start = shard * layout.shard_rows
        data = np.asarray(rows[start : start + layout.shard_rows])
        pieces = encode_shard(data, layout.chunk_rows)
        write_synced(root / layout.key(shard), *pieces)
        objects[layout.key(shard)] = shard_fingerprint(pieces)
    return objects


def _write_file(root: Path, name: str, content: bytes | Path, named: bool) -> dict[str, Json]:
    data: Array = (
        np.frombuffer(content, np.uint8)
        if isinstance(content, bytes)
        else np.memmap(content, np.uint8, mode="r")
    )
    unit = FILE_UNIT if len(data) <= FILE_CHUNK else FILE_CHUNK
    rows = -(-len(data) // unit) * unit
    layout = plan_layout(
        f"files/{name}",
        "uint8",
        (),
        part_rows=rows,
        chunk_rows=FILE_CHUNK,
        parts=1,
        dims=(f"byte_of_{name.rpartition('/')[2]}",),
    )
    create_arrays(root, [(layout, {"bytes": len(data)})], named=named)
    objects = {}
    for shard in range(rows // layout.shard_rows):
        start = shard * layout.shard_rows
        piece = np.zeros(layout.shard_rows, np.uint8)
        block = data[start : start + layout.shard_rows]
        piece[: len(block)] = block
        pieces = encode_shard(piece, layout.chunk_rows)
        write_synced(root / layout.key(shard), *pieces)
        objects[layout.key(shard)] = shard_fingerprint(pieces)
    return objects
