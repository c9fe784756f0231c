"""Reading rows from shards: in place, checked when first touched, by threads and forks alike."""

import os
import subprocess
import sys
import threading

import google_crc32c
import numpy as np
import pytest

from kdcache.errors import CacheError, DamageError, IncompleteError
from kdcache.store.format import array_reader
from kdcache.store.format.array_reader import ArrayReader, encode_shard, plan_layout
from kdcache.store.format.spans import cut_spans
from kdcache.store.io import open_files
from kdcache.store.io.checksums import crc
from kdcache.store.io.open_files import Descriptor

PARTS, PART_ROWS, CHUNK_ROWS = 3, 384, 128


def stored(root, name="x", row_shape=(3,), dtype="int32", seed=0):
    """An array on disk, its layout and its values."""
    layout = plan_layout(
        name, dtype, row_shape, part_rows=PART_ROWS, chunk_rows=CHUNK_ROWS, parts=PARTS
    )
    values = np.random.default_rng(seed).integers(0, 100, layout.shape).astype(dtype)
    for part in range(PARTS):
        path = root / layout.key(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = values[part * PART_ROWS : (part + 1) * PART_ROWS]
        path.write_bytes(b"".join(encode_shard(rows, CHUNK_ROWS)))
    return layout, values


@pytest.fixture(params=["in memory", "from the file"])
def kept(request, monkeypatch):
    """Small arrays stay in memory; both ways have to give the same."""
    if request.param == "from the file":
        monkeypatch.setattr(array_reader, "RESIDENT_BYTES", 0)
    return request.param == "in memory"


def spans_of(rng, rows, count):
    counts = rng.integers(0, 200, count)
    starts = rng.integers(0, rows - counts)
    return starts, counts


@pytest.mark.parametrize("row_shape", [(), (3,), (5, 2)], ids=str)
def test_any_spans_come_back_in_their_order(tmp_path, kept, row_shape):
    layout, values = stored(tmp_path, row_shape=row_shape)
    reader, rng = ArrayReader(tmp_path, layout), np.random.default_rng(1)
    for count in (1, 7, 40):
        starts, counts = spans_of(rng, len(values), count)
        wanted = np.concatenate([values[a : a + n] for a, n in zip(starts, counts, strict=True)])
        np.testing.assert_array_equal(reader.read(starts, counts), wanted)
        out = np.full(wanted.shape, -1, wanted.dtype)
        assert reader.read(starts, counts, out) is out
        np.testing.assert_array_equal(out, wanted)


def test_rows_of_no_span_are_none(tmp_path, kept):
    layout, _ = stored(tmp_path)
    nothing = np.zeros(0, np.int64)
    assert ArrayReader(tmp_path, layout).read(nothing, nothing).shape == (0, 3)


def test_pieces_lie_in_one_chunk_each_and_neighbours_are_joined():
    pieces = cut_spans(np.array([10, 30, 300, 100]), np.array([20, 5, 90, 0]), 128)
    assert pieces.cuts == [(0, 10, 25, 0), (2, 44, 84, 25), (3, 0, 6, 109)]
    assert pieces.total == 115
    assert pieces.by_shard(3) == {0: [(0, 10, 25, 0), (2, 44, 84, 25)], 1: [(0, 0, 6, 109)]}


def test_neighbouring_documents_are_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(array_reader, "RESIDENT_BYTES", 0)
    layout, _ = stored(tmp_path)
    reader = ArrayReader(tmp_path, layout)
    starts, counts = np.arange(0, CHUNK_ROWS, 16), np.full(8, 16)
    reader.read(starts, counts)
    reads, preadv = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: reads.append(given) or preadv(*given))
    reader.read(starts, counts)
    assert len(reads) == 1
    reader.read(starts[::2], counts[::2])
    assert len(reads) == 1 + 4


def test_results_start_a_page(tmp_path):
    layout, _ = stored(tmp_path)
    reader = ArrayReader(tmp_path, layout)
    assert all(reader[i : i + 9].ctypes.data % 4096 == 0 for i in range(5))


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint16)]
)
def test_checksums_take_any_memory(kind):
    data = np.random.default_rng(0).integers(0, 256, 2 * 1000, np.uint8).tobytes()
    wanted = google_crc32c.value(data)
    assert crc(kind(data)) == crc(kind(data[:600]), b"", kind(data[600:])) == wanted


def damage(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_shows_whichever_row_of_its_chunk_is_read(tmp_path, kept):
    layout, values = stored(tmp_path)
    chunk = layout.chunk_bytes + 4
    damage(tmp_path / layout.key(1), chunk + 700)
    reader = ArrayReader(tmp_path, layout)
    first = PART_ROWS + CHUNK_ROWS
    for row in (first, first + 58, first + CHUNK_ROWS - 1):
        with pytest.raises(DamageError, match="chunk 1 fails its crc32c"):
            reader[row : row + 1]
    np.testing.assert_array_equal(reader[first - 1 : first], values[first - 1 : first])


def test_a_shard_that_is_put_right_is_read_anew(tmp_path, kept):
    layout, values = stored(tmp_path)
    path = tmp_path / layout.key(0)
    whole = path.read_bytes()
    damage(path, 5)
    reader = ArrayReader(tmp_path, layout)
    with pytest.raises(DamageError):
        reader[0:9]
    (tmp_path / "repaired").write_bytes(whole)
    os.replace(tmp_path / "repaired", path)
    np.testing.assert_array_equal(reader[0:9], values[0:9])


def test_a_replaced_file_is_checked_again_when_it_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr(array_reader, "RESIDENT_BYTES", 0)
    layout, values = stored(tmp_path)
    path = tmp_path / layout.key(0)
    reader = ArrayReader(tmp_path, layout)
    np.testing.assert_array_equal(reader[0:9], values[0:9])
    (tmp_path / "other").write_bytes(path.read_bytes())
    damage(tmp_path / "other", 5)
    os.replace(tmp_path / "other", path)
    monkeypatch.setattr(open_files, "OPEN_FILES", 1)
    for row in range(PART_ROWS, 3 * PART_ROWS, PART_ROWS):
        reader[row : row + 1]
    with pytest.raises(DamageError, match="chunk 0 fails"):
        reader[0:9]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: data[:-1], DamageError, "expected .* bytes, found"),
        (lambda data: b"", DamageError, "expected .* bytes, found 0"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), DamageError, "its index fails its crc32c"),
        (None, IncompleteError, "is not there; run the same `kdcache build`"),
    ],
    ids=["truncated", "empty", "index", "missing"],
)
def test_a_shard_that_is_not_whole_is_refused(tmp_path, kept, change, error, message):
    layout, _ = stored(tmp_path)
    path = tmp_path / layout.key(0)
    data = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(data))
    with pytest.raises(error, match=message):
        ArrayReader(tmp_path, layout)[0:1]


