"""Compressed signals and their artifacts survive copy, merge and another teacher beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.maintenance.merging import merge
from kdcache.maintenance.verifying import verify
from kdcache.store import Cache, open_cache


def built(folder: Path, teacher: Path, *signals: str) -> Cache:
    return build(
        folder / "plan", teacher=teacher, task="masked-lm", out=folder / signals[0], signals=signals
    )


def same_labels(one: Cache, other: Cache) -> None:
    docs = one.plan.docs
    wanted, found = one.soft_labels(docs), other.soft_labels(docs)
    assert torch.equal(wanted.ids, found.ids)
    assert torch.equal(wanted.logprobs, found.logprobs)


def test_merged_caches_keep_artifacts_and_packed_arrays(
    tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    plan(prose_file, tokenizer=masked_lm, task="masked-lm", out=tmp_path / "plan", max_length=48)
    labels = built(tmp_path, masked_lm, "logits:topk-small,k=9")
    states = built(tmp_path, masked_lm, "hidden:layers=2,positions=masked,dtype=int4,compress=zstd")
    merge([labels.path, states.path], tmp_path / "both")
    both = open_cache(tmp_path / "both")
    assert verify(both.path, full=True) == []
    same_labels(labels, both)
    wanted, found = (each.hidden(2, both.plan.docs).dense() for each in (states, both))
    np.testing.assert_array_equal(wanted, found)


def test_another_teachers_artifacts_are_its_own(
    tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for file in masked_lm.iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    model = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm)
    with torch.no_grad():
        model.get_output_embeddings().bias.add_(torch.linspace(0, 3, 600))
    model.save_pretrained(second)
    plan(prose_file, tokenizer=masked_lm, task="masked-lm", out=tmp_path / "plan", max_length=48)
    first = built(tmp_path, masked_lm, "logits:hidden-head")
    other = build(
        tmp_path / "plan",
        teacher=second,
        task="masked-lm",
        out=tmp_path / "other",
        signals=["logits:hidden-head"],
    )
    merge([first.path, other.path], tmp_path / "both")
    same_labels(first, open_cache(tmp_path / "both"))
    same_labels(other, open_cache(tmp_path / "both", teacher="second"))
    assert not torch.equal(
        first.soft_labels(first.plan.docs[:1]).logprobs,
        other.soft_labels(first.plan.docs[:1]).logprobs,
    )
