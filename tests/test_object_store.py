"""Caches in an object store: the same bytes as on a disk, races, kills, and reading them back."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

import kdcache
from kdcache.building.builder import build
from kdcache.errors import (
    CacheError,
    ConfigError,
    DamageError,
    IncompleteError,
    MismatchError,
    MissingExtraError,
)
from kdcache.maintenance.verifying import verify
from kdcache.store import Cache, locate, open_cache
from kdcache.store.io.download_cache import Fetched, local_file, parse_bytes
from kdcache.store.io.durable_writes import put_if_absent
from kdcache.store.io.object_path import ObjectPath

SIZES: dict[str, Any] = {"max_length": 48, "part_tokens": 2048, "batch_tokens": 1024}


def at(url: str) -> ObjectPath:
    found = locate(url)
    assert isinstance(found, ObjectPath)
    return found


def objects_of(url: str) -> dict[str, bytes]:
    root = at(url)
    return {key: (root / key).read_bytes() for key in root.below()}


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def upload(cache: Cache, url: str) -> str:
    """A copy of a local cache in a bucket, object by object."""
    assert isinstance(cache.path, Path)
    for key, data in files_of(cache.path).items():
        (at(url) / key).write_bytes(data)
    return url


def fetched(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "fetched").iterdir())


def test_a_build_in_a_bucket_is_the_build_on_a_disk(
    bucket: str, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    asked: dict[str, Any] = {"teacher": classifier, "task": "text-classification", **SIZES}
    signals = ["logits:dense", "hidden:layers=2-4,positions=cls"]
    here = build(corpus, out=tmp_path / "c.zarr", signals=signals, **asked)
    there = build(corpus, out=f"{bucket}/c.zarr", signals=signals, **asked)
    assert str(there.path) == f"{bucket}/c.zarr"
    assert isinstance(here.path, Path)
    assert objects_of(f"{bucket}/c.zarr") == files_of(here.path)
    assert not at(f"{bucket}/c.zarr.staging").exists()
    for name in here.layouts:
        np.testing.assert_array_equal(
            there.read(name, there.plan.docs), here.read(name, here.plan.docs)
        )
    assert verify(f"{bucket}/c.zarr", full=True) == []
    with pytest.raises(MismatchError, match=r"plan\.config\.max_length is 48 there and 40 now"):
        build(corpus, out=f"{bucket}/c.zarr", signals=signals, **{**asked, "max_length": 40})


def test_tensorstore_reads_the_arrays_in_the_bucket(
    bucket: str, object_server: str, cache: Cache
) -> None:
    url = upload(cache, f"{bucket}/c")
    for name in cache.layouts:
        store = {
            "driver": "s3",
            "bucket": "bucket",
            "path": f"{at(url).key}/{name}/",
            "endpoint": object_server,
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
        spec = {"driver": "zarr3", "kvstore": store}
        values = tensorstore.open(spec, read=True, open=True).result().read().result()
        assert isinstance(cache.path, Path)
        reader = open_cache(url)._readers[name]
        np.testing.assert_array_equal(values, reader[0 : values.shape[0]])


@pytest.mark.slow
def test_a_student_trained_from_a_bucket_is_the_one_trained_from_a_disk(
    bucket: str, tmp_path: Path, cache: Cache
) -> None:
    asked: dict[str, Any] = {
        "recipe": "kd",
        "init_from_teacher": [2, 4],
        "overrides": ["training.max_steps=3", "training.per_device_train_batch_size=8"],
    }
    near = kdcache.train(cache.path, out=tmp_path / "near", **asked)
    far = kdcache.train(upload(cache, f"{bucket}/c"), out=tmp_path / "far", **asked)
    weights = "model.safetensors"
    assert (near.folder / weights).read_bytes() == (far.folder / weights).read_bytes()


def small_parts(out: object, corpus: Path, teacher: Path) -> dict[str, Any]:
    """What to build, of strings and numbers: arguments here, and a text to another process."""
    return {
        "corpus": str(corpus),
        "teacher": str(teacher),
        "out": str(out),
        "task": "text-classification",
        "signals": ["logits:dense", "hidden:layers=2,positions=all,dtype=int8"],
        "max_length": 48,
        "part_tokens": 256,
        "batch_tokens": 256,
        "limit": 120,
    }


def build_command(given: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", f"from kdcache.building.builder import build; build(**{given!r})"]


@pytest.fixture(scope="module")
def whole(folder: Path, corpus: Path, classifier: Path) -> dict[str, bytes]:
    """Files of the cache of `small_parts`, on a disk."""
    return files_of(build(**small_parts(folder / "whole.zarr", corpus, classifier)).path)


@pytest.mark.slow
def test_two_builds_racing_on_a_bucket_make_one_cache(
    bucket: str, whole: dict[str, bytes], corpus: Path, classifier: Path
) -> None:
    command = build_command(small_parts(f"{bucket}/c", corpus, classifier))
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        _, error = racer.communicate(timeout=240)
        assert racer.returncode == 0, error
    assert objects_of(f"{bucket}/c") == whole
    assert objects_of(f"{bucket}/c.staging") == {}


@pytest.mark.slow
def test_a_build_killed_on_a_bucket_goes_on_to_the_byte(
    bucket: str, whole: dict[str, bytes], corpus: Path, classifier: Path
) -> None:
    given = small_parts(f"{bucket}/c", corpus, classifier)
    parts = sum(key.startswith("commits/0") for key in whole)
    assert parts > 5
    process = subprocess.Popen(build_command(given))
    deadline = time.monotonic() + 120
    while len(list(at(f"{bucket}/c").glob("commits/0*/zarr.json"))) < 0.4 * parts:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(open_cache(f"{bucket}/c").committed) < parts
    build(**given)
    assert objects_of(f"{bucket}/c") == whole


def test_rival_attempts_at_a_part_leave_one_of_them(
    bucket: str, cache: Cache, corpus: Path, classifier: Path
) -> None:
    """Writers that disagree: the first commit wins, and the other's shards are nowhere."""
    from kdcache.store import Writer

    url = upload(cache, f"{bucket}/c")
    for key in ("complete/zarr.json", "commits/000000/zarr.json"):
        (at(url) / key).unlink()
    for layout in cache.layouts.values():
        for shard in layout.part_shards(0):
            (at(url) / layout.key(shard)).unlink()
    record = cache.commit(0)
    rows = {
        name: np.ones((layout.part_rows, *layout.row_shape), layout.dtype)
        for name, layout in cache.layouts.items()
    }
    first, second = Writer(at(url)), Writer(at(url))
    first.write_part(0, rows, record["fidelity"], record["forward"])
    second.write_part(0, {n: a * 2 for n, a in rows.items()}, record["fidelity"], record["forward"])
    assert objects_of(f"{url}.staging") == {}
    found = open_cache(url)
    assert all((found.read(n, found.plan.part_docs(0)) == 1).all() for n in found.layouts)


