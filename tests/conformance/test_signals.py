"""Every codec of SIGNALS goes all ways a cache goes; a new entry of the table is tested by this.

All that a task has lies in one cache, so that each way is gone once a task; the claims are made of
every entry by itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import kdcache
from kdcache.building.budget import propose
from kdcache.errors import CacheError, ConfigError, MismatchError
from kdcache.losses import SoftKL
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import Spot, spot_check
from kdcache.signals import from_json, parse, to_record
from kdcache.store import Cache
from kdcache.tasks import TASKS, Subset
from kdcache.training.objective import Objective
from kdcache.training.specs import cache_spec
from kdcache_cli.main import main
from tests.conformance.conftest import SIZES, Caches
from tests.conformance.examples import EXAMPLES, Example
from tests.conftest import Lines
from tests.damage import copy_of, files_of, flip, forge_manifest

every = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.text)
Columns = dict[str, np.ndarray[Any, Any]]


class Walk:
    """A cache, and what became of it on every way: each is gone when it is first asked for."""

    def __init__(self, cache: Cache, caches: Caches, folder: Path) -> None:
        self.cache, self.caches, self.folder = cache, caches, folder
        self.task: Any = cache.plan.config.task

    def told(self, *command: str) -> Any:
        """What a command prints as JSON."""
        with redirect_stdout(StringIO()) as out:
            assert main([*command, "--json"]) == 0
        return json.loads(out.getvalue())

    @cached_property
    def planned(self) -> Any:
        """What `kdcache plan` says of the signals, before the teacher runs."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
        teacher, corpus = self.caches.teachers[self.task], self.caches.corpora[self.task]
        for example in self.caches.given(self.task):
            options += ["--signal", example.called()]
        command = ["plan", str(corpus), "--tokenizer", str(teacher), "--task", self.task, "--quiet"]
        return self.told(*command, "--out", str(self.caches.plan(self.task)), *options)["bytes"]

    @cached_property
    def inspected(self) -> Any:
        """What `kdcache inspect` says of it."""
        return self.told("inspect", str(self.cache.path))

    @cached_property
    def raw(self) -> Columns:
        """Stored columns as they are exported."""
        return columns(self.cache, self.folder / "raw", raw=True)

    @cached_property
    def decoded(self) -> Columns:
        """Decoded columns as they are exported."""
        return columns(self.cache, self.folder / "decoded", raw=False)

    @cached_property
    def tables(self) -> list[Any]:
        """The Parquet files that are exported."""
        made = kdcache.export(self.cache, self.folder / "tables", form="parquet")
        files = [self.folder / "tables" / file for file in made.files]
        return [pyarrow.parquet.read_table(file) for file in files]

    @cached_property
    def spot(self) -> Spot:
        """The teacher run again."""
        return spot_check(self.cache.path, 6)

    @cached_property
    def repaired(self) -> tuple[dict[str, bytes], dict[str, bytes], int]:
        """Objects before all arrays and artifacts were damaged, those of the repaired cache, and
        how much was found to be damaged."""
        root = copy_of(self.cache, self.folder)
        whole = files_of(root)
        for number, array in enumerate(self.cache.layouts):
            shards = sorted(path for path in (root / array / "c").rglob("*") if path.is_file())
            flip(shards[0], 1234 + number)
            shards[-1].unlink()
            if number % 2:
                flip(root / array / "zarr.json", 555)
        for file in self.cache.files:
            if not file.startswith(("tokenizer/", "teacher/")):  # one that a signal needs
                flip(next(p for p in (root / "files" / file / "c").rglob("*") if p.is_file()), 99)
        found = len(kdcache.verify(root, full=True))
        assert repair(root).left == ()
        return whole, files_of(root), found

    @cached_property
    def merged(self) -> tuple[Cache, Cache]:
        """A cache of one plan and teacher, and this one and that merged."""
        other = self.caches.build(self.task, ["logits:dense"])
        kdcache.merge([self.cache.path, other.path], self.folder / "merged")
        both = kdcache.open_cache(self.folder / "merged")
        assert kdcache.verify(both.path, full=True) == []
        return other, both


