"""Caches of today's format stay what they are: caches.zip was made by make_caches.py, once.

It holds a cache of every codec and type of row, `told.json` with digests of all that they store,
and `decoded/*.npz` with every column that `kdcache export` gave. Caches of the formats before are
in format1.zip and format2.zip.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcache import open_cache, open_plan, train, verify
from kdcache.errors import KdcacheError
from tests.archives import unpack
from tests.damage import flip
from tests.frozen.make_caches import CACHES, MERGED, exported, machine, told, views

NAMES = [*CACHES, *MERGED]
every_cache = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = Path(__file__).with_name("caches.zip")
    return unpack(archive, tmp_path_factory.mktemp("frozen"))


@pytest.fixture(scope="module")
def then(frozen: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((frozen / "told.json").read_text("utf-8"))
    return record


@every_cache
def test_it_is_whole_and_says_of_itself_what_it_said(
    frozen: Path, then: dict[str, Any], name: str
) -> None:
    assert verify(frozen / name, full=True) == []
    for view, cache in views(frozen / name):
        assert told(cache) == then["caches"][view]
    assert open_plan(frozen / name).sha256 == then["caches"][name]["plan"]


def computed(cache: Any, column: str) -> bool:
    """Whether a decoded column went through an exponential, a logarithm or a matrix product."""
    of_head = cache.signals.get("logits") and cache.signals["logits"].codec == "hidden-head"
    return column.endswith("logprobs") or (column == "logits.values" and bool(of_head))


@every_cache
def test_every_column_is_decoded_to_the_bits_it_was(
    frozen: Path, then: dict[str, Any], name: str
) -> None:
    """Where torch or the processor is another, to 1e-6 of what went through exp, log or a product.

    Products of matrices are added up in an order that no two libraries share: 1e-6 everywhere.
    """
    alike = machine() == then["machine"]
    for view, cache in views(frozen / name):
        found = exported(cache)
        with np.load(frozen / "decoded" / f"{view}.npz") as stored:
            assert found.keys() == set(stored)
            for column, rows in found.items():
                assert (rows.dtype, rows.shape) == (stored[column].dtype, stored[column].shape)
                exact = not computed(cache, column) or (alike and "head" not in name)
                if exact:
                    assert rows.tobytes() == stored[column].tobytes(), column
                else:
                    np.testing.assert_allclose(rows, stored[column], rtol=1e-6, atol=1e-6)


def test_a_flipped_bit_is_found_in_every_array(frozen: Path, tmp_path: Path) -> None:
    for name in ("classes", "small", "head"):
        shutil.copytree(frozen / name, tmp_path / name)
        for array in open_cache(frozen / name).layouts:
            shard = next(p for p in (tmp_path / name / array / "c").rglob("*") if p.is_file())
            flip(shard, 77)
            assert any(array in line for line in verify(tmp_path / name, full=True))
            flip(shard, 77)
    with pytest.raises(KdcacheError):
        open_cache(tmp_path)


BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "max_position_embeddings": 32, "vocab_size": 128}
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
GPT |= {"vocab_size": 128}


def learning(layer: int) -> list[str]:
    """Overrides that let the student's only layer learn from one of the cache."""
    return [
        "losses.hidden.weight=1",
        "losses.hidden.positions=cache",
        f"losses.hidden.layer_map=1:{layer}",
    ]


RECIPES: dict[str, tuple[str, list[str]]] = {
    "classes": ("pkd-last", ["losses.hidden.layer_map=1:2"]),
    "values": ("kd-mse", learning(1)),
    "few_classes": ("kd", []),
    "topk": ("mlm-kd", learning(2)),
    "dense": ("mlm-kd", [*learning(2), "losses.kl.temperature=3"]),
    "small": ("mlm-kd", learning(1)),
    "sampled": ("mlm-kd", [*learning(2), "losses.kl.temperature=1"]),
    "head": ("mlm-kd", learning(2)),
    "topk_draws": ("causal-kd", [*learning(2), "losses.kl.tail=drawn"]),
    "small_draws": ("causal-kd", [*learning(2), "losses.kl.tail=drawn"]),
    "head_half": ("causal-kd", learning(0)),
    "wide": ("causal-kd", []),
    "wide_small": ("causal-kd", ["losses.kl.temperature=2"]),
    "labels": ("mlm-kd", []),
    "states": ("hidden", ["losses.kl.weight=0", *learning(1)]),
    "others": ("mlm-kd", []),
    "merged": ("mlm-kd", learning(1)),
    "merged.other": ("mlm-kd", []),
}
QUICK = ("dense", "small_draws")


def test_every_cache_has_a_recipe() -> None:
    assert {view.partition(".")[0] for view in RECIPES} == set(NAMES)


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES],
)
def test_a_student_takes_a_step_from_it(frozen: Path, tmp_path: Path, name: str) -> None:
    folder, _, teacher = name.partition(".")
    cache = open_cache(frozen / folder, teacher=teacher or None)
    recipe, overrides = RECIPES[name]
    sizes = GPT if cache.plan.config.task == "causal-lm" else BERT
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    made = train(
        cache,
        recipe=recipe,
        out=tmp_path / "student",
        config=str(tmp_path / "config.json"),
        overrides=["training.max_steps=1", "training.logging_steps=1", *overrides],
    )
    log = json.loads((made.folder / "training_log.json").read_text("utf-8"))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 1
    assert 0 < losses[0] < np.inf