def test_an_interrupted_creation_is_finished_by_its_own_command_only(
    bucket: str, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    asked: dict[str, Any] = {"tokenizer": classifier, "task": "text-classification", "limit": 40}
    kdcache.plan(corpus, out=f"{bucket}/p", **asked)
    whole = objects_of(f"{bucket}/p")
    for key in ("zarr.json", "tokens/c/0", "plan/doc_id/c/0"):
        (at(f"{bucket}/p") / key).unlink()
    with pytest.raises(CacheError, match="holds the beginning of another plan"):
        kdcache.plan(corpus, out=f"{bucket}/p", **{**asked, "limit": 30})
    kdcache.plan(corpus, out=f"{bucket}/p", **asked)
    assert objects_of(f"{bucket}/p") == whole
    (at(f"{bucket}/other") / "notes.txt").write_bytes(b"mine")
    with pytest.raises(CacheError, match="other exists and is not a kdcache plan"):
        kdcache.plan(corpus, out=f"{bucket}/other", **asked)
    assert objects_of(f"{bucket}/other") == {"notes.txt": b"mine"}


def test_only_one_conditional_put_wins(bucket: str) -> None:
    path = at(bucket) / "record"
    assert put_if_absent(path, b"first")
    assert put_if_absent(path, b"first")  # a repeated request
    assert not put_if_absent(path, b"second")
    assert path.read_bytes() == b"first"


def test_damage_in_the_bucket_is_never_read(bucket: str, cache: Cache) -> None:
    url = upload(cache, f"{bucket}/c")
    layout = cache.layouts["logits/values"]
    shard = at(url) / layout.key(1)
    data = shard.read_bytes()
    flipped = bytearray(data)
    flipped[5] ^= 1
    docs = cache.plan.part_docs(1)
    for wrong in (bytes(flipped), data[:-1], b""):
        shard.write_bytes(wrong)
        with pytest.raises(DamageError, match=str(shard)):
            open_cache(url).read("logits/values", docs)
        assert any(str(shard) in problem for problem in verify(url, full=True))
    other = at(url) / layout.key(0)
    shard.write_bytes(other.read_bytes())
    with pytest.raises(DamageError, match="is not the object that was committed there"):
        open_cache(url).read("logits/values", docs)
    shard.unlink()
    with pytest.raises(IncompleteError, match=r"run the same `kdcache build`"):
        open_cache(url).read("logits/values", docs)
    shard.write_bytes(data)
    np.testing.assert_array_equal(
        open_cache(url).read("logits/values", docs), cache.read("logits/values", docs)
    )
    assert verify(url, full=True) == []


def test_fetched_shards_are_reused_and_mended(bucket: str, tmp_path: Path, cache: Cache) -> None:
    url = upload(cache, f"{bucket}/c")
    shard = at(url) / cache.layouts["logits/values"].key(0)
    copy = local_file(shard)
    assert copy.read_bytes() == shard.read_bytes()
    made = copy.stat().st_mtime_ns
    assert local_file(shard).stat().st_mtime_ns == made
    flipped = bytearray(copy.read_bytes())
    flipped[5] ^= 1
    copy.write_bytes(flipped)
    store = Fetched(tmp_path / "fetched", 10**9)  # as a new process would
    assert store.get(shard).read_bytes() == shard.read_bytes()
    replaced = at(url) / cache.layouts["logits/values"].key(1)
    shard.write_bytes(replaced.read_bytes())
    assert local_file(shard).read_bytes() == replaced.read_bytes()
    assert local_file(tmp_path) == tmp_path


def test_the_folder_of_fetched_shards_keeps_its_limit(
    bucket: str, tmp_path: Path, cache: Cache
) -> None:
    url = upload(cache, f"{bucket}/c")
    layout = cache.layouts["hidden/L0/codes"]
    shards = [at(url) / layout.key(number) for number in range(3)]
    assert cache.plan.parts >= 3
    store = Fetched(tmp_path / "fetched", 2 * layout.shard_bytes + 1)
    first, second = store.get(shards[0]), store.get(shards[1])
    assert store.get(shards[0]) == first  # used again: the second is the oldest now
    third = store.get(shards[2])
    assert fetched(tmp_path) == sorted([first, third])
    assert store.get(shards[1]) == second
    assert sum(path.stat().st_size for path in fetched(tmp_path)) <= store.limit
    with pytest.raises(CacheError, match="raise KDCACHE_FETCHED_LIMIT"):
        Fetched(tmp_path / "small", 100).get(shards[0])


@pytest.mark.parametrize(("text", "size"), [("500MB", 5 * 10**8), ("1.5 gb", 15 * 10**8), ("7", 7)])
def test_limits_are_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "0", "5XB", "nanGB", "infGB"])
def test_a_limit_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="KDCACHE_FETCHED_LIMIT takes a size"):
        parse_bytes(text)


