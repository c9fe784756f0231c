"""Caches of the first format stay readable: tests/format1.zip was made before there was another."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from kdcache.building.builder import build
from kdcache.errors import DamageError, MismatchError
from kdcache.maintenance.copying import copy
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.verifying import verify
from kdcache.store import open_cache, open_plan
from kdcache.training.train import train


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(Path(__file__).with_name("format1.zip")) as made:
        made.extractall(tmp_path / "old")
    return tmp_path / "old" / "cache"


def rows_of(path: Path) -> dict[str, str]:
    cache = open_cache(path)
    return {
        name: hashlib.sha256(cache.read(name, cache.plan.docs).tobytes()).hexdigest()
        for name in cache.layouts
    }


def test_every_row_is_what_it_was(old: Path, tmp_path: Path) -> None:
    then = json.loads((old.parent / "rows.json").read_text())
    cache = open_cache(old)
    cache.require_complete()
    assert (cache.plan.documents, cache.plan.parts) == (then["documents"], then["parts"])
    assert rows_of(old) == then["rows"]
    assert cache.fidelity["logits"]["top1_agreement"] > 0.9
    assert verify(old, full=True) == []
    assert open_plan(old).documents == then["documents"]
    copy(old, tmp_path / "copied")
    assert rows_of(tmp_path / "copied") == then["rows"]


def test_a_student_is_trained_from_it(old: Path, tmp_path: Path) -> None:
    narrow = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1}
    narrow |= {"num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 600}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(narrow))
    out = train(
        open_cache(old),
        recipe="mlm-kd",
        out=tmp_path / "student",
        config=config,
        overrides=["training.max_steps=2"],
    )
    assert (out.folder / "model.safetensors").is_file()


@pytest.mark.parametrize("part", ["data", "crc32c", "index"])
def test_damage_is_found(old: Path, part: str) -> None:
    shard = next((old / "logits" / "ids" / "c").rglob("*/0"))
    data = bytearray(shard.read_bytes())
    data[{"data": 3, "crc32c": -25, "index": -10}[part]] ^= 1
    shard.write_bytes(data)
    assert "logits/ids" in verify(old, full=True)[0]
    with pytest.raises(DamageError, match="logits/ids"):
        rows_of(old)


def test_a_missing_commit_is_found(old: Path) -> None:
    (old / "commits" / "000001" / "zarr.json").unlink()
    assert "commits/000001" in verify(old)[0]


def test_nothing_is_added_to_it(old: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"format 1.*build it anew"):
        repair(old)
    with pytest.raises(MismatchError, match=r"format 1.*build it anew"):
        merge([old, old], tmp_path / "merged")


def test_a_build_onto_it_names_the_format(
    old: Path, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="format is 1"):
        build(corpus, teacher=classifier, task="text-classification", out=old)
