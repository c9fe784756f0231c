"""What docs/loading.md shows is run, one example after the other."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
import transformers

import kdcache
from kdcache.store import Cache
from tests.conftest import bert_config
from tests.pages import DOCS, blocks, run_python


@pytest.mark.slow
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
    first, *others = blocks(DOCS / "loading.md", "python")
    assert len(others) == 7
    names = run_python([first])
    names["loss_of"] = noting(names["loss_of"], seen)
    run_python(others, names)
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