@pytest.fixture(scope="session")
def walk_of(caches: Caches, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Example], Walk]:
    made: dict[str, Walk] = {}

    def walk(example: Example) -> Walk:
        task = caches.task_of(example)
        if task not in made:
            made[task] = Walk(caches.of(example), caches, tmp_path_factory.mktemp("walk"))
        return made[task]

    return walk


WalkOf = Callable[[Example], Walk]


@every
def test_its_configuration_is_json_and_comes_back(example: Example, walk_of: WalkOf) -> None:
    cache = walk_of(example).cache
    record = cache.manifest["signals"][example.name]
    assert json.loads(json.dumps(record)) == record
    assert record.get("kind", example.name) == example.kind
    signal = from_json(example.name, record)
    assert to_record(example.name, signal) == record
    assert signal == parse(example.text) == cache.signals[example.name]


@every
def test_a_plan_tells_its_bytes_before_the_teacher_runs(example: Example, walk_of: WalkOf) -> None:
    walk = walk_of(example)
    sizes, told = walk.cache.bytes, walk.planned
    assert walk.cache.arrays_of(example.name)
    for array in walk.cache.arrays_of(example.name):
        if array in told["estimates"]:  # compressed: of real teachers, and no bound here
            assert 0 < told["estimates"][array][0] <= told["estimates"][array][1]
        else:
            assert told["arrays"][array] == sizes[array]
    named = set(told["arrays"]) | set(told["estimates"])
    files = {name for name in named if name.startswith("files/")}
    assert named - files == set(sizes)
    assert {name.removeprefix("files/") for name in files} <= set(walk.cache.files)


@every
def test_it_is_read_row_by_row_and_says_how_true_it_is(example: Example, walk_of: WalkOf) -> None:
    cache = walk_of(example).cache
    assert cache.plan.parts > 1
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
    assert example.name in repr(cache)


@every
def test_what_it_is_decoded_to_has_its_rows_whichever_tap_is_asked_for(
    example: Example, walk_of: WalkOf
) -> None:
    cache = walk_of(example).cache
    signal, docs = cache.signals[example.name], cache.plan.docs
    batch, rows = cache.batch(docs), cache.plan.count(cache.space_of(example.name))
    assert signal.gives()
    for tap in signal.gives():
        assert set(cache.arrays_of(example.name, tap)) <= set(cache.arrays_of(example.name))
        alone = cache.stored(docs, tap, example.name)
        assert type(alone) is type(cache.decode(batch, tap, example.name))
    for values in cache.columns(docs, example.name).values():
        assert len(values) == rows
    with pytest.raises(ConfigError, match="holds no telepathy in"):
        cache.decode(batch, type(signal.gives()[0])("telepathy"), example.name)


@every
def test_it_is_exported_decoded_and_as_it_is_stored(example: Example, walk_of: WalkOf) -> None:
    walk = walk_of(example)
    cache, docs = walk.cache, walk.cache.plan.docs
    for array in cache.arrays_of(example.name):
        assert walk.raw[array].tobytes() == cache.read(array, docs).tobytes()
    own = {name for name in walk.decoded if name.startswith(f"{example.name}.")}
    assert own == {f"{example.name}.{column}" for column in cache.columns(docs, example.name)}
    for column in own:
        assert len(walk.decoded[column]) == cache.plan.count(cache.space_of(example.name))
        assert all(column in table.column_names for table in walk.tables)
    assert {column for table in walk.tables for column in table.column_names} == set(walk.decoded)
    assert sum(table.num_rows for table in walk.tables) == len(docs)


def columns(cache: Cache, out: Path, *, raw: bool) -> Columns:
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
def test_the_teacher_still_says_what_is_stored(example: Example, walk_of: WalkOf) -> None:
    spot = walk_of(example).spot
    assert spot.findings == []
    assert example.name in {figure.signal for figure in spot.figures}


@every
def test_what_is_damaged_is_made_again_to_the_byte(example: Example, walk_of: WalkOf) -> None:
    before, after, found = walk_of(example).repaired
    own = [key for key in before if key.startswith(f"{example.name}/")]
    assert own
    assert [key for key in own if after[key] != before[key]] == []
    assert after == before
    assert found > len(walk_of(example).cache.layouts)


