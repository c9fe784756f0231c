"""Every codec of SIGNALS goes all ways a cache goes; a new entry of the table is tested by this."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import kdcache
from kdcache.errors import KdcacheError, MismatchError
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.signals import from_json, parse
from kdcache.store import Cache
from kdcache.tasks import Subset
from kdcache_cli.main import main
from tests.conformance.conftest import SIZES, Caches
from tests.conformance.examples import EXAMPLES, Example
from tests.damage import copy_of, files_of, flip, forge_manifest

every = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.text)
CacheOf = Callable[[Example], Cache]


@every
def test_its_configuration_is_json_and_comes_back(example: Example, cache_of: CacheOf) -> None:
    cache = cache_of(example)
    record = cache.manifest["signals"][example.name]
    assert json.loads(json.dumps(record)) == record
    assert from_json(example.name, record).to_json() == record
    assert from_json(example.name, record) == parse(example.text) == cache.signals[example.name]


@every
def test_a_plan_tells_its_bytes_before_the_teacher_runs(
    example: Example, cache_of: CacheOf, caches: Caches, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = cache_of(example)
    bytes_told = planned(example, cache, caches, capsys)["bytes"]
    for array, size in cache.bytes.items():
        if array in bytes_told["estimates"]:  # compressed: of real teachers, and no bound here
            assert 0 < bytes_told["estimates"][array][0] <= bytes_told["estimates"][array][1]
        else:
            assert bytes_told["arrays"][array] == size
    told = set(bytes_told["arrays"]) | set(bytes_told["estimates"])
    files = {name for name in told if name.startswith("files/")}
    assert told - files == set(cache.bytes)
    assert {name.removeprefix("files/") for name in files} <= set(cache.files)


def planned(
    example: Example, cache: Cache, caches: Caches, capsys: pytest.CaptureFixture[str], *more: str
) -> Any:
    """What `kdcache plan --signal` says, as JSON; of an error, its line."""
    task = cache.plan.config.task
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    command = ["plan", str(caches.corpora[task]), "--tokenizer", str(caches.teacher_of(cache))]
    command += ["--task", task, "--out", str(caches.plan(task)), *options]
    capsys.readouterr()
    code = main([*command, "--signal", example.text, "--json", "--quiet", *more])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    return json.loads(out) if code == 0 else err.strip()


@every
def test_it_is_read_row_by_row_and_says_how_true_it_is(example: Example, cache_of: CacheOf) -> None:
    cache = cache_of(example)
    assert cache.plan.parts > 1
    assert kdcache.verify(cache.path, full=True) == []
    docs, space = cache.plan.docs, cache.space_of(example.name)
    rows = cache.plan.count(space)
    for array in cache.arrays_of(example.name):
        whole = cache.read(array, docs)
        assert len(whole) == rows > 0
        alone = [cache.read(array, docs[i : i + 1]) for i in range(len(docs))]
        assert b"".join(part.tobytes() for part in alone) == whole.tobytes()
        turned = cache.read(array, docs[::-1])
        assert turned.tobytes() == b"".join(part.tobytes() for part in alone[::-1])
    assert cache.fidelity[example.name]["rows"] == rows
    assert example.name in repr(kdcache.open_cache(cache.path))


@every
def test_it_is_exported_decoded_and_as_it_is_stored(
    example: Example, cache_of: CacheOf, tmp_path: Path
) -> None:
    cache = cache_of(example)
    name, docs = example.name, cache.plan.docs
    arrays = columns(cache, tmp_path / "raw", raw=True)
    for array in cache.arrays_of(name):
        assert arrays[array].tobytes() == cache.read(array, docs).tobytes()
    decoded = columns(cache, tmp_path / "decoded", raw=False)
    own = {column: rows for column, rows in decoded.items() if column.startswith(f"{name}.")}
    assert own
    assert {len(rows) for rows in own.values()} == {cache.plan.count(cache.space_of(name))}
    made = kdcache.export(cache, tmp_path / "tables", form="parquet")
    tables = [pyarrow.parquet.read_table(tmp_path / "tables" / file) for file in made.files]
    assert {column for table in tables for column in table.column_names} == set(decoded)
    assert sum(table.num_rows for table in tables) == len(docs)


def columns(cache: Cache, out: Path, *, raw: bool) -> dict[str, np.ndarray[Any, Any]]:
    """Columns of all parts, read as the format says: a length, a JSON header, the bytes."""
    kinds = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "F32": "<f4", "F16": "<f2", "U16": "<u2"}
    kinds |= {"I8": "<i1", "U8": "<u1", "U32": "<u4"}
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    for file in kdcache.export(cache, out, raw=raw).files:
        data = (out / file).read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:start])
        for name, node in header.items():
            if name != "__metadata__":
                begin, end = (start + offset for offset in node["data_offsets"])
                rows = np.frombuffer(data[begin:end], kinds[node["dtype"]])
                found.setdefault(name, []).append(rows.reshape(node["shape"]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


@every
def test_the_teacher_still_says_what_is_stored(example: Example, cache_of: CacheOf) -> None:
    spot = spot_check(cache_of(example).path, 6)
    assert spot.findings == []
    assert {figure.signal for figure in spot.figures} == {example.name}


@every
def test_what_is_damaged_is_made_again_to_the_byte(
    example: Example, cache_of: CacheOf, tmp_path: Path
) -> None:
    cache = cache_of(example)
    root = copy_of(cache, tmp_path)
    whole = files_of(root)
    arrays = cache.arrays_of(example.name)
    for number, array in enumerate(arrays):
        shards = sorted(path for path in (root / array / "c").rglob("*") if path.is_file())
        flip(shards[0], 1234 + number)
        shards[-1].unlink()
    flip(root / arrays[0] / "zarr.json", 555)
    for file in cache.files:
        if not file.startswith(("tokenizer/", "teacher/")):  # one that the signal needs
            flip(next(p for p in (root / "files" / file / "c").rglob("*") if p.is_file()), 99)
    assert len(kdcache.verify(root, full=True)) > 2
    assert repair(root).left == ()
    assert files_of(root) == whole


@every
def test_it_is_inspected(
    example: Example, cache_of: CacheOf, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = cache_of(example)
    capsys.readouterr()
    assert main(["inspect", str(cache.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["signals"] == cache.manifest["signals"]
    assert {array["name"] for array in told["arrays"]} == set(cache.bytes)
    assert told["fidelity"] == cache.fidelity
    assert main(["inspect", str(cache.path)]) == 0
    assert example.name in capsys.readouterr().out


@every
def test_a_budget_proposes_it_or_says_that_it_cannot(
    example: Example, cache_of: CacheOf, caches: Caches, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal that was asked for is never left out without a word."""
    told = planned(example, cache_of(example), caches, capsys, "--budget", "1GB")
    if isinstance(told, str):
        assert len(told.splitlines()) == 1
        assert example.name in told
        return
    assert told["proposals"]
    for proposal in told["proposals"]:
        assert any(text.partition(":")[0] == example.name for text in proposal["signals"])


