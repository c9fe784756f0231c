"""Caches, plans and data sets as objects: copied, pickled, sent to workers, dropped at exit."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcache
from kdcache import CachedDocuments, open_cache, open_plan
from kdcache.building.planner import make_plan
from kdcache.errors import CacheError, ConfigError, IncompleteError
from kdcache.models import load_tokenizer
from kdcache.store import Cache
from kdcache.store.format import array_reader
from kdcache.store.io import open_files
from kdcache.store.io.open_files import Handle
from tests.test_object_store import upload

CACHES = ["cache", "masked_cache", "causal_cache"]


@pytest.fixture
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache whose arrays are read from files that stay open."""
    monkeypatch.setattr(array_reader, "RESIDENT_BYTES", 0)
    name = getattr(request, "param", "cache")
    made: Cache = request.getfixturevalue(name)
    return open_cache(made.path)


def same(one: Any, other: Any) -> None:
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("opened", CACHES, indirect=True)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copied_cache_and_its_data_set_read_what_theirs_do(opened: Cache, copied: Any) -> None:
    docs = opened.plan.docs[:5]
    batch = opened.batch(docs)
    same(copied(opened).batch(docs), batch)
    same(copied(opened.plan).per_document, opened.plan.per_document)
    data = CachedDocuments(opened, seed=3, epoch=2, batch=8, window=2, skip=1)
    twin = copied(data)
    assert len(twin) == len(data)
    same(twin[4], data[4])
    assert twin.cache is not opened or copied is copy.copy
    assert repr(copied(opened)) == repr(opened)


@pytest.mark.parametrize("name", CACHES)
def test_a_copied_plan_is_the_plan(name: str, request: pytest.FixtureRequest) -> None:
    plan = open_plan(request.getfixturevalue(name).path)
    for twin in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert twin.sha256 == plan.sha256
        assert twin.documents == plan.documents


def test_a_plan_that_was_just_made_can_be_pickled(
    corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(classifier))
    made = make_plan(corpus, tokenizer, scratch=tmp_path, task="text-classification", limit=20)
    assert pickle.loads(pickle.dumps(made)).sha256 == made.sha256
    written = kdcache.plan(
        corpus, tokenizer=classifier, task="text-classification", out=tmp_path / "p", limit=20
    )
    assert pickle.loads(pickle.dumps(written)).sha256 == written.sha256


def test_a_copy_finds_its_cache_from_another_folder(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(str(cache.path)).parent)
    near = open_cache(Path(str(cache.path)).name)
    sent = pickle.dumps(near), pickle.dumps(near.plan)
    monkeypatch.chdir(tmp_path)
    again, plan = map(pickle.loads, sent)
    docs = near.plan.docs[:3]
    assert np.array_equal(again.read("logits/values", docs), cache.read("logits/values", docs))
    assert plan.sha256 == cache.plan.sha256


def test_a_cache_that_took_the_place_of_the_pickled_one_is_refused(
    cache: Cache, causal_cache: Cache, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(str(cache.path), tmp_path / "c.zarr"))
    sent = pickle.dumps(open_cache(place))
    shutil.rmtree(place)
    with pytest.raises(CacheError, match="holds no"):
        pickle.loads(sent)
    shutil.copytree(str(causal_cache.path), place)
    with pytest.raises(CacheError, match="holds another cache than the one that was copied"):
        pickle.loads(sent)


def handles(cache: Cache) -> list[int]:
    """Numbers of the files that are open for a cache."""
    root = str(cache.path)
    found = [f for ref in open_files._recent.values() if (f := ref()) and f.current]
    return [f.current.number for f in found if f.current and str(f.path).startswith(root)]


def test_a_copy_closes_no_file_but_its_own(opened: Cache, tmp_path: Path) -> None:
    docs = opened.plan.docs[:5]
    opened.batch(docs)
    twin: Any = copy.deepcopy(opened)
    twin.batch(docs)
    numbers = handles(opened)
    assert len(numbers) == len(set(numbers)) >= 2 * len(opened.layouts)
    del opened
    gc.collect()
    (tmp_path / "other").write_text("other")
    others = [os.open(tmp_path / "other", os.O_RDONLY) for _ in numbers]
    twin.batch(docs)
    del twin
    gc.collect()
    for number in others:
        assert os.read(number, 5) == b"other"
        os.close(number)


