"""Buckets that are busy, lose answers or damage them on the way: waited for, asked again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdcache
from kdcache.building.builder import build
from kdcache.errors import CacheError, ConfigError, DamageError
from kdcache.maintenance.verifying import verify
from kdcache.store import Cache, open_cache
from kdcache.store.io.durable_writes import put_if_absent
from kdcache.store.io.object_path import _Pages, at_once
from tests.faulty_proxy import Faults, faulty_proxy
from tests.test_object_store import at, files_of, objects_of

SIZES: dict[str, Any] = {"max_length": 48, "part_tokens": 2048, "batch_tokens": 1024}


@pytest.fixture
def faults(bucket: str, object_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Faults between this test and its bucket; none yet."""
    made = Faults()
    monkeypatch.setattr("kdcache.store.io.object_client.FIRST_WAIT", 0.01)
    monkeypatch.setenv("KDCACHE_PATIENCE", "20")
    with faulty_proxy(object_server, made) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield made


@pytest.mark.slow
def test_a_build_through_a_bad_line_is_the_build_on_a_disk(
    bucket: str, faults: Faults, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    asked: dict[str, Any] = {"teacher": classifier, "task": "text-classification", "limit": 80}
    asked |= SIZES
    here = build(corpus, out=tmp_path / "c.zarr", **asked)
    faults.busy = faults.dropped = faults.lost = faults.cut = 0.12
    there = build(corpus, out=f"{bucket}/c.zarr", **asked)
    assert verify(f"{bucket}/c.zarr", full=True) == []
    for name in here.layouts:
        np.testing.assert_array_equal(
            there.read(name, there.plan.docs), here.read(name, here.plan.docs)
        )
    kdcache.copy(f"{bucket}/c.zarr", f"{bucket}/copy.zarr")
    assert all(faults.done[fault] > 3 for fault in ("busy", "dropped", "lost", "cut"))
    faults.busy = faults.dropped = faults.lost = faults.cut = 0.0
    assert isinstance(here.path, Path)
    assert objects_of(f"{bucket}/c.zarr") == objects_of(f"{bucket}/copy.zarr")
    assert objects_of(f"{bucket}/c.zarr") == files_of(here.path)


@pytest.mark.parametrize("fault", ["busy", "dropped", "cut"])
def test_a_listing_that_breaks_off_is_asked_for_again(
    bucket: str, faults: Faults, fault: str
) -> None:
    for number in range(12):
        (at(bucket) / f"{number:03d}").write_bytes(b"x")
    setattr(faults, fault, 1.0)
    faults.first = True
    assert sorted(at(bucket).below()) == [f"{number:03d}" for number in range(12)]
    assert faults.done[fault] == 1


def test_a_listing_goes_on_after_the_last_page_that_came(bucket: str) -> None:
    names = [f"{number:03d}" for number in range(60)]
    for name in names:
        (at(bucket) / name).write_bytes(b"x")
    pages = _Pages(at(bucket).bucket.client, at(bucket).key)
    came = list(pages.turn())
    assert 0 < len(came) < 60
    pages.stream = None  # as when it breaks off
    while found := pages.turn():
        came += found
    assert [entry["path"].rpartition("/")[2] for entry in came] == names


def test_what_is_damaged_on_the_way_is_read_once_more(
    bucket: str, faults: Faults, tmp_path: Path, cache: Cache
) -> None:
    kdcache.copy(cache.path, f"{bucket}/c")
    faults.flipped, faults.first = 1.0, True
    found = open_cache(f"{bucket}/c")
    for name in cache.layouts:
        np.testing.assert_array_equal(
            found.read(name, cache.plan.docs), cache.read(name, cache.plan.docs)
        )
    faults.seen.clear()
    kdcache.copy(f"{bucket}/c", tmp_path / "copied")
    assert isinstance(cache.path, Path)
    assert files_of(tmp_path / "copied") == files_of(cache.path)
    assert faults.done["flipped"] > 20


def test_what_is_damaged_each_time_is_damage(bucket: str, faults: Faults, cache: Cache) -> None:
    kdcache.copy(cache.path, f"{bucket}/c")
    faults.flipped = 1.0
    with pytest.raises(DamageError, match="is damaged"):
        open_cache(f"{bucket}/c")


def test_a_conditional_put_whose_answer_is_lost_is_still_ours(bucket: str, faults: Faults) -> None:
    faults.lost, faults.first = 1.0, True
    assert put_if_absent(at(bucket) / "x", b"ours")
    assert faults.done["lost"] == 1
    assert not put_if_absent(at(bucket) / "x", b"theirs")
    assert (at(bucket) / "x").read_bytes() == b"ours"


def test_a_store_that_comes_back_is_waited_for(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (at(bucket) / "x").write_bytes(b"here")
    monkeypatch.setattr("kdcache.store.io.object_client.ANNOUNCE_AFTER", 0.5)
    faults.down = True
    threading.Timer(2.5, lambda: setattr(faults, "down", False)).start()
    with caplog.at_level(logging.WARNING, "kdcache"):
        assert (at(bucket) / "x").read_bytes() == b"here"
    (announced,) = caplog.messages
    assert f"{bucket}/x does not answer; trying for " in announced


def test_patience_ends_when_it_was_told_to(
    bucket: str, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_PATIENCE", "1")
    faults.down = True
    began = time.monotonic()
    with pytest.raises(CacheError, match=r"cannot be reached.*run the same command again"):
        open_cache(f"{bucket}/c")
    assert 1 <= time.monotonic() - began < 15


def test_ctrl_c_ends_the_patience_of_all_requests(
    bucket: str, faults: Faults, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    faults.down = True
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        at_once(lambda number: (at(bucket) / str(number)).read_bytes(), range(20))
    assert time.monotonic() - began < 10  # of the 20 seconds that each of them may wait


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", "2 minutes"])
def test_a_patience_that_is_no_number_of_seconds_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("KDCACHE_PATIENCE", text)
    with pytest.raises(ConfigError, match="KDCACHE_PATIENCE takes a number of seconds"):
        open_cache(f"{bucket}/c")