FORK = """
import multiprocessing, sys
import kdcache.building.builder
from kdcache.errors import CacheError
from kdcache.store import open_cache
print("obstore" in sys.modules)
url = sys.argv[1]
cache = open_cache(url)
def child(queue):
    try:
        cache.read("logits/values", cache.plan.docs[:4])
    except CacheError as error:
        queue.put(str(error))
    try:
        open_cache(url)
    except CacheError as error:
        queue.put(str(error))
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=child, args=(queue,))
process.start()
print(queue.get(timeout=30)); print(queue.get(timeout=30))
process.join(30)
"""


@pytest.fixture(scope="module")
def forked(object_server: str, cache: Cache) -> list[str]:
    """What `FORK` prints, which begins before anything of the store is imported."""
    url = upload(cache, f"s3://bucket/{uuid.uuid4().hex}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def test_a_forked_child_is_refused_rather_than_left_to_hang(forked: list[str]) -> None:
    lines = forked[1:]
    assert len(lines) == 2
    assert all("object stores do not survive a fork" in line for line in lines)
    assert all("num_workers=0" in line for line in lines)


def test_importing_the_store_leaves_the_client_alone(forked: list[str]) -> None:
    assert forked[0] == "False"


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdcache\[s3\]'"):
        open_cache("s3://bucket/c")


def test_a_path_in_a_bucket_travels_to_other_processes(bucket: str) -> None:
    path = at(bucket) / "x"
    path.write_bytes(b"here")
    assert pickle.loads(pickle.dumps(path)).read_bytes() == b"here"


def test_unreachable_and_missing_places_are_named(
    bucket: str, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CacheError, match=r"s3://bucket/nothing is not a kdcache cache"):
        open_cache("s3://bucket/nothing")
    with pytest.raises(CacheError, match="no such cache: s3://bucket/nothing"):
        verify("s3://bucket/nothing")
    with pytest.raises(CacheError, match="no bucket s3://no-such-bucket; create it first"):
        at("s3://no-such-bucket/c").write_bytes(b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("KDCACHE_PATIENCE", "0")
    with pytest.raises(CacheError, match=r"s3://bucket/c/zarr\.json cannot be reached"):
        open_cache("s3://bucket/c")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/c", "unknown kind of object store 's4'"),
        ("s3://bucket", "takes a bucket and a prefix"),
        ("s3://bucket/", "takes a bucket and a prefix"),
        ("s3:///c", "takes a bucket and a prefix"),
        ("s3://bucket/c?versionId=1", "takes a bucket and a prefix"),
    ],
)
def test_urls_that_name_no_store_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        locate(url)


