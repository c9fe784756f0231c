"""Accidents: bits that flip, objects that go, disks that fill, processes that die or race.

Small versions; `benchmarks/store_safety.py` runs the large ones and keeps the counts.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import kdcache
from kdcache.building.builder import build
from kdcache.errors import CacheError, DamageError, IncompleteError, KdcacheError, MismatchError
from kdcache.maintenance.verifying import verify
from kdcache.manifest import seal
from kdcache.plans import Array
from kdcache.store import Cache, Claims, create, open_cache, open_plan, plan_record
from kdcache.store.commits.committed_parts import part_documents, parts_in_place
from kdcache.store.io.checksums import crc
from kdcache_cli.main import main
from tests.conftest import write_csv
from tests.damage import copy_of, files_of, flip, swap

FLIPS = 60


def rows_of(root: Path) -> dict[str, Array]:
    """Everything a loss could be fed, by the reader that feeds it."""
    cache = open_cache(root)
    cache.require_complete()
    batch = cache.batch(cache.plan.docs)
    return {name: values.numpy() for name, values in batch.items()}


def named(root: Path, key: str, *, full: bool = True) -> str:
    """The one line of `verify` that is about an object."""
    (line,) = [problem for problem in verify(root, full=full) if f"{root}/{key}" in problem]
    return line


@pytest.mark.parametrize("name", ["cache", "masked_cache", "causal_cache"])
def test_no_flipped_bit_passes(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of objects of every kind alike, so that short records are hit as often as long shards."""
    cache: Cache = request.getfixturevalue(name)
    root = copy_of(cache, tmp_path)
    whole, right = files_of(root), rows_of(root)
    draw = random.Random(1)
    refused = 0
    for _ in range(FLIPS // 3):
        key = draw.choice(sorted(whole))
        flip(root / key, draw.getrandbits(40))
        assert named(root, key)
        try:
            read = rows_of(root)
        except DamageError:
            refused += 1
        else:  # an object that no loss is fed from, such as the tokenizer's files
            assert all(np.array_equal(read[k], right[k], equal_nan=True) for k in right)
            assert key.startswith("files/") or key.endswith("zarr.json")
        (root / key).write_bytes(whole[key])
    assert refused > FLIPS // 3 * 0.5
    assert verify(root, full=True) == []


ACCIDENTS: dict[str, Callable[[Path], object]] = {
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
OBJECTS = {
    "logits/values/c/1/0": 1,
    "tokens/c/1": 1,
    "plan/doc_len/c/0": 0,
    "logits/values/zarr.json": None,
    "commits/000001/zarr.json": 1,
    "commits/plan/zarr.json": None,
    "complete/zarr.json": None,
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_to_any_object_is_found_and_named(
    cache: Cache, tmp_path: Path, accident: str
) -> None:
    root = copy_of(cache, tmp_path)
    whole = files_of(root)
    for key, part in OBJECTS.items():
        ACCIDENTS[accident](root / key)
        line = named(root, key, full=accident == "zeros")
        assert (f" (part {part}): " in line) == (part is not None)
        with pytest.raises((DamageError, IncompleteError)):
            rows_of(root)
        if (root / key).is_dir():
            (root / key).rmdir()
        (root / key).write_bytes(whole[key])
    assert verify(root, full=True) == []


SWAPS = {
    "parts of one array": ("logits/values/c/0/0", "logits/values/c/1/0"),
    "layers": ("hidden/L1/codes/c/0/0", "hidden/L2/codes/c/0/0"),
    "columns of the plan": ("plan/doc_start/c/0", "plan/doc_id/c/0"),
    "tokens of two parts": ("tokens/c/0", "tokens/c/2"),
    "commits": ("commits/000000/zarr.json", "commits/000001/zarr.json"),
    "commit and completion": ("commits/000000/zarr.json", "complete/zarr.json"),
    "manifest and plan's commit": ("zarr.json", "commits/plan/zarr.json"),
}


@pytest.mark.parametrize("pair", SWAPS.values(), ids=SWAPS)
def test_exchanged_objects_are_found_though_each_is_sound(
    cache: Cache, tmp_path: Path, pair: tuple[str, str]
) -> None:
    root = copy_of(cache, tmp_path)
    swap(*(root / key for key in pair))
    found = verify(root)
    assert any(key in problem for problem in found for key in pair)
    with pytest.raises(CacheError):
        rows_of(root)


def test_chunks_exchanged_within_a_shard_are_found(cache: Cache, tmp_path: Path) -> None:
    """Each chunk with its own crc32c behind it, and the index as it was."""
    root = copy_of(cache, tmp_path)
    name = next(n for n, made in cache.layouts.items() if made.shard_chunks == 1)
    layout = cache.layouts[name]
    shards = [root / layout.key(shard) for shard in (0, 1)]
    size = layout.chunk_bytes + 4
    one, other = (path.read_bytes() for path in shards)
    assert len(one) == layout.shard_bytes
    shards[0].write_bytes(other[:size] + one[size:])
    assert "part 0" in named(root, layout.key(0), full=False)
    with pytest.raises(DamageError, match="not the object that was committed"):
        rows_of(root)


def test_a_stale_index_is_found(masked_cache: Cache, tmp_path: Path) -> None:
    """An index in order, with its own crc32c, that is not the one of these chunks."""
    root = copy_of(masked_cache, tmp_path)
    key = "logits/logprobs/c/0/0"
    data = bytearray((root / key).read_bytes())
    chunks = masked_cache.layouts["logits/logprobs"].shard_chunks
    table = np.frombuffer(data, "<u8", 2 * chunks, len(data) - 4 - 16 * chunks).copy()
    table[0] += 8
    data[-4 - 16 * chunks :] = table.tobytes() + crc(table.tobytes()).to_bytes(4, "little")
    (root / key).write_bytes(data)
    assert "part 0" in named(root, key, full=False)
    with pytest.raises(DamageError, match=key):
        rows_of(root)


def test_a_part_of_another_cache_is_found(
    cache: Cache, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    """Commit, rows and all, from a cache of the same plan and signals whose teacher differs."""
    root = copy_of(cache, tmp_path)
    other_teacher = Path(shutil.copytree(classifier, tmp_path / "classifier"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(other_teacher)
    model.classifier.bias.data[0] += 1
    model.save_pretrained(other_teacher)
    other = build(
        corpus,
        teacher=other_teacher,
        task="text-classification",
        out=tmp_path / "other",
        signals=["logits:dense", "hidden:layers=0-1-2-3-4,positions=cls,dtype=fp32"],
        max_length=48,
        part_tokens=2048,
        batch_tokens=1024,
        keep_teacher_weights=True,
    )
    for key in [*other.commit(1)["objects"], "commits/000001/zarr.json"]:
        shutil.copy(tmp_path / "other" / key, root / key)
    assert any("the commits are not those the cache was completed with" in p for p in verify(root))
    with pytest.raises(DamageError, match="the commits are not those the cache was completed"):
        kdcache.train(root, recipe="kd", init_from_teacher=[1], out=tmp_path / "student")
    for key in ("zarr.json", "commits/plan/zarr.json"):
        shutil.copy(tmp_path / "other" / key, tmp_path / Path(key).name)
        kept = (root / key).read_bytes()
        shutil.copy(tmp_path / Path(key).name, root / key)
        with pytest.raises(DamageError, match=r"plan/zarr\.json is damaged: it is not the man"):
            open_cache(root)
        (root / key).write_bytes(kept)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path) -> Path:
    """A small cache in the place where another one is wanted."""
    folder = tmp_path_factory.mktemp("held")
    shutil.copy(corpus, folder / "c.csv")
    shutil.copytree(classifier, folder / "classifier")
    again(folder)
    return folder


def again(folder: Path, **changed: Any) -> Cache:
    given: dict[str, Any] = {
        "teacher": folder / "classifier",
        "task": "text-classification",
        "out": folder / "cache",
        "limit": 24,
        "max_length": 48,
    }
    return build(folder / "c.csv", **{**given, **changed})


def one_bit(folder: Path) -> None:
    path = folder / "classifier" / "model.safetensors"
    flip(path, path.stat().st_size * 8 - 8 * 400)  # among the weights: the header comes first


def one_normaliser(folder: Path) -> None:
    path = folder / "classifier" / "tokenizer.json"
    text = path.read_text("utf-8")
    assert '"lowercase": true' in text
    path.write_text(text.replace('"lowercase": true', '"lowercase": false'), "utf-8")


def one_letter(folder: Path) -> None:
    lines = (folder / "c.csv").read_text("utf-8").splitlines(keepends=True)
    lines[4] = lines[4].replace("e", "a", 1)
    (folder / "c.csv").write_text("".join(lines), "utf-8")


CHANGES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "weights": (one_bit, {}, r"teacher\.weights_sha256"),
    "tokenizer": (one_normaliser, {}, r"plan\.config\."),
    "corpus": (one_letter, {}, r"plan\.config\.corpus|plan\.sha256"),
    "plan": (lambda folder: None, {"seed": 3}, r"plan\.config\.seed is 0 there and 3 now"),
    "dtype": (lambda folder: None, {"dtype": "fp16"}, r"teacher\.dtype is fp32 there and fp16 now"),
    "signal": (
        lambda folder: None,
        {"signals": ["logits:dense,dtype=fp16"]},
        r"signals\.logits\.dtype is fp32 there and fp16 now",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_smallest_change_of_what_a_cache_is_made_from_is_refused_by_field(
    held: Path, tmp_path: Path, name: str
) -> None:
    change, options, message = CHANGES[name]
    folder = Path(shutil.copytree(held, tmp_path / "f"))
    before = files_of(folder / "cache")
    change(folder)
    with pytest.raises(MismatchError, match=message):
        again(folder, **options)
    assert files_of(folder / "cache") == before


@pytest.mark.parametrize("differing", [0, 1], ids=["same", "one differs"])
def test_makers_of_one_cache_at_one_moment_agree(
    masked_cache: Cache, tmp_path: Path, differing: int
) -> None:
    """As long as they mean the same; who is late is told so by an error of ours."""
    plan, barrier = masked_cache.plan, threading.Barrier(4)

    def make(number: int) -> bool:
        record = {**plan_record(plan), "note": differing * (number == 3)}
        barrier.wait()
        return create(tmp_path / "c", record, plan)

    with ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(make, number) for number in range(4)]
    failed = [error for job in jobs if (error := job.exception()) is not None]
    assert [job.result() for job in jobs if job.exception() is None].count(True) == 1
    assert all(isinstance(error, MismatchError) for error in failed)
    assert len(failed) == 0 if not differing else len(failed) in (1, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert open_plan(tmp_path / "c").sha256 == plan.sha256


def test_claims_part_the_work_and_hold_nobody_up(tmp_path: Path) -> None:
    one, other, dead = (Claims(tmp_path / "s" / "claims") for _ in range(3))
    assert dead.take([0, 1, 2, 3]) == 0
    assert one.take([0, 1, 2, 3]) == 1
    assert other.take([0, 1, 2, 3]) == 2
    assert one.take([0, 2, 3]) == 3
    assert one.take([0, 2]) == 0, "what nobody commits is taken over in the end"
    assert one.take([]) is None
    one.drop()
    other.drop()
    assert [path.name for path in (tmp_path / "s" / "claims").iterdir()] == ["000000"]
    assert Claims(tmp_path / "s" / "claims").take([1, 2]) == 1


def test_only_what_was_abandoned_is_swept_away(tmp_path: Path, held: Path) -> None:
    """What killed builds left beside a cache, and a day has not changed, goes with the next one."""
    litter = [".c.1.creating", ".c.2.creating", ".d.3.creating", ".kdcache-plan-x"]
    for name in litter:
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text("x")
    for name in (".c.1.creating", ".d.3.creating", ".kdcache-plan-x"):
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            os.utime(path, (0, 0))
    again(held, out=tmp_path / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c.2.creating", ".d.3.creating", "c"]


def small_parts(out: Path, corpus: Path, teacher: Path) -> list[str]:
    """A command of many parts."""
    command = ["build", str(corpus), "--teacher", str(teacher), "--task", "text-classification"]
    command += ["--out", str(out), "--max-length", "48", "--part-tokens", "256"]
    return [*command, "--batch-tokens", "128", "--json"]


def started(command: list[str]) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(Path(__file__).parents[1] / p) for p in (".", "kernels", "cli"))
    return subprocess.Popen(
        [sys.executable, "-m", "kdcache_cli", *command],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_builds_of_one_cache_share_the_work(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    """And one stopped by SIGTERM leaves nothing of its own behind."""
    out = tmp_path / "c"
    builds = [started(small_parts(out, corpus, classifier)) for _ in range(3)]
    deadline = time.monotonic() + 240
    while len(list(out.glob("commits/0*/zarr.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builds[2].send_signal(signal.SIGTERM)
    ended = [build.communicate(timeout=240) for build in builds]
    assert [build.returncode for build in builds[:2]] == [0, 0], ended
    assert builds[2].returncode in (0, 130), ended[2]  # 0: it was done before it was told
    assert all("Traceback" not in err and "error:" not in err for _, err in ended)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    alone = tmp_path / "alone"
    assert main(small_parts(alone, corpus, classifier)) == 0
    assert files_of(out) == files_of(alone)
    assert verify(out, full=True) == []


def test_a_build_that_died_between_its_last_part_and_its_end_is_ended(
    tmp_path: Path, corpus: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or another builder of the cache has committed its last part, and is about to end."""
    out = tmp_path / "c"
    assert main(small_parts(out, corpus, classifier)) == 0
    whole = files_of(out)
    shutil.rmtree(out / "complete")
    capsys.readouterr()
    assert main(small_parts(out, corpus, classifier)) == 0
    assert "none is left to be run" in capsys.readouterr().err
    assert files_of(out) == whole
    assert verify(out, full=True) == []


@contextmanager
def no_override() -> Iterator[None]:
    """Let file modes count for root, too: without CAP_DAC_OVERRIDE its files are as anyone's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    before, now = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    now[:] = before[:]
    now[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of the effective set
    assert libc.capset(header, now) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


def test_a_folder_that_may_not_be_written_costs_one_line(tmp_path: Path, held: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with no_override(), pytest.raises(CacheError, match=r"cannot write .*permission denied") as one:
        again(held, out=closed / "c")
    assert "\n" not in str(one.value)
    assert list(closed.iterdir()) == []


def test_a_cache_that_may_not_be_written_is_read_and_not_resumed(
    held: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(held, tmp_path / "f"))
    root = folder / "cache"
    shutil.rmtree(root / "complete")
    shutil.rmtree(root / "commits/000000")
    before = files_of(folder)
    for path in (root, root / "commits", folder):
        path.chmod(0o555)
    with no_override():
        assert open_cache(root).missing == [0]
        with pytest.raises(CacheError, match=r"cannot write .*permission denied"):
            again(folder)
    for path in (root, root / "commits", folder):
        path.chmod(0o755)
    assert files_of(folder) == before


def test_a_complete_cache_that_may_not_be_written_needs_nothing(held: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(held, tmp_path / "f"))
    before = files_of(folder)
    places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in places:
        path.chmod(0o555)
    try:
        with no_override():
            assert again(folder).complete
            with pytest.raises(MismatchError, match=r"plan\.config\.seed"):
                again(folder, seed=3)
    finally:
        for path in places:
            path.chmod(0o755)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    "key", ["zarr.json", "logits/values/c/0/0", "commits/000000/zarr.json", "tokens/zarr.json"]
)
def test_an_object_that_may_not_be_read_is_named(held: Path, tmp_path: Path, key: str) -> None:
    root = Path(shutil.copytree(held / "cache", tmp_path / "c"))
    (root / key).chmod(0)
    with no_override(), pytest.raises(CacheError, match=rf"{root / key}.*Permission denied"):
        rows_of(root)
    (root / key).chmod(0o644)
    assert verify(root) == []


def test_a_disk_that_fills_up_leaves_nothing_half_written(held: Path, tmp_path: Path) -> None:
    """Stopped at every size a file may grow to, a build keeps whole parts, and goes on later."""
    resource = pytest.importorskip("resource")
    whole = files_of(held / "cache")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 500, 2000, 5000, 13_500, 15_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(KdcacheError, match=r"may not grow|too large") as caught:
                again(held, out=tmp_path / "c")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(caught.value)
        kept = [path.name for path in tmp_path.iterdir()]
        assert kept in ([], ["c"]), f"{limit}: {kept}"
    again(held, out=tmp_path / "c")
    assert files_of(tmp_path / "c") == whole


@pytest.fixture
def growing(cache: Cache, tmp_path: Path) -> Path:
    """A cache while it is being built: part 1 not committed, part 2 committed and not yet moved."""
    root = copy_of(cache, tmp_path)
    shutil.rmtree(root / "complete")
    shutil.rmtree(root / "commits/000001")
    (root / "logits/values/c/1/0").unlink()
    (root / "hidden/L2/codes/c/2/0").unlink()
    return root


def test_a_growing_cache_is_trained_on_as_far_as_it_is_there(
    growing: Path, cache: Cache, tmp_path: Path
) -> None:
    opened = open_cache(growing)
    assert opened.committed == [0, 2, 3]
    assert parts_in_place(opened) == [0, 3]
    docs = part_documents(opened, [0, 3])
    given: dict[str, Any] = {
        "recipe": "kd",
        "init_from_teacher": [1],
        "overrides": ["training.num_train_epochs=1", "training.logging_steps=1"],
    }
    with pytest.raises(IncompleteError, match="3 of 4 parts are committed"):
        kdcache.train(growing, out=tmp_path / "no", **given)
    watch = Recorder()
    result = kdcache.train(growing, out=tmp_path / "s", allow_partial=True, progress=watch, **given)
    total = cache.plan.documents
    assert (
        watch.messages[0] == f"training on {len(docs)} of {total} documents: 2 of 4 parts are there"
    )
    assert result.metrics["partial"] == {"documents": len(docs), "of": total, "parts": [0, 3]}
    assert result.metrics["documents"] == len(docs)
    whole = kdcache.train(cache, out=tmp_path / "w", allow_partial=True, **given)
    assert "partial" not in whole.metrics, "a complete cache is used whole"


class Recorder:
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    def say(self, message: str) -> None:
        self.messages.append(message)


class Stopping(Recorder):
    """Presses Ctrl-C after some steps."""

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        steps = 0

        def advance(done: int) -> None:
            nonlocal steps
            steps += done
            if steps == 3:
                signal.raise_signal(signal.SIGINT)

        yield advance


def test_a_resumed_run_keeps_to_the_parts_it_was_started_on(
    growing: Path, cache: Cache, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "recipe": "kd",
        "init_from_teacher": [1],
        "overrides": ["training.num_train_epochs=2", "training.per_device_train_batch_size=16"],
        "allow_partial": True,
    }
    unbroken = kdcache.train(growing, out=tmp_path / "unbroken", **given)
    with pytest.raises(KeyboardInterrupt):
        kdcache.train(growing, out=tmp_path / "s", progress=Stopping(), **given)
    assert isinstance(cache.path, Path)
    shutil.copytree(cache.path, growing, dirs_exist_ok=True)  # the build goes on, and ends
    assert open_cache(growing).complete
    resumed = kdcache.train(growing, out=tmp_path / "s", resume=True, **given)
    assert resumed.metrics["partial"] == unbroken.metrics["partial"]
    weights = [
        transformers.AutoModelForSequenceClassification.from_pretrained(run.folder).state_dict()
        for run in (unbroken, resumed)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    shutil.rmtree(growing / "complete")
    shutil.rmtree(growing / "commits/000003")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        kdcache.train(growing, out=tmp_path / "s", progress=Stopping(), **given)
    (growing / "logits/values/c/0/0").unlink()
    with pytest.raises(IncompleteError, match="has lost part 0, which the run was on"):
        kdcache.train(growing, out=tmp_path / "s", resume=True, **given)


def test_nothing_of_a_cache_without_a_part_is_trained_on(growing: Path, tmp_path: Path) -> None:
    for part in ("000000", "000002", "000003"):
        shutil.rmtree(growing / "commits" / part)
    with pytest.raises(IncompleteError, match="holds no part yet; wait until the build commits"):
        kdcache.train(
            growing, recipe="kd", init_from_teacher=[1], out=tmp_path / "s", allow_partial=True
        )


def test_a_record_in_other_bytes_is_no_record(cache: Cache, tmp_path: Path) -> None:
    """The same JSON in other bytes, as an editor or a tool would leave it."""
    root = copy_of(cache, tmp_path)
    path = root / "commits/000000/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"zarr_format": 3', b'"zarr_format":  3'))
    assert "bytes are not those of its record" in named(root, "commits/000000/zarr.json")


def test_a_sound_record_of_tables_too_deep_to_write_is_damage(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    deep: dict[str, Any] = {}
    for _ in range(600):
        deep = {"a": deep}
    node = {"attributes": seal(deep), "zarr_format": 3, "node_type": "group"}
    (root / "commits/000000/zarr.json").write_text(json.dumps(node, indent=2), "utf-8")
    assert "bytes are not those of its record" in named(root, "commits/000000/zarr.json")


def test_documents_that_cannot_be_read_leave_no_cache(tmp_path: Path, classifier: Path) -> None:
    rows: list[tuple[object, ...]] = [("fine", "email"), ("also fine", "asyncio")]
    path = write_csv(tmp_path / "c.csv", rows)
    path.write_bytes(path.read_bytes() + b"\xff\xfe,email\n")
    with pytest.raises(KdcacheError, match=r"c\.csv"):
        build(path, teacher=classifier, task="text-classification", out=tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]
