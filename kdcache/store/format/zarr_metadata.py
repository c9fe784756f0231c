"""Zarr metadata: groups and arrays as zarr-python writes them, for any Zarr v3 reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from kdcache.errors import CacheError, DamageError
from kdcache.manifest import Json, seal, unseal
from kdcache.signals import Packing
from kdcache.store.format.array_reader import Layout
from kdcache.store.format.layout import ZSTD_LEVELS
from kdcache.store.io.checksums import crc
from kdcache.store.io.object_path import Root
from kdcache.store.io.safe_paths import inside, read_again, read_regular

RECORD_BYTES = 2**30  # of a record, at most: a commit names some hundred objects of 100 bytes
LONGEST = 2**31  # an axis
PACKINGS: dict[tuple[str, ...], Packing] = {
    ("bytes", "crc32c"): "",
    ("bytes", "zstd", "crc32c"): "zstd",
    ("transpose", "bytes", "zstd", "crc32c"): "columns",
}
DTYPE = re.compile("u?int(8|16|32|64)|float(16|32|64)")


def create_group(path: Path, attributes: Json) -> None:
    """Create a group (and those above it inside the store) with attributes."""
    zarr.create_group(path, attributes=attributes, zarr_format=3)


def group_json(record: Json) -> bytes:
    """The `zarr.json` of a group that carries a sealed record."""
    node = {"attributes": seal(record), "zarr_format": 3, "node_type": "group"}
    return _indented(node).encode()


def _indented(value: Any, line: str = "\n") -> str:
    """As `json.dumps(value, indent=2)`, in half of its time: every opening compares records."""
    kind, inner = type(value), line + "  "
    if kind is str:
        return encode_basestring_ascii(value)
    if kind is dict and value:
        items = [f"{encode_basestring_ascii(k)}: {_indented(v, inner)}" for k, v in value.items()]
        return "{" + inner + f",{inner}".join(items) + line + "}"
    if kind in (list, tuple) and value:
        return "[" + inner + f",{inner}".join(_indented(v, inner) for v in value) + line + "]"
    return json.dumps(value, allow_nan=False)


def create_arrays(
    root: Path, arrays: Iterable[tuple[Layout, Mapping[str, Any]]], *, named: bool = True
) -> None:
    """Create the metadata of arrays, with the groups above them; no shard is written.

    `named`: with the names of their dimensions, which the formats before the third are without.
    """
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
            filters=_turn(layout),
            serializer=BytesCodec(endian="little"),
            compressors=[*_compressor(layout), Crc32cCodec()],
            fill_value=0,
            dimension_names=(layout.dims or None) if named else None,
            zarr_format=3,
            attributes={**attributes, "part_rows": layout.part_rows},
        )


def _turn(layout: Layout) -> list[TransposeCodec]:
    """The codec that lays columns of a chunk together."""
    order = range(len(layout.row_shape), -1, -1)
    return [TransposeCodec(order=tuple(order))] if layout.packing == "columns" else []


def _compressor(layout: Layout) -> list[ZstdCodec]:
    return [ZstdCodec(level=ZSTD_LEVELS[layout.packing])] if layout.packing else []


def _packing(codecs: list[Json]) -> Packing:
    """How inner chunks are compressed; ValueError if we have no such way."""
    names = tuple(codec["name"] for codec in codecs)
    if names not in PACKINGS:
        raise ValueError(f"codecs {', '.join(names)}")
    return PACKINGS[names]


def read_layout(root: Root, name: str, parts: int, objects: Mapping[str, Json]) -> Layout:
    """The layout of an array on disk.

    DamageError if its metadata is not what `objects`, those of the plan's commit, say or makes no
    sense.
    """
    path = root / name / "zarr.json"
    try:
        node = json.loads(read_object(root, f"{name}/zarr.json", objects))
        if not DTYPE.fullmatch(node["data_type"]):
            raise ValueError(f"data_type {node['data_type']}")
        sharding = node["codecs"][0]["configuration"]
        layout = Layout(
            name=name,
            dtype=np.dtype(node["data_type"]),
            row_shape=tuple(node["shape"][1:]),
            part_rows=node["attributes"]["part_rows"],
            chunk_rows=sharding["chunk_shape"][0],
            shard_rows=node["chunk_grid"]["configuration"]["chunk_shape"][0],
            parts=parts,
            packing=_packing(sharding["codecs"]),
        )
        sizes = (*layout.row_shape, layout.part_rows, layout.shard_rows, layout.chunk_rows)
        whole = all(type(size) is int and 0 < size <= LONGEST for size in sizes)
        whole = whole and not layout.part_rows % layout.shard_rows
        whole = whole and not layout.shard_rows % layout.chunk_rows
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamageError(f"{path} is damaged: {error!r:.100}") from error
    if not whole or list(layout.shape) != node["shape"]:
        raise DamageError(f"{path} is damaged: shape {node['shape']} does not fit its parts")
    return layout


def read_object(root: Root, key: str, objects: Mapping[str, Json]) -> bytes:
    """A small object that is read whole, checked against its commit; DamageError."""
    path = inside(root, key)
    return read_again(path, lambda: _committed(path, objects.get(key)))


def _committed(path: Root, fingerprint: Json | None) -> bytes:
    try:
        data = read_regular(path, RECORD_BYTES)
        if fingerprint is not None and (len(data), crc(data)) == (
            fingerprint["bytes"],
            fingerprint.get("crc32c"),
        ):
            return data
    except OSError as error:
        raise DamageError(f"{path} is missing or cannot be read: {error.strerror}") from error
    raise DamageError(f"{path} is damaged: it is not the object committed there")


def read_record(path: Root) -> Json | None:
    """The sealed record of a group's folder; None if the group is not there."""
    return read_again(path, lambda: _sealed(path))


def _sealed(path: Root) -> Json | None:
    try:
        data = read_regular(path / "zarr.json", RECORD_BYTES)
        node = json.loads(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CacheError(f"{path / 'zarr.json'} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path / 'zarr.json'} is damaged: not JSON ({error!s:.100})") from error
    attributes = node.get("attributes") if isinstance(node, dict) else None
    if not isinstance(attributes, dict):
        raise DamageError(f"{path / 'zarr.json'} is damaged: it has no attributes")
    record = unseal(attributes, str(path / "zarr.json"))
    try:
        whole = data == group_json(record)
    except RecursionError:  # tables within tables, deeper than any record's
        whole = False
    if not whole:
        raise DamageError(f"{path / 'zarr.json'} is damaged: its bytes are not those of its record")
    return record


def require_record(path: Root, kind: str) -> Json:
    """The manifest of a plan or cache; CacheError if there is none, or of another kind."""
    record = read_record(path)
    if record is None:
        raise CacheError(f"{path} is not a kdcache {kind}: it holds no zarr.json")
    if record.get("kind") not in ("plan", "cache"):
        raise DamageError(f"{path / 'zarr.json'} is damaged: it is no manifest")
    if record["kind"] != kind:
        way = "; `kdcache build` makes a cache of it" if kind == "cache" else ""
        raise CacheError(f"{path} is a kdcache {record['kind']}, not a {kind}{way}")
    return record