def test_paths_in_a_bucket_behave_as_pathlibs(bucket: str) -> None:
    root = at(f"{bucket}//a/")
    assert str(root) == f"{bucket}/a"
    keys = ["b/c.txt", "b/d/c.txt", "b/e", "bb/c.txt"]
    for key in keys:
        (root / key).write_bytes(key.encode())
    assert sorted(root.below()) == sorted(keys)
    assert sorted((root / "b").below()) == ["c.txt", "d/c.txt", "e"]
    assert [str(p.relative_to(root)) for p in root.glob("*/c.txt")] == ["b/c.txt", "bb/c.txt"]
    assert len(list(root.rglob("c.txt"))) == 3
    assert len(list(root.glob("b/**/c.txt"))) == 2
    inner = root / "b" / "d"
    assert (inner.name, inner.parent, inner.with_name("e")) == ("d", root / "b", root / "b" / "e")
    assert inner.is_dir()
    assert not inner.is_file()
    assert inner.with_name("e").is_file()
    assert not (root / "b/c").exists()
    assert (root / "b/e").stat().st_size == 3
    with pytest.raises(FileNotFoundError):
        (root / "none").unlink()
    (root / "b").unlink_all()
    assert list(root.below()) == ["bb/c.txt"]
    assert os.path.basename(str(root)) == root.name
