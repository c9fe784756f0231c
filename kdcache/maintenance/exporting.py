"""Write a cache for other tools: a safetensors or Parquet file for each part.

Columns are the documents' ids, tokens and labels, and every signal: as it is decoded here, or the
arrays as they are stored. Rows belong to documents in their order: one each (`document`), or
`doc_len` (`token`) or `masked_len` (`selected`) of them. Where a signal has a fraction of those,
`SIGNAL.kept` numbers them within their document and `SIGNAL.kept_len` counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json, canonical
from kdcache.plans import Array, column_space
from kdcache.progress import Shown, short, shown
from kdcache.store import Cache, Place, open_cache
from kdcache.store.io.durable_writes import occupied, sync_folder, write_synced, writing
from kdcache.tasks import RowSpace, Subset, stored_name


@dataclass(frozen=True, kw_only=True)
class Column:
    """Rows of one part, [rows of `space`, ...]."""

    space: RowSpace
    rows: Array


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written: files, by name, and their bytes together."""

    files: list[str]
    bytes: int


Columns = Mapping[str, Column]
Encode = Callable[[Columns, Json], bytes]


def export(
    cache: Place | Cache,
    out: str | Path,
    *,
    form: str = "safetensors",
    raw: bool = False,
    progress: Shown = None,
) -> Export:
    """Write the complete `cache` to files `part-000000.safetensors` (or `.parquet`) in `out`.

    Decoded columns are `logits.ids`, `logits.logprobs` (natural log-probabilities, float32) and
    whatever else soft labels consist of, `hidden.L2` for layer 2 and `pooled.values` (float32), by
    the names that signals have in the cache; of a signal that only a newer version can read there
    are none, and `progress` says so. With `raw` they
    are the stored arrays under their own names, such as `logits/ids`; what made them is told by
    the metadata `kdcache` of each file. A Parquet file has a row per document, whose tokens and
    other rows are lists.

    Raises:
        ConfigError: an unknown format, or a folder in use.
        IncompleteError: parts of the cache are missing.
        DamageError: its bytes are not what was written.
    """
    progress = shown(progress)
    encode, folder = FORMS[one_of("format", form, FORMS)], Path(out)
    require_no_model(cache)
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    source.require_complete()
    if occupied(folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another")
    for name, news in source.newer.items():
        progress.say(f"{name} is left out: this version does not know {news}; update kdcache")
    names, size = [], 0
    parts, label = source.plan.parts, f"exporting {short(str(source.path))}"
    with writing(folder), progress.bar(label, unit="parts", total=parts) as advance:
        for part in range(parts):
            data = encode(part_columns(source, part, raw=raw), _metadata(source, part, raw))
            names.append(f"part-{part:06d}.{form}")
            write_synced(folder / names[-1], data)
            size += len(data)
            advance(1)
        sync_folder(folder)
    return Export(files=names, bytes=size)


def require_no_model(place: Place | Cache) -> None:
    """Raise ConfigError for the folder of a model, which is shipped, not exported."""
    if isinstance(place, str | Path) and (Path(place) / "config.json").is_file():
        raise ConfigError(
            f"{place} is the folder of a model, and export writes caches: `kdcache ship {place} "
            "OUT` writes a classifier as ONNX, to run without torch"
        )


def part_columns(cache: Cache, part: int, *, raw: bool) -> dict[str, Column]:
    """Every column of a part, by name."""
    docs = cache.plan.part_docs(part)
    found = dict(_plan_columns(cache, part, docs))
    for name in cache.signals:
        found.update(_sampled_columns(cache, docs, name))
    if raw:
        for name in cache.layouts:
            found[name] = Column(space=cache.spaces[name], rows=cache.read(name, docs))
    else:
        found.update(_decoded(cache, docs))
    return found


def _plan_columns(cache: Cache, part: int, docs: Array) -> Iterator[tuple[str, Column]]:
    plan = cache.plan
    names = ["doc_id", "doc_len"]
    names += filter(None, [] if plan.task.selects else [plan.label_kind.column])
    names += ["masked_len"] if "selected" in plan.rows else []
    for name in names:
        yield name, Column(space="document", rows=plan.per_document[name][docs])
    for name, column in plan.columns.items():
        space = column_space(name)
        start = part * plan.rows[space]
        yield name, Column(space=space, rows=column[start : start + plan.extent(docs, space)])


def _sampled_columns(cache: Cache, docs: Array, signal: str) -> Iterator[tuple[str, Column]]:
    """Which rows a signal has, where those are not all of its documents'."""
    space = cache.space_of(signal)
    if isinstance(space, Subset):
        (_, lens), (_, counts) = (cache.plan.spans(docs, s) for s in (space.of, space))
        before = np.repeat(np.cumsum(lens, dtype=np.int64) - lens, counts)
        yield f"{signal}.kept", Column(space=space, rows=cache.sampled_rows(signal, docs) - before)
        yield f"{signal}.kept_len", Column(space="document", rows=counts)


def _decoded(cache: Cache, docs: Array) -> Iterator[tuple[str, Column]]:
    for name in cache.signals:
        space = cache.space_of(name)
        for field, rows in cache.columns(docs, name).items():
            yield f"{name}.{field}", Column(space=space, rows=rows.numpy())


def _metadata(cache: Cache, part: int, raw: bool) -> Json:
    manifest = cache.manifest
    return {
        "cache": str(cache.path),
        "part": part,
        "parts": cache.plan.parts,
        "raw": raw,
        **{name: manifest[name] for name in ("teacher", "signals", "plan", "software")},
        "fidelity": cache.fidelity,
    }


def _safetensors(columns: Columns, metadata: Json) -> bytes:
    from safetensors.numpy import save

    spaces = {name: stored_name(column.space) for name, column in columns.items()}
    description = canonical({**metadata, "spaces": spaces}).decode()
    tensors = {name: np.ascontiguousarray(column.rows) for name, column in columns.items()}
    data: bytes = save(tensors, metadata={"kdcache": description})
    return data


def _parquet(columns: Columns, metadata: Json) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts: dict[RowSpace, Array] = {"token": columns["doc_len"].rows}
    if "masked_len" in columns:
        counts["selected"] = columns["masked_len"].rows
    for name, column in columns.items():
        if name.endswith(".kept"):
            counts[column.space] = columns[f"{name}_len"].rows
    arrays = {}
    for name, column in columns.items():
        values = _rows(pa, column.rows)
        if column.space != "document":
            offsets = np.concatenate([[0], np.cumsum(counts[column.space])]).astype(np.int64)
            values = pa.LargeListArray.from_arrays(offsets, values)
        arrays[name] = values
    table = pa.table(arrays).replace_schema_metadata({"kdcache": canonical(metadata)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _rows(pa: Any, rows: Array) -> Any:
    """An Arrow array with an element a row: numbers, or lists of one length."""
    values = pa.array(rows.reshape(-1))
    for length in reversed(rows.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    return values


FORMS: dict[str, Encode] = {"safetensors": _safetensors, "parquet": _parquet}