@every
def test_it_is_inspected(example: Example, walk_of: WalkOf) -> None:
    cache, told = walk_of(example).cache, walk_of(example).inspected
    assert told["signals"] == cache.manifest["signals"]
    assert {array["name"] for array in told["arrays"]} == set(cache.bytes)
    assert told["fidelity"] == cache.fidelity
    with redirect_stdout(StringIO()) as out:
        assert main(["inspect", str(cache.path)]) == 0
    assert f"signal {example.name}" in out.getvalue()


@every
def test_a_budget_proposes_it_or_says_that_it_cannot(example: Example, caches: Caches) -> None:
    """A signal that was asked for is never left out without a word."""
    task = caches.task_of(example)
    plan, wanted = kdcache.open_plan(caches.plan(task)), {example.name: parse(example.text)}
    try:
        proposals, refused = propose(plan, caches.sizes[task], 10**9, wanted), ""
    except ConfigError as error:
        proposals, refused = [], str(error)
    assert bool(proposals) != bool(refused)
    assert example.kind in refused or proposals
    assert "\n" not in refused
    start = example.kind if example.name == example.kind else f"{example.name}={example.kind}"
    for proposal in proposals:
        assert any(text.startswith(f"{start}:") for text in proposal.signals)
        for text in proposal.signals:
            parse(text).check(TASKS[task], caches.sizes[task])


@every
def test_it_is_merged_with_another_signal(example: Example, walk_of: WalkOf) -> None:
    cache, (other, both) = walk_of(example).cache, walk_of(example).merged
    for source, name in ((cache, example.name), (other, "logits")):
        assert source.signals[name] == both.signals[name]
        assert source.fidelity[name] == both.fidelity[name]
        for array in source.arrays_of(name):
            docs = source.plan.docs
            assert both.read(array, docs).tobytes() == source.read(array, docs).tobytes()


@pytest.fixture(scope="session")
def sparse(caches: Caches, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, Columns]:
    """All signals of documents of which most have no masked position, and what is exported."""
    texts = [
        e.called(positions="selected") for e in caches.given("masked-lm", positions="selected")
    ]
    cache = caches.build("masked-lm", texts, unknown=True)
    folder = tmp_path_factory.mktemp("sparse")
    kdcache.export(cache, folder / "tables", form="parquet")
    for documents in (1, 42):
        assert spot_check(cache.path, documents, seed=5).findings == []
    return cache, columns(cache, folder / "out", raw=False)


@every
def test_parts_without_a_row_of_it_are_built_checked_and_exported(
    example: Example, sparse: tuple[Cache, Columns]
) -> None:
    cache, exported = sparse
    if example.name not in cache.signals or cache.space_of(example.name) == "token":
        pytest.skip("every document has its row")
    parts = [cache.plan.part_docs(part) for part in range(cache.plan.parts)]
    counts = [len(cache.sampled_rows(example.name, docs)) for docs in parts]
    assert 0 in counts
    for array in cache.arrays_of(example.name):
        assert len(cache.read(array, parts[counts.index(0)])) == 0
    own = [rows for name, rows in exported.items() if name.startswith(f"{example.name}.")]
    assert {len(rows) for rows in own} == {sum(counts)}
    assert len(exported["doc_id"]) == cache.plan.documents


@every
def test_a_fraction_of_it_is_the_whole_ones_rows(example: Example, caches: Caches) -> None:
    if "fraction" not in example.options:
        pytest.skip("it has all its rows")
    task, most = caches.task_of(example), {"positions": "all"}
    given = caches.given(task, **most, fraction=0.3)
    able = [other for other in given if "fraction" in other.options]
    whole = caches.build(task, [other.called(**most) for other in able])
    part = caches.build(task, [other.called(**most, fraction=0.3) for other in able])
    docs = part.plan.docs[[5, 0, 3]]
    kept = part.sampled_rows(example.name, docs)
    assert isinstance(part.space_of(example.name), Subset)
    assert 0 < len(kept) < len(whole.sampled_rows(example.name, docs))
    for array in part.arrays_of(example.name):
        np.testing.assert_array_equal(part.read(array, docs), whole.read(array, docs)[kept])


