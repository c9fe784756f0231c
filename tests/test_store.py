"""The files of a cache: standard Zarr, checked, whole, committed, the same after every accident."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

import kdcache
from kdcache.building.builder import build
from kdcache.errors import CacheError, DamageError, IncompleteError, MismatchError
from kdcache.maintenance.verifying import verify
from kdcache.plans import cut
from kdcache.signals import ModelSizes, named_arrays, parse_all
from kdcache.store import Cache, open_cache, open_plan
from kdcache.store.format.array_reader import ArrayReader, encode_shard, plan_layout
from kdcache.store.format.zarr_metadata import create_arrays, create_group
from kdcache.store.io.durable_writes import write_synced, writing
from kdcache.tasks import TASKS
from tests.test_no_rows import HIDDEN, LOGITS

CACHES = ["cache", "masked_cache", "causal_cache"]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def copy_of(cache: Cache, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cache.path, tmp_path / "copy.zarr"))


@pytest.mark.parametrize("name", CACHES)
def test_zarr_and_tensorstore_read_every_array(name: str, request: pytest.FixtureRequest) -> None:
    cache: Cache = request.getfixturevalue(name)
    root = zarr.open_group(cache.path, mode="r")
    names = [path for path, node in root.members(max_depth=None) if isinstance(node, zarr.Array)]
    assert set(cache.layouts) < set(names)
    for array in names:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(cache.path / array)}}
        other = tensorstore.open(spec, read=True, open=True).result().read().result()
        values = root[array][...]
        np.testing.assert_array_equal(values, other)
        if array in cache.layouts:
            mine = ArrayReader(cache.path, cache.layouts[array])[0 : values.shape[0]]
            np.testing.assert_array_equal(values, mine)


@pytest.mark.parametrize("name", CACHES)
def test_xarray_opens_every_group(name: str, request: pytest.FixtureRequest) -> None:
    cache: Cache = request.getfixturevalue(name)
    root = zarr.open_group(cache.path, mode="r")
    groups = {"": root, **dict(root.members(max_depth=None))}
    opened = 0
    for path, group in groups.items():
        arrays = dict(group.arrays()) if isinstance(group, zarr.Group) else {}
        if not arrays:
            continue
        place = path or None
        sets = [
            xarray.open_zarr(cache.path, group=place, consolidated=False),
            xarray.open_dataset(cache.path, engine="zarr", group=place, consolidated=False),
        ]
        for found in sets:
            assert set(found.variables) == set(arrays)
            for array, rows in arrays.items():
                assert found[array].dtype == rows.dtype  # nothing is scaled or masked
                np.testing.assert_array_equal(found[array].values, rows[...])
            found.close()
        opened += len(arrays)
    assert opened == sum(isinstance(node, zarr.Array) for node in groups.values())


@pytest.mark.parametrize("text", [*LOGITS, *(f"{text},positions=all" for text in HIDDEN)])
def test_xarray_opens_the_arrays_of_every_codec(text: str, tmp_path: Path) -> None:
    """Dimensions of one name have one length in a group, high parts of ids included."""
    shape = ModelSizes(outputs=70_000, hidden=32, layers=4)
    specs = named_arrays(parse_all(text), TASKS["masked-lm"], shape)
    layouts = [
        plan_layout(
            spec.name,
            spec.dtype,
            spec.row_shape,
            part_rows=128,
            chunk_rows=128,
            parts=2,
            packing=spec.packing,
            dims=spec.dims,
        )
        for spec in specs
    ]
    create_group(tmp_path / "s", {})
    create_arrays(tmp_path / "s", [(layout, {}) for layout in layouts])
    for group in {layout.name.rpartition("/")[0] for layout in layouts}:
        with xarray.open_zarr(tmp_path / "s", group=group, consolidated=False) as found:
            wanted = {n.name: n.shape for n in layouts if n.name.startswith(f"{group}/")}
            assert {f"{group}/{n}": v.shape for n, v in found.variables.items()} == wanted


def test_zarr_lists_a_cache_without_a_warning(cache: Cache) -> None:
    members = dict(zarr.open_group(cache.path, mode="r").members(max_depth=None))
    assert "commits/000000" in members
    assert "complete" in members


@pytest.mark.parametrize("name", CACHES)
def test_predicted_bytes_are_the_bytes_on_disk(name: str, request: pytest.FixtureRequest) -> None:
    cache: Cache = request.getfixturevalue(name)
    for array, size in cache.bytes.items():
        shards = [p for p in (cache.path / array / "c").rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in shards) == size


@pytest.mark.parametrize("row_shape", [(), (3,)], ids=["flat", "rows"])
def test_shards_survive_the_round_trip(tmp_path: Path, row_shape: tuple[int, ...]) -> None:
    layout = plan_layout("x", "int32", row_shape, part_rows=384, chunk_rows=128, parts=3)
    create_group(tmp_path / "s", {})
    create_arrays(tmp_path / "s", [(layout, {})])
    values = np.random.default_rng(0).integers(-9, 9, layout.shape, np.int32)
    for part in range(3):
        path = tmp_path / "s" / layout.key(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces = encode_shard(values[part * 384 : (part + 1) * 384], layout.chunk_rows)
        path.write_bytes(b"".join(pieces))
        assert path.stat().st_size == layout.shard_bytes
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s" / "x", mode="r")[...], values)
    reader = ArrayReader(tmp_path / "s", layout)
    starts, counts = np.array([5, 700, 100]), np.array([0, 452, 300])
    wanted = np.concatenate([values[a : a + n] for a, n in zip(starts, counts, strict=True)])
    np.testing.assert_array_equal(reader.read(starts, counts), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_cut_gives_whole_documents_in_the_fewest_parts(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 60, 500)
    bounds, size = cut(lengths, 1024)
    sums = [int(lengths[a:b].sum()) for a, b in itertools.pairwise(bounds)]
    assert sum(sums) == lengths.sum()
    assert max(sums) <= size <= 1024
    assert len(sums) <= -(-int(lengths.sum()) // (1024 - 60))


@pytest.mark.parametrize("at", ["chunk", "crc", "index"])
def test_a_flipped_bit_is_never_read(cache: Cache, tmp_path: Path, at: str) -> None:
    root = copy_of(cache, tmp_path)
    layout = cache.layouts["logits/values"]
    path = root / layout.key(1)
    data = bytearray(path.read_bytes())
    size = layout.chunk_rows * layout.row_bytes
    data[{"chunk": size // 2, "crc": size + 1, "index": -10}[at]] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamageError, match=str(path)):
        Cache(root).read("logits/values", cache.plan.part_docs(1))
    assert any(str(path) in problem for problem in verify(root, full=True))


def test_missing_and_short_shards_are_named(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    layout = cache.layouts["logits/values"]
    short, gone = root / layout.key(0), root / layout.key(1)
    short.write_bytes(short.read_bytes()[:-1])
    gone.unlink()
    problems = verify(root)
    assert len(problems) == 2
    assert all(any(str(path) in problem for problem in problems) for path in (short, gone))
    with pytest.raises(DamageError, match=r"expected \d+ bytes"):
        Cache(root).read("logits/values", cache.plan.part_docs(0))
    with pytest.raises(IncompleteError, match="run the same `kdcache build`"):
        Cache(root).read("logits/values", cache.plan.part_docs(1))


@pytest.mark.parametrize("group", ["", "commits/plan/", "commits/000000/", "complete/"])
def test_an_edited_record_is_refused(cache: Cache, tmp_path: Path, group: str) -> None:
    node = f"{group}zarr.json"
    root = copy_of(cache, tmp_path)
    record = json.loads((root / node).read_text())
    record["attributes"]["kdcache"]["extra"] = 1
    (root / node).write_text(json.dumps(record))
    assert any(node in problem for problem in verify(root))


def test_edited_array_metadata_is_found(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    path = root / "logits" / "values" / "zarr.json"
    path.write_text(path.read_text().replace("float32", "int32"))
    assert any("logits/values/zarr.json" in problem for problem in verify(root))


def test_verify_of_a_sound_cache_finds_nothing(cache: Cache) -> None:
    assert verify(cache.path) == []
    assert verify(cache.path, full=True) == []


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(CacheError, match="not a kdcache cache"):
        open_cache(tmp_path)
    with pytest.raises(CacheError, match="no such cache"):
        verify(tmp_path / "nothing")
    assert callable(kdcache.plan)  # no module of that name may shadow it
    with pytest.raises(CacheError, match="not a kdcache plan"):
        open_plan(tmp_path)


def test_another_teacher_plan_or_signal_is_refused_by_field(
    cache: Cache, corpus: Path, classifier: Path, regressor: Path
) -> None:
    same = {"task": "text-classification", "out": cache.path, "teacher": classifier}
    sizes = {"max_length": 48, "part_tokens": 2048}
    with pytest.raises(MismatchError, match=r"signals\.hidden"):
        build(corpus, **same, signals=["logits:dense"], **sizes)
    signals = ["logits:dense", "hidden:layers=0-1-2-3-4,positions=cls,dtype=fp32"]
    with pytest.raises(MismatchError, match=r"plan\.config\.max_length is 48 there and 40 now"):
        build(corpus, **same, signals=signals, max_length=40, part_tokens=2048)
    with pytest.raises(MismatchError, match=r"teacher\.dtype is fp32 there and bf16 now"):
        build(corpus, **same, signals=signals, dtype="bf16", **sizes)


SMALL_PARTS: dict[str, Any] = {
    "task": "text-classification",
    "signals": ["logits:dense", "hidden:layers=2,positions=all,dtype=int8"],
    "max_length": 48,
    "part_tokens": 256,
    "batch_tokens": 256,
}


@pytest.mark.slow
@pytest.mark.parametrize("shares", [(0.5,), (0.1, 0.4, 0.9)])
def test_a_killed_build_resumed_is_byte_identical(
    shares: tuple[float, ...], tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    parts = build(corpus, teacher=classifier, out=whole, **SMALL_PARTS).plan.parts
    assert parts > 10
    given = {"corpus": str(corpus), "teacher": str(classifier), "out": str(killed), **SMALL_PARTS}
    code = f"from kdcache.building.builder import build; build(**{given!r})"
    for share in shares:
        process = subprocess.Popen([sys.executable, "-c", code])
        deadline = time.monotonic() + 240
        while len(list(killed.glob("commits/0*/zarr.json"))) < share * parts:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(IncompleteError, match="parts are committed"):
            open_cache(killed).require_complete()
    build(**given)
    assert files_of(whole) == files_of(killed)
    assert not killed.with_name("killed.zarr.staging").exists()


def test_a_full_disk_is_an_error_that_says_so(tmp_path: Path, cache: Cache) -> None:
    message = "disk is full; free some space and run the same"
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - closed below
    with full, pytest.raises(CacheError, match=message), writing(tmp_path):
        full.write(b"x")
    with writing(tmp_path):
        write_synced(tmp_path / "fine", b"x")
