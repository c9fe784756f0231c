"""`kdcache bench store`: what it reads is right, its report whole, and a missing rival is named."""

import json

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner

from kdcache.bench import store_readers
from kdcache.bench.report import installed
from kdcache.bench.store import bench_store, panels
from kdcache.bench.store_cache import generate
from kdcache.bench.store_cases import cases
from kdcache.bench.store_parts import SLOW
from kdcache.bench.store_readers import READERS
from kdcache.bench.store_source import BATCH_TOKENS, Source
from kdcache.bench.store_streams import ORDERS
from kdcache.errors import CacheError, ConfigError
from kdcache.maintenance.verifying import verify

CASES = ["shuffled documents", "shuffled runs", "sequential", "one document"]
COLD = ["cold cache", "cold cache, whole epoch"]
HERE = [name for name, (_, package) in READERS.items() if not package or installed(package)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("bench") / "made.cache", 20_000)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return bench_store(tokens=20_000, repeats=1, scratch=tmp_path_factory.mktemp("scratch"))


def test_the_made_cache_is_a_sound_one_that_lacks_only_its_end(made):
    (problem,) = verify(made.path, full=True)
    assert "complete" in problem
    assert abs(made.plan.tokens - 20_000) < 1000
    assert set(made.layouts) == {
        "logits/ids",
        "logits/logprobs",
        "logits/tail_logmass",
        "logits/tail_stat",
        "hidden/L1/codes",
        "hidden/L1/scale",
    }
    assert zarr.open_array(made.path / "logits/ids", mode="r")[:5].any()


@pytest.mark.parametrize("name", ["masked_cache", "causal_cache"])
def test_every_reader_gives_the_rows_of_the_cache(name, request, tmp_path):
    cache = request.getfixturevalue(name)
    source = Source(cache, cache.plan.parts)
    found = {}
    for number, reader in enumerate(HERE):
        (tmp_path / str(number)).mkdir()
        found[reader] = READERS[reader][0](source, tmp_path / str(number))
    for case in cases(source):
        for batch in case.batches[:2]:
            wanted = {}
            for array in cache.layouts:
                starts, counts = batch.spans[cache.spaces[array]]
                rows = zarr.open_array(cache.path / array, mode="r")[...]
                pieces = [rows[a : a + n] for a, n in zip(starts, counts, strict=True)]
                wanted[array] = np.concatenate(pieces)
            for reader, read in found.items():
                for array, rows in read(batch).items():
                    np.testing.assert_array_equal(rows, wanted[array], err_msg=reader)


def test_cases_cover_all_documents_in_batches_of_8192_tokens(made):
    plan = made.plan
    shuffled, runs, sequential, _ = cases(Source(made, plan.parts))
    for case in (shuffled, runs, sequential):
        assert max(case.tokens) <= BATCH_TOKENS
        assert min(case.tokens) > BATCH_TOKENS - 241
        assert sum(case.tokens) > plan.tokens - BATCH_TOKENS
        for batch, tokens in zip(case.batches, case.tokens, strict=True):
            assert batch.spans["token"][1].sum() == tokens
    assert sorted(runs.tokens) == sorted(sequential.tokens)
    assert all(len(batch.spans["token"][0]) == 1 for batch in sequential.batches)
    assert all(len(batch.spans["token"][0]) > 16 for batch in shuffled.batches)


def test_the_report_has_every_case_and_reader(report):
    rows = {(row["case"], row["reader"]): row for row in report["rows"]}
    first = "kdcache, first epoch"
    for case in CASES + COLD:
        for reader in HERE:
            if case == COLD[1] and reader in SLOW:
                continue
            row = rows.pop((case, reader))
            assert row["tokens_per_s"] > 0
            assert row["over_memmap"] == pytest.approx(1) if reader == "numpy memmap" else True
        if case in CASES:
            assert rows.pop((case, first))["tokens_per_s"] > 0
    assert rows.pop(("write and fsync", "raw write"))["over_raw"] == 1
    assert rows.pop(("write and fsync", "kdcache"))["over_raw"] > 0
    assert rows.pop(("loader", "kdcache"))["tokens_per_s"] > 0
    assert rows.pop(("loader", first))["tokens_per_s"] > 0
    for reader in set(ORDERS) & set(HERE):
        assert rows.pop(("an epoch in its own order", reader))["tokens_per_s"] > 0
    assert not rows
    names = [note.partition(":")[0] for note in report["left_out"]]
    assert names == [name for name in READERS if name not in HERE]
    assert report["readers"]["zarr-python"] == zarr.__version__
    assert len(report["goals"]) == 8
    json.dumps(report, allow_nan=False)
    assert [panel.title for panel in panels(report)] == CASES + COLD


def test_nothing_is_left_behind(report, tmp_path):
    bench_store(tokens=BATCH_TOKENS, repeats=1, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rival_that_is_not_installed_is_left_out_and_said(monkeypatch, tmp_path):
    monkeypatch.setitem(READERS, "zarr-python", (store_readers.zarr_python, "no-such-package"))
    report = bench_store(tokens=BATCH_TOKENS, repeats=1, scratch=tmp_path)
    assert report["left_out"][0] == "zarr-python: no-such-package is not installed"
    assert "zarr-python" not in {row["reader"] for row in report["rows"]}
    assert not [goal for goal in report["goals"] if "zarr" in goal["goal"]]


def test_a_reader_that_gives_other_rows_is_not_timed(monkeypatch, tmp_path):
    def wrong(source, folder):
        read = store_readers.numpy_memmap(source, folder)

        def one_off(wanted):
            rows = read(wanted)
            rows["logits/ids"] = rows["logits/ids"] + 1
            return rows

        return one_off

    monkeypatch.setitem(READERS, "Arrow IPC", (wrong, None))
    with pytest.raises(CacheError, match="Arrow IPC gives other rows of logits/ids than kdcache"):
        bench_store(tokens=BATCH_TOKENS, repeats=1, scratch=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 10}, "tokens must be 8192 or more .* got 10 and 5"),
        ({"repeats": 0}, "repeats 1 or more; got 1048576 and 0"),
        ({"scratch": "nowhere/at/all"}, "nowhere/at/all cannot be written to"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        bench_store(**options)


def test_the_command_reads_a_cache_and_writes_table_plot_and_json(causal_cache, tmp_path):
    from kdcache_cli.app import app

    command = ["--quiet", "bench", "store", str(causal_cache.path), "--repeats", "1"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "shuffled documents" in done.output
    assert "Goals" not in done.output
    written = json.loads((tmp_path / "store.json").read_text("utf-8"))
    assert written["tokens"] <= causal_cache.plan.tokens
    assert (tmp_path / "store.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