@every
def test_it_is_merged_with_every_other_signal(
    example: Example, cache_of: CacheOf, tmp_path: Path
) -> None:
    cache = cache_of(example)
    others = {other.name: cache_of(other) for other in EXAMPLES if other.name != example.name}
    beside = [c for c in others.values() if c.plan.config.task == cache.plan.config.task]
    assert beside
    kdcache.merge([cache.path, *(other.path for other in beside)], tmp_path / "merged")
    both = kdcache.open_cache(tmp_path / "merged")
    assert kdcache.verify(both.path, full=True) == []
    for source in (cache, *beside):
        assert source.signals.items() <= both.signals.items()
        assert source.fidelity.items() <= both.fidelity.items()
        for array in source.layouts:
            docs = source.plan.docs
            assert both.read(array, docs).tobytes() == source.read(array, docs).tobytes()


@every
def test_parts_without_a_row_of_it_are_built_checked_and_exported(
    example: Example, caches: Caches, tmp_path: Path
) -> None:
    text = example.with_options(positions="masked")
    cache = caches.cache(text, unknown=True)
    parts = [cache.plan.part_docs(part) for part in range(cache.plan.parts)]
    counts = [len(cache.kept_rows(example.name, docs)) for docs in parts]
    assert 0 in counts
    assert sum(counts) == cache.plan.count(cache.space_of(example.name)) > 0
    assert kdcache.verify(cache.path, full=True) == []
    for array in cache.layouts:
        assert len(cache.read(array, parts[counts.index(0)])) == 0
    assert len(columns(cache, tmp_path / "out", raw=False)["doc_id"]) == cache.plan.documents
    kdcache.export(cache, tmp_path / "tables", form="parquet")
    for documents in (1, 42):
        assert spot_check(cache.path, documents, seed=5).findings == []


@every
def test_a_fraction_of_it_is_the_whole_ones_rows(example: Example, caches: Caches) -> None:
    if "fraction" not in example.options:
        pytest.skip("it has all its rows")
    whole = caches.cache(example.with_options(positions="all"))
    part = caches.cache(example.with_options(positions="all", fraction=0.3))
    docs = part.plan.docs[[5, 0, 3]]
    kept = part.kept_rows(example.name, docs)
    assert isinstance(part.space_of(example.name), Subset)
    assert 0 < len(kept) < len(whole.kept_rows(example.name, docs))
    for array in part.layouts:
        np.testing.assert_array_equal(part.read(array, docs), whole.read(array, docs)[kept])


@every
def test_another_teacher_adds_nothing_to_it(
    example: Example, cache_of: CacheOf, strangers: Callable[[Cache], Path], tmp_path: Path
) -> None:
    cache = cache_of(example)
    root, other = copy_of(cache, tmp_path), strangers(cache)
    shard = next(p for p in (root / cache.arrays_of(example.name)[0] / "c").rglob("*/0"))
    flip(shard, 77)
    broken = files_of(root)
    task = cache.plan.config.task
    with pytest.raises(MismatchError, match=r"weights_sha256 is"):
        kdcache.build(str(root), teacher=other, task=task, out=root, signals=[example.text])
    with pytest.raises(MismatchError, match="weights_sha256"):
        repair(root, teacher=other)
    with pytest.raises(MismatchError, match="weights_sha256"):
        spot_check(cache.path, 1, teacher=other)
    assert files_of(root) == broken


NEWER: dict[str, Callable[[dict[str, Any], str], None]] = {
    "signal": lambda signals, name: signals.update(telepathy={"codec": "telepathy"}),
    "codec": lambda signals, name: signals[name].update(codec="telepathy"),
    "option": lambda signals, name: signals[name].update(telepathy=3),
}


@every
@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_refused_by_name(
    example: Example, cache_of: CacheOf, what: str, tmp_path: Path
) -> None:
    """A signal, codec or option that this version does not know."""
    root = copy_of(cache_of(example), tmp_path)
    forge_manifest(root, lambda record: NEWER[what](record["signals"], example.name))
    name = "telepathy" if what == "signal" else example.name
    with pytest.raises(KdcacheError, match="telepathy") as caught:
        kdcache.open_cache(root).space_of(name)
    assert len(str(caught.value).splitlines()) == 1
