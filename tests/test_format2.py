"""Caches of the second format stay what they were: tests/format2.zip was made before the third.

The commit before the first mention of a third format made them all, with torch 2.13, of 14 pieces
of the standard library's documentation (`texts.txt`; 35 windows of 12 tokens, views apart), a
vocabulary of 120 and models of two layers and 16 columns whose weights are 64ths, which zip well.
`made.zip` inside holds, besides one of the teachers:

| cache       | task                | signals |
|-------------|---------------------|---------|
| classes     | text-classification | logits:dense; hidden:positions=cls,dtype=int8 |
| regression  | text-classification | logits:dense,dtype=fp16; hidden:positions=mean,dtype=fp32 |
| topk        | masked-lm, 2 views  | logits:topk; hidden:positions=masked,dtype=int8,group=8 |
| small       | masked-lm           | logits:topk-small; hidden:positions=all,dtype=int4,fraction=0.5 |
| small_draws | causal-lm           | logits:topk-small,draws=4,fraction=0.5; hidden:dtype=fp8 |
| topk_draws  | causal-lm           | logits:topk,draws=4 and hidden:dtype=bf16, fraction=0.5 of both |
| sampled     | masked-lm           | logits:sampled; hidden:positions=cls,dtype=fp16,compress=zstd |
| head        | masked-lm           | logits:hidden-head,dtype=int8,group=8; hidden:positions=mean,dtype=int4,group=8,compress=zstd |
| wide        | causal-lm           | logits:topk,draws=4 of 70,000 outputs, so with ids_hi and drawn_hi |
| labels      | masked-lm           | logits:topk,k=3 |
| states      | masked-lm           | hidden:positions=masked,dtype=int8 |
| merged      | masked-lm           | labels, states and another teacher's logits:topk |
| unfinished  | masked-lm           | logits:topk,k=3: one part of three, the build was interrupted |

`rows.json` has digests of every stored row, `decoded/*.npz` what the first two documents of every
cache were decoded to by the code that made it.
"""  # noqa: E501 - a table

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.building.builder import build
from kdcache.building.creating import software
from kdcache.maintenance.copying import copy
from kdcache.maintenance.exporting import export
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.verifying import verify
from kdcache.signals import Hidden
from kdcache.signals.codecs.quantised import FLOATS
from kdcache.store import Cache, open_cache
from kdcache.tasks import TASKS
from kdcache.training.train import train
from tests.archives import unpack
from tests.damage import files_of, forge_manifest

