"""Zarr metadata: groups and arrays as zarr-python writes them, for any Zarr v3 reader."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from kdcache.errors import CacheError, DamageError
from kdcache.manifest import Json, seal, unseal
from kdcache.store.shard import Layout


def create_group(path: Path, attributes: Json) -> None:
    """Create a group (and those above it inside the store) with attributes."""
    zarr.create_group(path, attributes=attributes, zarr_format=3)


def group_json(record: Json) -> bytes:
    """The `zarr.json` of a group that carries a sealed record."""
    node = {"attributes": seal(record), "zarr_format": 3, "node_type": "group"}
    return json.dumps(node, indent=2, allow_nan=False).encode()


def create_arrays(root: Path, arrays: Iterable[tuple[Layout, Mapping[str, Any]]]) -> None:
    """Create the metadata of arrays, with the groups above them; no shard is written."""
    for layout, attributes in arrays:
        parents = layout.name.split("/")[:-1]
        for depth in range(len(parents)):
            group = root.joinpath(*parents[: depth + 1])
            if not (group / "zarr.json").exists():
                create_group(group, {})
        zarr.create_array(
            root / layout.name,
            shape=layout.shape,
            shards=(layout.shard_rows, *layout.row_shape),
            chunks=(layout.chunk_rows, *layout.row_shape),
            dtype=layout.dtype,
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=0,
            zarr_format=3,
            attributes={**attributes, "part_rows": layout.part_rows},
        )


def read_layout(root: Path, name: str, parts: int) -> Layout:
    """The layout of an array on disk; DamageError if its metadata does not make sense."""
    path = root / name / "zarr.json"
    try:
        node = json.loads(path.read_bytes())
        sharding = node["codecs"][0]["configuration"]
        layout = Layout(
            name=name,
            dtype=np.dtype(node["data_type"]),
            row_shape=tuple(node["shape"][1:]),
            part_rows=node["attributes"]["part_rows"],
            chunk_rows=sharding["chunk_shape"][0],
            shard_rows=node["chunk_grid"]["configuration"]["chunk_shape"][0],
            parts=parts,
        )
        whole = layout.part_rows % layout.shard_rows == layout.shard_rows % layout.chunk_rows == 0
    except FileNotFoundError as error:
        raise DamageError(f"{path} is not there") from error
    except (ValueError, KeyError, IndexError, TypeError, ArithmeticError) as error:
        raise DamageError(f"{path} is damaged: {error!r}") from error
    if not whole or list(layout.shape) != node["shape"]:
        raise DamageError(f"{path} is damaged: shape {node['shape']} does not fit its parts")
    return layout


def read_record(path: Path) -> Json | None:
    """The sealed record of a group's folder; None if the group is not there."""
    try:
        node = json.loads((path / "zarr.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise DamageError(f"{path / 'zarr.json'} is damaged: not JSON ({error})") from error
    attributes = node.get("attributes") if isinstance(node, dict) else None
    if not isinstance(attributes, dict):
        raise DamageError(f"{path / 'zarr.json'} is damaged: it has no attributes")
    return unseal(attributes, str(path / "zarr.json"))


def require_record(path: Path, kind: str) -> Json:
    """The manifest of a plan or cache; CacheError if there is none, or of another kind."""
    record = read_record(path)
    if record is None:
        raise CacheError(f"{path} is not a kdcache {kind}: it holds no zarr.json")
    if record.get("kind") != kind:
        raise CacheError(f"{path} is a kdcache {record.get('kind')}, not a {kind}")
    return record
