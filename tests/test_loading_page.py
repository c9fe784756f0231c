"""What docs/loading.md shows is run, one example after the other."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kdcache
from kdcache.store import Cache
from tests.conftest import bert_config

PAGE = Path(__file__).parents[1] / "docs" / "loading.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_examples_run_and_each_loop_reads_every_document(
    cache: Cache, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_labels": 3}
    student = transformers.BertForSequenceClassification(bert_config(tokenizer, **small))
    student.save_pretrained(tmp_path / "student")
    (tmp_path / "cache.zarr").symlink_to(str(cache.path))
    monkeypatch.chdir(tmp_path)
    seen: list[list[int]] = []
    names: dict[str, Any] = {"__name__": "page"}
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    assert len(blocks) == 7
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, example {number + 1}", "exec"), names)
        if number == 0:
            names["loss_of"] = noting(names["loss_of"], seen)
    wanted = sorted(cache.plan.docs.tolist())
    steps = -(-len(wanted) // 32)
    assert len(seen) == 5 * steps  # two epochs, one of the Trainer, two of Accelerate
    epochs = [list(chain(*seen[i : i + steps])) for i in range(0, len(seen), steps)]
    assert [sorted(docs) for docs in epochs] == [wanted] * 5
    orders = [kdcache.CachedDocuments(cache, epoch=epoch).order.tolist() for epoch in (0, 1)]
    assert [epochs[0], epochs[1], epochs[3], epochs[4]] == orders * 2
    assert list(chain(*names["batches"])) == orders[1]


def noting(loss_of, seen):  # type: ignore[no-untyped-def]  # what the page defines
    def noted(model, batch):  # type: ignore[no-untyped-def]
        seen.append(batch["docs"].tolist())
        loss = loss_of(model, batch)
        assert torch.isfinite(loss)
        return loss

    return noted
