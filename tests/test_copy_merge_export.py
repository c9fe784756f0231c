"""Copies, merges and exports: the same bytes and values, checked on the way, and resumable."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from copy import deepcopy
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
import transformers
import zarr

import kdcache
from kdcache.building.builder import build
from kdcache.errors import CacheError, ConfigError, DamageError, IncompleteError, MismatchError
from kdcache.maintenance.copying import copy
from kdcache.maintenance.exporting import export, part_columns
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.verifying import verify
from kdcache.store import Cache, locate, open_cache, open_plan
from tests.conftest import bert_config, save_teacher
from tests.test_object_store import files_of, objects_of

TASK: Any = "text-classification"


@pytest.fixture(scope="module")
def plan(folder: Path, corpus: Path, classifier: Path) -> Path:
    sizes: dict[str, Any] = {"max_length": 48, "part_tokens": 1024, "limit": 90}
    kdcache.plan(corpus, tokenizer=classifier, task=TASK, out=folder / "merge.plan", **sizes)
    return folder / "merge.plan"


@pytest.fixture(scope="module")
def logits(plan: Path, classifier: Path) -> Cache:
    out = plan.with_name("logits.zarr")
    return build(plan, teacher=classifier, task=TASK, out=out, signals=["logits:dense"])


@pytest.fixture(scope="module")
def hidden(plan: Path, classifier: Path) -> Cache:
    """States of the same teacher, asked for later."""
    signals = ["hidden:layers=2-4,positions=all,dtype=int8"]
    out = plan.with_name("hidden.zarr")
    return build(plan, teacher=classifier, task=TASK, out=out, signals=signals)


@pytest.fixture(scope="module")
def other(plan: Path, tokenizer: Path) -> Cache:
    """What a smaller teacher of the same name says."""
    torch.manual_seed(11)
    labels = ["asyncio", "email", "tkinter"]
    config = bert_config(
        tokenizer,
        hidden_size=16,
        num_hidden_layers=2,
        id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)},
    )
    teacher = transformers.BertForSequenceClassification(config)
    path = plan.parent / "small" / "classifier"
    path.parent.mkdir()
    save_teacher(path, tokenizer, teacher)
    signals = ["logits:dense", "hidden:layers=1,positions=cls,dtype=bf16"]
    out = plan.with_name("other.zarr")
    return build(plan, teacher=path, task=TASK, out=out, signals=signals)


def same_rows(found: Cache, wanted: Cache) -> None:
    assert list(found.layouts) == list(wanted.layouts)
    for name in wanted.layouts:
        rows = found.read(name, found.plan.docs), wanted.read(name, wanted.plan.docs)
        np.testing.assert_array_equal(*rows)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)


def test_a_copy_is_the_cache_there_and_back_again(
    bucket: str, tmp_path: Path, cache: Cache
) -> None:
    there = copy(cache.path, f"{bucket}/c")
    back = copy(f"{bucket}/c", tmp_path / "back.zarr")
    assert isinstance(cache.path, Path)
    assert objects_of(f"{bucket}/c") == files_of(cache.path)
    assert files_of(tmp_path / "back.zarr") == files_of(cache.path)
    assert list(tmp_path.glob("*.staging")) == []
    assert there == back
    assert there.written_objects == there.objects > 20
    assert there.written_bytes == there.bytes > sum(cache.bytes.values())
    assert verify(tmp_path / "back.zarr", full=True) == []
    assert copy(cache.path, f"{bucket}/c").written_objects == 0


def test_a_plan_is_copied_too(plan: Path, tmp_path: Path) -> None:
    copy(plan, tmp_path / "p")
    assert files_of(tmp_path / "p") == files_of(plan)
    assert open_plan(tmp_path / "p").sha256 == open_plan(plan).sha256


def test_an_interrupted_copy_cannot_be_opened_and_goes_on(
    tmp_path: Path, logits: Cache, hidden: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcache.maintenance import transfer

    bring, done = transfer._bring, 0

    def stop(out: Any, staging: Any, item: Any) -> Any:
        nonlocal done
        done += 1
        if done > 12:
            raise KeyboardInterrupt
        return bring(out, staging, item)

    monkeypatch.setattr(transfer, "_bring", stop)
    with pytest.raises(KeyboardInterrupt):
        copy(hidden.path, tmp_path / "c")
    monkeypatch.undo()
    with pytest.raises(CacheError, match="not a kdcache cache"):
        open_cache(tmp_path / "c")
    with pytest.raises(MismatchError, match="the beginning of one"):
        copy(logits.path, tmp_path / "c")
    damaged = next(p for p in (tmp_path / "c").rglob("c/*") if p.is_file())
    damage(damaged)
    result = copy(hidden.path, tmp_path / "c")
    assert result.objects - result.written_objects == 11
    assert isinstance(hidden.path, Path)
    assert files_of(tmp_path / "c") == files_of(hidden.path)


def test_damage_is_not_copied(tmp_path: Path, hidden: Cache) -> None:
    source = Path(shutil.copytree(hidden.path, tmp_path / "source"))
    shard = source / hidden.layouts["hidden/L4/codes"].key(0)
    damage(shard)
    with pytest.raises(DamageError, match=f"{shard} is damaged: chunk 0 fails its crc32c"):
        copy(source, tmp_path / "c")
    shard.unlink()
    with pytest.raises(DamageError, match=f"{shard} is missing"):
        copy(source, tmp_path / "c")
    assert not (tmp_path / "c" / "zarr.json").exists()


def test_a_copy_of_a_cache_under_construction_grows_with_it(tmp_path: Path, hidden: Cache) -> None:
    source = Path(shutil.copytree(hidden.path, tmp_path / "source"))
    shutil.rmtree(source / "complete")
    shutil.rmtree(source / "commits" / "000001")
    copy(source, tmp_path / "c")
    assert open_cache(tmp_path / "c").missing == [1]
    assert not (tmp_path / "c" / hidden.layouts["hidden/L4/codes"].key(1)).exists()
    copy(hidden.path, tmp_path / "c")
    assert isinstance(hidden.path, Path)
    assert files_of(tmp_path / "c") == files_of(hidden.path)


def test_copies_go_nowhere_else(tmp_path: Path, logits: Cache, hidden: Cache) -> None:
    with pytest.raises(CacheError, match="cannot be copied onto itself"):
        copy(logits.path, str(logits.path))
    with pytest.raises(CacheError, match="neither a plan nor a cache"):
        copy(tmp_path / "nothing", tmp_path / "c")
    with pytest.raises(MismatchError, match="contents"):
        copy(logits.path, hidden.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match="mine exists and is not a kdcache cache"):
        copy(logits.path, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_signals_asked_for_later_join_those_of_their_teacher(
    bucket: str, tmp_path: Path, logits: Cache, hidden: Cache
) -> None:
    merge([logits.path, hidden.path], tmp_path / "both.zarr")
    both = open_cache(tmp_path / "both.zarr")
    assert list(both.signals) == ["logits", "hidden"]
    assert both.teachers == ()
    assert both.complete
    assert both.fidelity == {**logits.fidelity, **hidden.fidelity}
    assert both.files == logits.files
    for part in (logits, hidden):
        for name in part.layouts:
            np.testing.assert_array_equal(
                both.read(name, both.plan.docs), part.read(name, part.plan.docs)
            )
    assert verify(tmp_path / "both.zarr", full=True) == []
    members = dict(zarr.open_group(tmp_path / "both.zarr", mode="r").members(max_depth=None))
    assert {"hidden/L2/codes", "logits/values", "complete"} <= set(members)
    merge([logits.path, hidden.path], f"{bucket}/both")
    assert objects_of(f"{bucket}/both") == files_of(tmp_path / "both.zarr")
    sources = both.manifest["merged"]
    assert [origin["signals"] for origin in sources] == [["logits"], ["hidden"]]
    assert logits.completion is not None
    assert sources[0]["contents"] == logits.completion["contents"]


def test_layers_asked_for_later_join_those_of_their_signal(
    tmp_path: Path, plan: Path, hidden: Cache, classifier: Path
) -> None:
    """Wherever their rows come from, they are read, checked and made again as one signal's."""
    made = {
        name: build(
            plan,
            teacher=classifier,
            task=TASK,
            out=tmp_path / name,
            signals=[text],
            batch_tokens=512,
        )
        for name, text in {
            "later": "hidden:layers=3-0,positions=all,dtype=int8",
            "coarse": "hidden:layers=3,positions=all,dtype=int4",
        }.items()
    }
    later = made["later"]
    merge([hidden.path, later.path], tmp_path / "both")
    both = open_cache(tmp_path / "both")
    assert both.signals["hidden"].to_json()["layers"] == [0, 2, 3, 4]
    assert verify(both.path, full=True) == []
    docs = both.plan.docs
    for cache, layers in ((hidden, (2, 4)), (later, (0, 3))):
        for layer in layers:
            found, wanted = (c.hidden(layer, docs).dense() for c in (both, cache))
            assert torch.equal(found, wanted)
            told, known = both.fidelity["hidden"], cache.fidelity["hidden"]
            assert told["relative_error"][f"L{layer}"] == known["relative_error"][f"L{layer}"]
            assert told["rows"] == known["rows"]
    whole = files_of(both.path)
    for array in both.layouts:
        next(p for p in (both.path / array / "c").rglob("*") if p.is_file()).unlink()
    (both.path / "commits" / "000000" / "zarr.json").write_text("{}")
    assert repair(both.path).left == ()
    assert files_of(both.path) == whole

    with pytest.raises(ConfigError, match="dtype is int8 in the first and int4 in the other: "):
        merge([hidden.path, made["coarse"].path], tmp_path / "no")
    with pytest.raises(ConfigError, match=r"both have layer 0: .*--signal more=hidden:"):
        merge([both.path, later.path], tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_merged_cache_trains_as_one_build_of_both_signals(
    tmp_path: Path, plan: Path, classifier: Path, logits: Cache, hidden: Cache
) -> None:
    merge([logits.path, hidden.path], tmp_path / "both.zarr")
    signals = ["logits:dense", "hidden:layers=2-4,positions=all,dtype=int8"]
    build(plan, teacher=classifier, task=TASK, out=tmp_path / "one.zarr", signals=signals)
    asked: dict[str, Any] = {
        "recipe": "hidden",
        "init_from_teacher": [2, 4],
        "overrides": [
            "training.max_steps=2",
            "training.per_device_train_batch_size=8",
            "losses.hidden.layer_map=1:2,2:4",
        ],
    }
    weights = [
        kdcache.train(tmp_path / name, out=tmp_path / f"{name}.student", **asked).folder
        / "model.safetensors"
        for name in ("both.zarr", "one.zarr")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_teachers_stay_apart(tmp_path: Path, logits: Cache, hidden: Cache, other: Cache) -> None:
    merge([logits.path, other.path, hidden.path], tmp_path / "all.zarr")
    first = open_cache(tmp_path / "all.zarr")
    assert first.teachers == ("classifier-2",)
    assert list(first.signals) == ["logits", "hidden"]
    assert first.shape == logits.shape
    second = open_cache(tmp_path / "all.zarr", teacher="classifier-2")
    assert second.shape == other.shape
    assert second.manifest["teacher"] == other.manifest["teacher"]
    assert second.signals == other.signals
    assert second.fidelity == other.fidelity
    assert first.fidelity == {**logits.fidelity, **hidden.fidelity}
    same_rows(second, other)
    docs = second.plan.docs
    assert torch.equal(second.hidden(1, docs).dense(), other.hidden(1, docs).dense())
    assert torch.equal(first.hidden(2, docs).dense(), hidden.hidden(2, docs).dense())
    assert second.file("teacher/config.json") == other.file("teacher/config.json")
    assert first.file("teacher/config.json") == logits.file("teacher/config.json")
    assert second.files == other.files
    assert first.files == logits.files
    assert verify(tmp_path / "all.zarr", full=True) == []
    zarr.open_group(tmp_path / "all.zarr", mode="r")["teachers/classifier-2/logits/values"]
    damage(tmp_path / "all.zarr" / "teachers/classifier-2/logits/values/c/0/0")
    assert len(verify(tmp_path / "all.zarr", full=True)) == 1
    with pytest.raises(ConfigError, match=r"cache 'large' \(known: classifier, classifier-2\)"):
        open_cache(tmp_path / "all.zarr", teacher="large")


def test_all_teachers_are_read_at_once_and_the_first_has_a_name(
    tmp_path: Path, logits: Cache, other: Cache
) -> None:
    merge([logits.path, other.path], tmp_path / "both.zarr")
    first = open_cache(tmp_path / "both.zarr", teacher="classifier")
    assert (first.teacher, first.first, list(first.layouts)) == (
        None,
        "classifier",
        ["logits/values"],
    )
    assert list(first.views) == ["classifier", "classifier-2"]
    theirs = [name for name in first.readable if name not in first.layouts]
    assert theirs == [f"teachers/classifier-2/{name}" for name in other.layouts]
    docs = first.plan.docs[[7, 2, 5]]
    batch = first.batch(docs, ["logits/values", *theirs])
    assert torch.equal(batch["logits/values"], logits.batch(docs)["logits/values"])
    for name in theirs:
        wanted = other.batch(docs)[name.removeprefix("teachers/classifier-2/")]
        assert torch.equal(batch[name], wanted)
    assert not any(name.startswith("teachers/") for name in first.batch(docs))
    assert list(first.views["classifier-2"].views) == ["classifier-2"]
    assert open_cache(logits.path, teacher="classifier").layouts.keys() == logits.layouts.keys()


def test_a_copy_of_a_view_sees_the_same_teacher(
    tmp_path: Path, logits: Cache, other: Cache
) -> None:
    merge([logits.path, other.path], tmp_path / "both.zarr")
    for teacher, wanted in ((None, logits), ("classifier-2", other)):
        view = open_cache(tmp_path / "both.zarr", teacher=teacher)
        for twin in (pickle.loads(pickle.dumps(view)), deepcopy(view)):
            same_rows(twin, wanted)
            assert (twin.teacher, twin.manifest) == (view.teacher, view.manifest)


def test_merged_caches_merge_again(
    tmp_path: Path, logits: Cache, hidden: Cache, other: Cache
) -> None:
    merge([logits.path, other.path], tmp_path / "two.zarr")
    merge([tmp_path / "two.zarr", hidden.path], tmp_path / "three.zarr")
    merge([logits.path, other.path, hidden.path], tmp_path / "all.zarr")
    ours, theirs = (open_cache(tmp_path / name) for name in ("three.zarr", "all.zarr"))
    assert ours.teachers == theirs.teachers
    assert ours.completion == theirs.completion
    assert ours.objects == theirs.objects
    same_rows(open_cache(tmp_path / "three.zarr", teacher=ours.teachers[0]), other)
    copy(tmp_path / "three.zarr", tmp_path / "copy.zarr")
    assert files_of(tmp_path / "copy.zarr") == files_of(tmp_path / "three.zarr")


def test_what_does_not_belong_together_is_refused(
    tmp_path: Path, corpus: Path, classifier: Path, logits: Cache, hidden: Cache, cache: Cache
) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(MismatchError, match=r"another plan than .*: plan\.\S+ is \S+ there and"):
        merge([logits.path, cache.path], out)
    with pytest.raises(ConfigError, match=r"both hold logits of classifier; .* leave one of them"):
        merge([logits.path, logits.path], out)
    with pytest.raises(ConfigError, match="merge takes two caches or more"):
        merge([logits.path], out)
    partial = Path(shutil.copytree(hidden.path, tmp_path / "partial"))
    shutil.rmtree(partial / "complete")
    with pytest.raises(IncompleteError, match="partial is incomplete"):
        merge([logits.path, partial], out)
    assert not out.exists()


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """A second reader: the format is a length, a JSON header and the bytes it points at."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    told = json.loads(header.pop("__metadata__")["kdcache"])
    kinds = {"I64": "<i8", "I32": "<i4", "F32": "<f4", "F16": "<f2", "U16": "<u2", "I8": "<i1"}
    kinds["U8"] = "<u1"
    found = {}
    for name, node in header.items():
        start, end = (8 + length + offset for offset in node["data_offsets"])
        found[name] = np.frombuffer(data[start:end], kinds[node["dtype"]]).reshape(node["shape"])
    return found, told


@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
@pytest.mark.parametrize("name", ["cache", "masked_cache", "causal_cache"])
def test_safetensors_hold_every_document(
    name: str, raw: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cache: Cache = request.getfixturevalue(name)
    made = export(cache.path, tmp_path / "out", raw=raw)
    assert made.files == [f"part-{part:06d}.safetensors" for part in range(cache.plan.parts)]
    assert made.bytes == sum((tmp_path / "out" / file).stat().st_size for file in made.files)
    parts = [read_safetensors(tmp_path / "out" / file) for file in made.files]
    docs = cache.plan.docs
    joined = {key: np.concatenate([tensors[key] for tensors, _ in parts]) for key in parts[0][0]}
    np.testing.assert_array_equal(joined["doc_id"], cache.plan.per_document["doc_id"][docs])
    assert len(joined["tokens"]) == joined["doc_len"].sum() == cache.plan.tokens
    assert parts[0][1]["teacher"] == cache.manifest["teacher"]
    if raw:
        for array in cache.layouts:
            np.testing.assert_array_equal(joined[array], cache.read(array, docs))
    else:
        soft = cache.soft_labels(docs)
        np.testing.assert_array_equal(joined["logits.ids"], soft.ids.numpy())
        np.testing.assert_array_equal(joined["logits.logprobs"], soft.logprobs.numpy())
        np.testing.assert_array_equal(joined["hidden.L4"], cache.hidden(4, docs).dense().numpy())


@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
@pytest.mark.parametrize("name", ["cache", "masked_cache", "causal_cache"])
def test_parquet_has_a_row_per_document(
    name: str, raw: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cache: Cache = request.getfixturevalue(name)
    made = export(cache, tmp_path / "out", form="parquet", raw=raw)
    for part, file in enumerate(made.files):
        table = duckdb.sql(f"select * from '{tmp_path / 'out' / file}'")
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
        columns = part_columns(cache, part, raw=raw)
        counts = {"token": "doc_len", "selected": "masked_len"}
        assert len(rows) == len(cache.plan.part_docs(part))
        done = {"document": 0, "token": 0, "selected": 0}
        for row in rows:
            for key, column in columns.items():
                start = done[column.space]
                if column.space == "document":
                    wanted: Any = column.rows[start].tolist()
                else:
                    wanted = column.rows[start : start + row[counts[column.space]]].tolist()
                np.testing.assert_array_equal(np.array(row[key]), np.array(wanted))
            done["document"] += 1
            done["token"] += row["doc_len"]
            done["selected"] += row.get("masked_len", 0)


def test_exports_are_refused_where_they_cannot_be(tmp_path: Path, hidden: Cache) -> None:
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        export(hidden.path, tmp_path / "out", form="parket")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        export(hidden.path, tmp_path / "used")
    partial = Path(shutil.copytree(hidden.path, tmp_path / "partial"))
    shutil.rmtree(partial / "complete")
    with pytest.raises(IncompleteError, match="partial is incomplete"):
        export(partial, tmp_path / "out")


def test_a_cache_in_a_bucket_is_exported(bucket: str, tmp_path: Path, logits: Cache) -> None:
    copy(logits.path, f"{bucket}/c")
    export(f"{bucket}/c", tmp_path / "far", raw=True)
    found, told = read_safetensors(tmp_path / "far" / "part-000000.safetensors")
    docs = logits.plan.part_docs(0)
    np.testing.assert_array_equal(found["logits/values"], logits.read("logits/values", docs))
    assert told["cache"] == str(locate(f"{bucket}/c"))