@pytest.mark.parametrize("task", ["masked-lm", "text-classification"])
def test_another_teacher_adds_nothing(task: Any, caches: Caches, tmp_path: Path) -> None:
    signals = [example.called() for example in caches.given(task)]
    cache = caches.build(task, signals)
    root, other = copy_of(cache, tmp_path), caches.stranger(task)
    for array in cache.layouts:
        flip(next(p for p in (root / array / "c").rglob("*") if p.is_file()), 77)
    broken = files_of(root)
    with pytest.raises(MismatchError, match=r"weights_sha256 is"):
        kdcache.build(str(root), teacher=other, task=task, out=root, signals=signals)
    with pytest.raises(MismatchError, match="weights_sha256"):
        repair(root, teacher=other)
    with pytest.raises(MismatchError, match="weights_sha256"):
        spot_check(cache.path, 1, teacher=other)
    assert files_of(root) == broken


NEWER: dict[str, Callable[[dict[str, Any]], None]] = {
    "kind": lambda record: record.update(kind="telepathy"),
    "codec": lambda record: record.update(codec="telepathy"),
    "option": lambda record: record.update(telepathy=3),
}


@every
@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_refused_by_name_and_the_rest_is_read(
    example: Example, walk_of: WalkOf, what: str, tmp_path: Path
) -> None:
    """A kind, codec or setting that this version does not know."""
    whole = walk_of(example).cache
    root = copy_of(whole, tmp_path)
    forge_manifest(root, lambda record: NEWER[what](record["signals"][example.name]))
    cache, docs = kdcache.open_cache(root), whole.plan.docs[:2]
    with pytest.raises(CacheError, match=r"made by a newer kdcache: .*'telepathy'") as caught:
        cache.space_of(example.name)
    assert len(str(caught.value).splitlines()) == 1
    assert cache.signals.keys() == whole.signals.keys() - {example.name}
    for name in cache.signals:
        array = cache.arrays_of(name)[0]
        assert cache.read(array, docs).tobytes() == whole.read(array, docs).tobytes()


def test_beside_a_newer_signal_the_others_are_exported_inspected_and_trained_on(
    caches: Caches, tmp_path: Path
) -> None:
    whole = caches.build("masked-lm", ["logits:dense", "hidden:layers=1-2"])
    root = copy_of(whole, tmp_path)
    forge_manifest(root, lambda record: record["signals"]["hidden"].update(kind="telepathy"))
    cache, progress = kdcache.open_cache(root), Lines()
    assert kdcache.verify(root, full=True) == []
    exported = kdcache.export(cache, tmp_path / "out", progress=progress)
    assert exported.files
    assert progress.messages == [
        "hidden is left out: this version does not know a signal 'telepathy'; update kdcache"
    ]
    assert main(["inspect", str(root)]) == 0
    assert spot_check(root, 2).findings == []
    objective = Objective({"kl": SoftKL()}, cache_spec(cache, 0), caches.sizes["masked-lm"])
    batch = cache.batch(cache.plan.docs[:3], objective.arrays)
    assert "logits/values" in batch
    with pytest.raises(CacheError, match="made by a newer kdcache"):
        kdcache.merge([root, whole.path], tmp_path / "merged")
    shard = next(p for p in (root / "hidden/L1/codes/c").rglob("*") if p.is_file())
    flip(shard, 99)
    assert "hidden/L1/codes" in kdcache.verify(root, full=True)[0]
    assert cache.bytes == whole.bytes
    flip(root / "hidden/L1/codes/zarr.json", 99)
    found = kdcache.verify(root)
    assert [str(root / "hidden/L1/codes/zarr.json") in found[0], len(found)] == [True, 1]
    assert kdcache.open_cache(root).read("logits/values", cache.plan.docs[:3]).any()


def test_beside_a_newer_signal_the_others_are_repaired_and_no_record_is_made_without_it(
    caches: Caches, tmp_path: Path
) -> None:
    parts = [caches.build("masked-lm", [text]) for text in ("logits:dense", "hidden:layers=1-2")]
    kdcache.merge([part.path for part in parts], tmp_path / "both")
    root = tmp_path / "both"
    forge_manifest(root, lambda record: record["signals"]["hidden"].update(kind="telepathy"))
    whole = files_of(root)
    flip(next(p for p in (root / "logits/values/c").rglob("*") if p.is_file()), 99)
    assert repair(root).left == ()
    assert files_of(root) == whole
    (root / "complete/zarr.json").unlink()
    with pytest.raises(CacheError, match="made by a newer kdcache"):
        repair(root)
    assert not (root / "complete/zarr.json").exists()
