"""Documents of a batch in groups of like length: the cheapest, and what a student makes of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import SequenceClassifierOutput

from kdcache.models.run import run
from kdcache.plans.batch import Batch
from kdcache.plans.lengths import cut
from kdcache.signals import Activations, Tap
from tests.taps import AUTO, CLASSES, QKV, SIZES, batch_of, close, model_of


@pytest.mark.parametrize("each", [0, 5, 1000])
@pytest.mark.parametrize("lengths", [[7], [3, 9, 1, 9, 2, 4], [5, 5, 5]])
def test_groups_cost_least_of_all_that_neighbours_in_length_can_make(
    lengths: list[int], each: int
) -> None:
    def cost(number: int, longest: int) -> int:
        return number * longest + each

    order, count = sorted(lengths, reverse=True), len(lengths)
    every = [
        sum(cost(b - a, order[a]) for a, b in itertools.pairwise((0, *ends, count)))
        for number in range(count)
        for ends in itertools.combinations(range(1, count), number)
    ]
    groups = cut(lengths, cost)
    assert sum(cost(len(g), max(lengths[at] for at in g)) for g in groups) == min(every)
    assert sorted(itertools.chain(*groups)) == list(range(count))
    assert all(group == sorted(group) for group in groups)


@pytest.fixture(scope="module")
def batch(tokenizer: Path) -> Batch:
    return batch_of(tokenizer)


@pytest.fixture(autouse=True)
def forwards_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.models.padding.FORWARD", 0)


def shapes(model: Any) -> list[tuple[int, ...]]:
    """The inputs of every forward of a model, as they come."""
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(tuple(named["input_ids"].shape)),
        with_kwargs=True,
    )
    return seen


def gradients(model: Any, found: Activations) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(found.rows(tap).square().mean() for tap in found.values).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("task", AUTO)
def test_a_student_that_trains_reads_documents_of_like_length_and_learns_the_same(
    task: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = "GPT2" if task == "causal-lm" else "Bert"
    off = {} if family == "Bert" else {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    off = off or {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = model_of(family, task, **off).double().train()
    names = ["hidden", *QKV, "logits", "pooled" if task == CLASSES else "head"]
    taps = [Tap(name) for name in names]
    run(model, batch, taps, task=task)  # proves what logits are made of
    seen, looked_up = shapes(model), []
    model.get_input_embeddings().weight.register_hook(lambda _: looked_up.append(1))
    found = run(model, batch, taps, task=task)
    assert len(seen) > 2
    lengths = batch["attention_mask"].sum(1).tolist()
    assert sum(number * longest for number, longest in seen) == sum(lengths)
    parts = gradients(model, found)
    tied = task != CLASSES  # a head of the same weights has a gradient of its own
    assert len(looked_up) <= 1 + tied
    seen.clear()
    monkeypatch.setattr("kdcache.models.padding.FORWARD", 10**6)
    wanted = run(model, batch, taps, task=task)
    assert len(seen) == 1
    for tap in wanted.values:
        close(found.rows(tap).detach(), wanted.rows(tap).detach(), 1e-12)
    whole = gradients(model, wanted)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        close(parts[name], gradient, 1e-10)


@pytest.mark.parametrize("how", ["scored", "without gradients", "normalised"])
def test_a_model_that_does_not_train_or_looks_at_a_whole_batch_is_given_it(
    how: str, batch: Batch
) -> None:
    model = model_of("Bert").train(how != "scored")
    if how == "normalised":
        model.classifier = torch.nn.Sequential(
            torch.nn.BatchNorm1d(model.config.hidden_size), model.classifier
        )
    seen = shapes(model)
    with torch.set_grad_enabled(how != "without gradients"):
        run(model, batch, [Tap("logits")], task=CLASSES)
    assert seen == [tuple(batch["input_ids"].shape)]


def test_a_model_that_looks_other_tokens_up_gets_what_its_table_has_of_them(batch: Batch) -> None:
    model = model_of("Bert").train()
    table, taps = model.get_input_embeddings(), [Tap("embeddings")]
    model.base_model.embeddings.register_forward_pre_hook(
        lambda _module, given, named: (given, named | {"input_ids": named["input_ids"] + 1}),
        with_kwargs=True,
    )
    read: list[torch.Tensor] = []
    table.register_forward_hook(lambda _module, _given, rows: read.append(rows))
    run(model, batch, taps, task=CLASSES)
    parts = read
    assert len(parts) > 1
    short = batch["input_ids"][batch["attention_mask"].sum(1).argmin()]
    count = parts[-1].shape[1]
    assert torch.equal(parts[-1][0], table.weight[short[:count] + 1])


def test_a_batch_of_like_length_is_not_cut(batch: Batch) -> None:
    lengths = batch["attention_mask"].sum(1)
    docs = (lengths > lengths.max() // 2).nonzero().squeeze(1)
    assert len(lengths[docs].unique()) > 1
    inputs = {name: batch[name][docs] for name in ("input_ids", "attention_mask")}
    model = model_of("Bert").train()
    seen = shapes(model)
    run(model, Batch(docs=docs, **inputs), [Tap("logits")], task=CLASSES)
    assert seen == [tuple(inputs["input_ids"].shape)]


class Summed(transformers.BertForSequenceClassification):
    """A model whose pads count for nothing because their row of the table is 0."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        words = self.bert.embeddings.word_embeddings(input_ids)
        return SequenceClassifierOutput(logits=self.classifier(words.sum(1)))


@pytest.mark.parametrize("changed", [False, True])
def test_pads_and_hooks_of_a_table_are_what_they_are_in_one_forward(
    changed: bool, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Summed(transformers.BertConfig(**SIZES, pad_token_id=1)).double().train()
    table = model.get_input_embeddings()
    table.weight.data[1] = 0
    if changed:
        table.register_forward_hook(lambda _module, _given, rows: 2 * rows)
    seen = shapes(model)
    parts = run(model, batch, [Tap("logits")], task=CLASSES)
    assert len(seen) > 2
    monkeypatch.setattr("kdcache.models.padding.FORWARD", 10**6)
    whole = run(model, batch, [Tap("logits")], task=CLASSES)
    close(parts.rows(Tap("logits")), whole.rows(Tap("logits")), 1e-12)
    ours, theirs = gradients(model, parts), gradients(model, whole)
    for name, gradient in theirs.items():
        close(ours[name], gradient, 1e-12)


def test_scores_of_a_model_that_adds_no_mask_without_pads_are_masked_all_the_same(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = model_of("Bert", attention="eager", **off).train()
    taps = [Tap("query", 1), Tap("key", 1)]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 2
    monkeypatch.setattr("kdcache.models.padding.FORWARD", 4)  # some groups have pads, some none
    parts = run(model, batch, taps, task=CLASSES).attention[1]
    monkeypatch.setattr("kdcache.models.padding.FORWARD", 10**6)
    whole = run(model, batch, taps, task=CLASSES).attention[1]
    shape = batch["input_ids"].shape
    masks = [one.full_mask(*shape, torch.device("cpu")) for one in (parts, whole)]
    allowed = [mask if mask.dtype == torch.bool else mask == 0 for mask in masks]
    real = batch.mask[:, None, :, None].expand_as(allowed[1])
    assert torch.equal(allowed[0].expand_as(real)[real], allowed[1].expand_as(real)[real])