def test_an_index_in_another_order_is_refused(tmp_path, kept):
    layout, _ = stored(tmp_path)
    path, chunks = tmp_path / layout.key(0), layout.shard_chunks
    data = bytearray(path.read_bytes())
    start = len(data) - 16 * chunks - 4
    table = data[start:-4]
    table[:16], table[16:32] = table[16:32], table[:16]
    data[start:] = table + google_crc32c.value(bytes(table)).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DamageError, match="not that of its chunks in their order"):
        ArrayReader(tmp_path, layout)[0:1]


def test_a_failing_disk_is_an_error_that_says_so(tmp_path, kept):
    layout, _ = stored(tmp_path)
    path = tmp_path / layout.key(0)
    path.unlink()
    path.mkdir()
    with pytest.raises(CacheError):
        ArrayReader(tmp_path, layout)[0:1]


def test_the_system_may_give_less_than_was_asked_for(tmp_path, kept, monkeypatch):
    layout, values = stored(tmp_path)
    preadv = os.preadv

    def little(handle, buffers, offset, flags=0):
        return preadv(handle, [memoryview(buffers[0])[:100]], offset, flags)

    monkeypatch.setattr(os, "preadv", little)
    reader = ArrayReader(tmp_path, layout)
    for _ in range(2):
        np.testing.assert_array_equal(reader[50:600], values[50:600])


@pytest.mark.parametrize("cold", [True, False])
def test_chunks_to_check_are_fetched_at_once_unless_they_are_in_memory(
    tmp_path, kept, monkeypatch, cold
):
    layout, values = stored(tmp_path)
    calls, preadv = [], os.preadv

    def read(handle, buffers, offset, flags=0):
        if flags and cold:
            raise BlockingIOError
        calls.append("read" if not flags and len(buffers) > 1 else "look")
        return preadv(handle, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: calls.append(given[1:3]))
    reader = ArrayReader(tmp_path, layout)
    reader[0:1]  # its shard is open, its first chunk checked
    calls.clear()
    np.testing.assert_array_equal(reader[0:PART_ROWS], values[:PART_ROWS])
    size = layout.chunk_bytes + 4
    fetched = [call for call in calls if isinstance(call, tuple)]
    assert fetched == ([(size, size), (2 * size, size)] if cold else [])
    if cold:
        assert calls.index("read") > calls.index(fetched[-1])
    calls.clear()
    reader[0:PART_ROWS]
    assert not [call for call in calls if isinstance(call, tuple)]


def test_few_files_are_open_whatever_the_number_of_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(array_reader, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(open_files, "OPEN_FILES", 4)
    arrays = [stored(tmp_path, f"a{i}", seed=i) for i in range(5)]
    before = len(os.listdir("/proc/self/fd"))
    readers = [ArrayReader(tmp_path, layout) for layout, _ in arrays]
    for _ in range(2):
        for reader, (_, values) in zip(readers, arrays, strict=True):
            np.testing.assert_array_equal(reader[0 : len(values)], values)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    del readers, reader
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_file_stays_open_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(open_files, "OPEN_FILES", 1)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    one, other = Descriptor(tmp_path / "a"), Descriptor(tmp_path / "b")
    handle = one.handle()
    other.handle()
    assert one.current is None
    assert os.pread(handle.number, 1, 0) == b"a"


def test_threads_read_at_once(tmp_path, kept, monkeypatch):
    monkeypatch.setattr(open_files, "OPEN_FILES", 2)
    layout, values = stored(tmp_path)
    reader, wrong = ArrayReader(tmp_path, layout), []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            starts, counts = spans_of(rng, len(values), 9)
            pieces = [values[a : a + n] for a, n in zip(starts, counts, strict=True)]
            if not np.array_equal(reader.read(starts, counts), np.concatenate(pieces)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


FORK = """
import os, sys, threading
from pathlib import Path
import numpy as np
from kdcache.store.format import array_reader
from kdcache.store.format.array_reader import ArrayReader, plan_layout
array_reader.RESIDENT_BYTES = 0
layout = plan_layout("x", "int32", (3,), part_rows=384, chunk_rows=128, parts=3)
reader = ArrayReader(Path(sys.argv[1]), layout)
wanted = reader[0:1152].tobytes()
stop = threading.Event()
def work():
    while not stop.is_set():
        assert reader[0:1152].tobytes() == wanted
thread = threading.Thread(target=work)
thread.start()
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if all(reader[0:1152].tobytes() == wanted for _ in range(5)) else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
print(codes)
"""


@pytest.mark.slow
def test_children_forked_while_a_thread_reads_go_on_reading(tmp_path):
    stored(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str([0] * 20), done.stderr
