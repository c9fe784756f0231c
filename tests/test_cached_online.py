"""The benchmark with the teacher in the loop: what a cache holds is what the teacher says."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdcache.corpora.standard_library import Docstring
from tests.scripts import script_of

HEADS = "stages.relations.losses.relations.heads=4"
OVERRIDES = {
    "pkd-skip": (),
    "tinybert": (),
    "minilmv2": (HEADS,),
    "bert-emd": (),
    "ad-kd": ("losses.attribution.views=all",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERRIDES)
def test_losses_from_the_cache_are_those_with_the_teacher_in_the_loop(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    classifier: Path,
    sentences: list[Docstring],
    tmp_path: Path,
) -> None:
    online = script_of("cached_vs_online")
    assert set(online.METHODS) == set(OVERRIDES)
    chosen = ("student.init_from_teacher=[2,4]", *OVERRIDES[name])
    monkeypatch.setattr(online, "METHODS", {name: chosen})
    lines = [f"{s.text}\t{s.package}" for s in sentences if "\t" not in s.text]
    (tmp_path / "train.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n", "utf-8")
    found = online.methods(tmp_path, classifier, tmp_path, 1, 64)["largest_loss_difference"][name]
    assert found["steps"] >= 2
    assert 0 < found["fp16"] < 0.01
    assert found["fp16"] <= found["int8"]  # attributions are fp16 in both