CACHES = ["classes", "regression", "topk", "small", "small_draws", "topk_draws", "sampled", "head"]
CACHES += ["wide", "labels", "states", "merged"]
CODECS = {"dense", "topk", "topk-small", "sampled", "hidden-head", "hidden"}
"""Those there were."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = Path(__file__).with_name("format2.zip")
    return unpack(archive, tmp_path_factory.mktemp("format2"))


def views_of(root: Path, name: str) -> dict[str, Cache]:
    """The cache as each of its teachers, by the names of rows.json."""
    first = open_cache(root / name)
    others = {f"{name}/{other}": open_cache(root / name, teacher=other) for other in first.teachers}
    return {name: first, **others}


def rows_of(cache: Cache) -> dict[str, str]:
    return {
        name: hashlib.sha256(cache.read(name, cache.plan.docs).tobytes()).hexdigest()
        for name in cache.layouts
    }


def decoded(cache: Cache, docs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "logits" in cache.signals:
        soft = vars(cache.soft_labels(docs))
        tensors = {field: v for field, v in soft.items() if isinstance(v, torch.Tensor)}
        found |= {f"logits.{field}": value for field, value in tensors.items()}
    if "hidden" in cache.signals:
        layers = cache.signals["hidden"].to_json()["layers"]
        found |= {f"hidden.{layer}": cache.hidden(layer, docs).dense() for layer in layers}
    return found


def test_it_holds_every_codec_task_and_type_of_row(old: Path) -> None:
    views = [view for name in CACHES for view in views_of(old, name).values()]
    assert {view.manifest["format"] for view in views} == {2}
    later = {"token-classification", "masked-lm-all"}
    assert {view.plan.config.task for view in views} == {*TASKS} - later
    signals = [signal for view in views for signal in view.signals.values()]
    assert {signal.codec for signal in signals} == CODECS
    hidden = [signal for signal in signals if isinstance(signal, Hidden)]
    assert {signal.dtype for signal in hidden} == {"int8", "int4", *FLOATS}
    assert {signal.positions for signal in hidden} == {"cls", "mean", "all", "selected"}


@pytest.mark.parametrize("name", CACHES)
def test_every_row_and_what_it_decodes_to_is_what_it_was(
    old: Path, tmp_path: Path, name: str
) -> None:
    then = json.loads((old / "rows.json").read_text())
    assert verify(old / name, full=True) == []
    copy(old / name, tmp_path / "copied")
    assert files_of(tmp_path / "copied") == files_of(old / name)
    for key, cache in views_of(old, name).items():
        cache.require_complete()
        assert cache.plan.sha256 == then[key]["plan"]
        assert (cache.plan.documents, cache.plan.parts) == (
            then[key]["documents"],
            then[key]["parts"],
        )
        assert {n: s.to_json() for n, s in cache.signals.items()} == then[key]["signals"]
        assert rows_of(cache) == then[key]["rows"]
        with np.load(old / "decoded" / f"{key}.npz") as stored:
            found = decoded(cache, stored["docs"])
            assert found.keys() == set(stored) - {"docs"}
            for what, value in found.items():
                np.testing.assert_allclose(value, stored[what], rtol=1e-5, atol=1e-6, err_msg=what)


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_every_cache_is_exported(old: Path, tmp_path: Path, form: str) -> None:
    for name in CACHES:
        for key, cache in views_of(old, name).items():
            for raw in (False, True):
                out = tmp_path / f"{key.replace('/', '-')}-{raw}"
                assert len(export(cache, out, form=form, raw=raw).files) == cache.plan.parts


BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "max_position_embeddings": 32, "vocab_size": 120}
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
GPT |= {"vocab_size": 120}
HIDDEN = ["losses.hidden.weight=1", "losses.hidden.positions=cache"]
RECIPES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "regression": ("kd-mse", BERT, []),
    "small": ("mlm-kd", BERT, [*HIDDEN, "losses.hidden.layer_map=1:1"]),
    "topk_draws": (
        "causal-kd",
        GPT,
        [*HIDDEN, "losses.kl.tail=drawn", "losses.hidden.layer_map=1:1"],
    ),
    "head": ("mlm-kd", BERT, [*HIDDEN, "losses.hidden.layer_map=1:2"]),
}


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("regression", "head") else pytest.param(n, marks=pytest.mark.slow)
        for n in RECIPES
    ],
)
def test_a_student_is_trained_from_it(old: Path, tmp_path: Path, name: str) -> None:
    recipe, sizes, overrides = RECIPES[name]
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    made = train(
        old / name,
        recipe=recipe,
        out=tmp_path / "student",
        config=str(tmp_path / "config.json"),
        overrides=["training.max_steps=2", *overrides],
    )
    log = json.loads((made.folder / "training_log.json").read_text())
    assert all(np.isfinite(entry["loss"]) for entry in log if "loss" in entry)


def test_what_is_damaged_is_made_again_to_the_byte(old: Path, tmp_path: Path) -> None:
    """Ids, codes and records: what hangs on no last bit of a teacher run on another machine."""
    root = Path(shutil.copytree(old / "topk", tmp_path / "topk"))
    whole = files_of(root)
    (root / "logits/ids/c/1/0").write_bytes(b"short")
    (root / "logits/logprobs/c/0/0").unlink()
    (root / "hidden/L2/codes/zarr.json").write_text("{}")
    (root / "complete/zarr.json").unlink()
    assert repair(root, teacher=old / "masked_lm").left == ()
    assert files_of(root) == whole
    assert verify(root, full=True) == []


def test_an_unfinished_build_is_finished(old: Path, tmp_path: Path) -> None:
    """By the versions of today, which the manifest is told; what is there is not touched."""
    root = Path(shutil.copytree(old / "unfinished", tmp_path / "unfinished"))
    forge_manifest(root, lambda record: record.update(software=software()))
    before = {key: data for key, data in files_of(root).items() if "c/0" in key}
    assert open_cache(root).committed == [0]
    finished = build(
        old / "texts.txt",
        teacher=old / "masked_lm",
        task="masked-lm",
        out=root,
        signals=["logits:topk,k=3"],
        max_length=12,
        part_tokens=128,
        batch_tokens=48,
        seed=3,
        same_teacher=True,
    )
    assert verify(root, full=True) == []
    assert before.items() <= files_of(root).items()
    assert finished.manifest["format"] == 2
    docs = finished.plan.docs
    same, whole = finished.soft_labels(docs), open_cache(old / "labels").soft_labels(docs)
    assert torch.equal(same.ids, whole.ids)
    torch.testing.assert_close(same.logprobs, whole.logprobs, rtol=0, atol=0.02)


def test_caches_of_one_plan_are_merged(old: Path, tmp_path: Path) -> None:
    merge([old / "labels", old / "states"], tmp_path / "merged")
    both = open_cache(tmp_path / "merged")
    assert verify(both.path, full=True) == []
    then = json.loads((old / "rows.json").read_text())
    assert rows_of(both) == {**then["labels"]["rows"], **then["states"]["rows"]}
    assert rows_of(both) == then["merged"]["rows"]