def test_threads_read_while_copies_come_and_go(
    opened: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "OPEN_FILES", 4)
    data = CachedDocuments(opened, batch=16)
    wanted = [data[place] for place in range(24)]

    def work(turn: int) -> bool:
        twin = copy.deepcopy(data) if turn % 4 == 0 else data
        for place in range(24):
            same(twin[place], wanted[place])
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))


def test_an_open_file_is_not_pickled(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    with pytest.raises(TypeError, match="belongs to one process and one object"):
        pickle.dumps(Handle(tmp_path / "f"))


FORKED = """
import codecs, copy, itertools, os, sys
import numpy as np
import torch
from kdcache import CachedDocuments
from kdcache.store.format import array_reader
array_reader.RESIDENT_BYTES = 0
data = CachedDocuments(sys.argv[1])
docs = data.cache.plan.docs
wanted = [data.cache.read(name, docs) for name in data.arrays]
batches = [batch["docs"].tolist() for batch in torch.utils.data.DataLoader(
    data, 16, collate_fn=data.collate, num_workers=2, multiprocessing_context="fork")]
assert list(itertools.chain(*batches)) == data.order.tolist()
child = os.fork()
if child == 0:  # as a daemon: nothing that was inherited stays open, and numbers are used again
    os.closerange(3, 4096)
    kept = [os.open("/dev/zero", os.O_RDONLY) for _ in range(64)]
    same = all(np.array_equal(data.cache.read(n, docs), w) for n, w in zip(data.arrays, wanted))
    os._exit(0 if same else 1)
print(os.waitpid(child, 0)[1])
assert all(np.array_equal(data.cache.read(n, docs), w) for n, w in zip(data.arrays, wanted))
twin = copy.deepcopy(data)
twin[0]
def left(error, keep=[data]):  # outlives every module
    raise error
codecs.register_error("left", left)
"""


def test_a_forked_child_reads_through_files_of_its_own_and_nothing_is_said_at_exit(
    cache: Cache,
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(cache.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.slow
def test_spawned_workers_read_a_bucket(bucket: str, cache: Cache) -> None:
    data = CachedDocuments(upload(cache, f"{bucket}/c"), ["logits/values"], batch=16)
    loader = torch.utils.data.DataLoader(
        data, 16, collate_fn=data.collate, num_workers=1, multiprocessing_context="spawn"
    )
    near = CachedDocuments(cache, ["logits/values"])
    read = list(loader)
    for batch in read:
        same(batch, near.read(batch["docs"]))
    assert torch.cat([batch["docs"] for batch in read]).tolist() == data.order.tolist()


def places(data: CachedDocuments) -> list[int]:
    return [int(data[i]["docs"]) for i in range(len(data))]


def test_places_run_from_the_first_document_to_the_last(cache: Cache) -> None:
    data = CachedDocuments(cache, [])
    assert len(data) == cache.plan.documents
    assert places(data) == data.order.tolist()
    assert sorted(places(data)) == cache.plan.docs.tolist()
    assert int(data[-1]["docs"]) == data.order[-1]
    assert int(data[-len(data)]["docs"]) == data.order[0]
    assert [int(one["docs"]) for one in data] == data.order.tolist()
    assert data.__getitems__([np.int64(2), torch.tensor(-1)])["docs"].tolist() == [
        data.order[2],
        data.order[-1],
    ]
    for place in (len(data), -len(data) - 1):
        with pytest.raises(IndexError, match=f"place {place} of {len(data)} documents"):
            data[place]


def test_all_arrays_are_read_unless_some_are_named(cache: Cache) -> None:
    assert set(cache.layouts) <= set(CachedDocuments(cache)[0])
    assert CachedDocuments(str(cache.path)).arrays == list(cache.layouts)
    with pytest.raises(ConfigError, match="array of this cache"):
        CachedDocuments(cache, ["logits/valeus"])


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("window", [0, 2])
def test_ranks_share_every_batch_and_no_document_twice(
    cache: Cache, ranks: int, drop_last: bool, window: int
) -> None:
    options: Any = {"seed": 4, "epoch": 1, "batch": 44, "window": window}
    whole = CachedDocuments(cache, [], **options).order
    parts = [
        CachedDocuments(cache, [], **options, rank=rank, ranks=ranks, drop_last=drop_last)
        for rank in range(ranks)
    ]
    steps = len(whole) // 44
    assert len(whole) % 44 > 0
    for step in range(steps):
        at = slice(step * 44 // ranks, (step + 1) * 44 // ranks)
        read = np.concatenate([part.order[at] for part in parts])
        assert read.tolist() == whole[step * 44 : (step + 1) * 44].tolist()
    rest = np.concatenate([part.order[steps * 44 // ranks :] for part in parts])
    assert rest.tolist() == ([] if drop_last else whole[steps * 44 :].tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(len(part) == len(part.order) for part in parts)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_skipped_batches_leave_the_rest_of_the_epoch(
    cache: Cache, ranks: int, drop_last: bool
) -> None:
    options: Any = {"batch": 32, "rank": ranks - 1, "ranks": ranks, "drop_last": drop_last}
    for skip in range(cache.plan.documents // 32 + 3):
        whole = CachedDocuments(cache, [], **options, epoch=2)
        data = CachedDocuments(cache, [], **options, epoch=2, skip=skip)
        assert data.order.tolist() == whole.order[skip * 32 // ranks :].tolist()
        data.set_epoch(2)
        assert len(data) == len(data.order) == len(whole.order[skip * 32 // ranks :])
        data.set_epoch(3)
        whole.set_epoch(3)
        assert data.order.tolist() == whole.order.tolist()


@pytest.mark.parametrize(
    "wrong", [{"batch": 3, "ranks": 2}, {"ranks": 0}, {"rank": 1}, {"skip": -1}, {"batch": 0}]
)
def test_ranks_that_do_not_divide_a_batch_are_refused(cache: Cache, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="expected batch to be a multiple of ranks; got batch="):
        CachedDocuments(cache, [], **wrong)


def test_numbers_that_fix_no_order_are_refused(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="seed and epoch are 0 or more; got seed=-1, epoch=0"):
        CachedDocuments(cache, [], seed=-1)


@pytest.mark.parametrize("wrong", [[0, 10**7], [-1]])
def test_rows_that_hold_no_document_are_refused_at_once(cache: Cache, wrong: list[int]) -> None:
    """Found by an item, one beyond the table would be an IndexError, which ends an iteration."""
    with pytest.raises(ConfigError, match=f"row {wrong[-1]} holds no document"):
        CachedDocuments(cache, docs=np.array(wrong))


def test_a_cache_that_lacks_parts_is_refused_unless_documents_are_named(
    cache: Cache, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(str(cache.path), tmp_path / "partial"))
    shutil.rmtree(partial / "complete")
    with pytest.raises(IncompleteError, match="partial is incomplete"):
        CachedDocuments(partial)
    assert len(CachedDocuments(partial, docs=cache.plan.docs[:3])) == 3


def test_single_documents_are_collated_into_the_batch_they_make(cache: Cache) -> None:
    data = CachedDocuments(cache)
    joined = torch.utils.data.ConcatDataset([data, data])
    loader = torch.utils.data.DataLoader(joined, batch_size=16, collate_fn=data.collate)
    same(next(iter(loader)), data.__getitems__(range(16)))


def test_a_loader_without_the_collate_function_is_told_so(cache: Cache) -> None:
    data = CachedDocuments(cache)
    with pytest.raises(ConfigError, match=r"collate_fn=dataset\.collate"):
        next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
    with pytest.raises(ConfigError, match="remove_unused_columns=False"):
        data.collate(["input_ids"])  # type: ignore[list-item]  # what a Trainer makes of a Batch
    with pytest.raises(KeyError, match="input_idz"):
        data[0]["input_idz"]
