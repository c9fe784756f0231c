"""Gradients at the embedding output: what the outputs' slopes are there, in every architecture."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcache.errors import ConfigError, ModelError
from kdcache.models.module_student import ModuleStudent
from kdcache.models.run import EQUAL, run
from kdcache.models.student_config import StudentConfig
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, Attributing, Tap
from kdcache.students import BiLSTM, StaticEmbeddings
from tests.taps import APART, FAMILIES, batch_of, close, model_of
from tests.test_taps import families

JACOBIAN, ALL = Tap("jacobian"), Tap("attribution", how=Attributing())
ONE = Tap("attribution", how=Attributing(views="one"))


@pytest.fixture(scope="module")
def batch(tokenizer: Path) -> Batch:
    made = batch_of(tokenizer)
    made["labels"] = torch.tensor([2, 0, 1, 1, 2])
    return made


@contextmanager
def moved(model: Any, way: torch.Tensor) -> Iterator[None]:
    """Add something to what the first block reads, once."""
    block, done = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0], []

    def add(_block: nn.Module, args: Any, given: Any) -> Any:
        if done:
            return None
        done.append(True)
        name = next(iter(given), "")
        states = (args[0] if args else given[name]) + way
        return ((states, *args[1:]), given) if args else (args, {**given, name: states})

    handle = block.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def logits_at(model: Any, batch: Batch, way: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), moved(model, way):
        return run(model, batch, [LOGITS])[LOGITS]


@pytest.mark.parametrize("family", families(*FAMILIES, *APART))
def test_a_jacobian_is_the_slope_of_every_logit(family: str, batch: Batch) -> None:
    model = model_of(family).double()
    with torch.no_grad():
        found = run(model, batch, [JACOBIAN, LOGITS, Tap("embeddings")])
        plain = run(model, batch, [LOGITS])
    close(found[LOGITS], plain[LOGITS], 1e-12)
    states = found[Tap("embeddings")]
    torch.manual_seed(1)
    way = torch.randn_like(states)
    own = found[JACOBIAN].unflatten(-1, (3, -1))
    assert not own.requires_grad
    along = torch.einsum("blch,blh->bc", own, way)
    slopes = [
        (logits_at(model, batch, step * way) - logits_at(model, batch, -step * way)) / (2 * step)
        for step in (1e-4, 1e-5)
    ]
    # The smaller step is for a ReLU that turns within the larger one, which is for norms that are
    # float32 whatever is not.
    apart = torch.stack([(along - slope).abs() for slope in slopes]).amin(0)
    assert apart.max() < 2e-3 * along.abs().max()


def by_hand(found: Any, topk: int | None = None) -> torch.Tensor:
    """Attributions by the gradient of -log p, itself made of the logits' own, [B, L, C]."""
    own = found[JACOBIAN].unflatten(-1, (found[LOGITS].shape[1], -1)).double()
    share = found[LOGITS].double().softmax(-1)
    slope = torch.einsum("bc,blch->blh", share, own)[:, :, None] - own
    products = (slope * found[Tap("embeddings")][:, :, None].double()).abs()
    products = products.sort(-1, descending=True).values[..., :topk]
    lengths = products.square().sum(-1).sqrt() * found.mask[..., None]
    return lengths / lengths.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("family", families(*FAMILIES, *APART))
def test_attributions_are_lengths_of_gradient_times_embedding(family: str, batch: Batch) -> None:
    model = model_of(family)
    few = Tap("attribution", how=Attributing(views="all", topk=20))
    with torch.inference_mode():
        found = run(model, batch, [JACOBIAN, LOGITS, Tap("embeddings"), ALL, ONE, few])
    wanted = by_hand(found)
    close(found[ALL].double(), wanted, 3e-5)
    close(found[few].double(), by_hand(found, topk=20), 3e-5)
    assert torch.equal(found[ONE][..., 0], found[ALL][torch.arange(5), :, batch["labels"]])
    assert not found[ALL][~batch.mask].any()
    close(found[ALL].square().sum(1), torch.ones(5, 3), 1e-5)
    assert not found[ALL].requires_grad


def test_of_two_classes_both_have_the_same_attributions(batch: Batch) -> None:
    unlabelled = Batch({name: x for name, x in batch.items() if name != "labels"})
    model = model_of("Bert", num_labels=2)
    with torch.no_grad():
        found = run(model, unlabelled, [ALL, ONE])
    assert torch.equal(found[ALL][..., 0], found[ALL][..., 1])
    assert torch.equal(found[ALL][..., :1], found[ONE])


def test_attributions_have_digits_where_the_teacher_is_sure(batch: Batch) -> None:
    """Where float32 has the probability at 1, and the gradient of its logarithm at nothing."""
    model = model_of("Bert", num_labels=2)
    with torch.no_grad():
        plain = run(model, batch, [ALL])[ALL]
        model.classifier.weight *= 1e3
        sure = run(model, batch, [ALL, LOGITS])
    assert bool((sure[LOGITS].softmax(-1).amax(-1) == 1).all())
    close(sure[ALL], plain, 1e-4)


def test_integrated_gradients_are_the_mean_over_shares_of_the_embeddings(batch: Batch) -> None:
    """Of the label of each document: of two classes, they are not the same any more."""
    model, labels = model_of("Bert", num_labels=2).double(), batch["labels"] % 2
    labelled = Batch({**batch, "labels": labels})
    four = Tap("attribution", how=Attributing(views="one", ig_steps=4))
    with torch.no_grad():
        found = run(model, labelled, [four, Tap("embeddings"), LOGITS])
        states, total = found[Tap("embeddings")], 0.0
        for share in (0.25, 0.5, 0.75, 1.0):
            with moved(model, (share - 1) * states):
                at = run(model, labelled, [JACOBIAN, LOGITS])
            own = at[JACOBIAN].unflatten(-1, (2, -1))
            mean = torch.einsum("bc,blch->blh", at[LOGITS].softmax(-1), own)
            total = total + mean - own[torch.arange(5), :, labels]
        lengths = (total * states).norm(dim=-1) * batch.mask
    close(found[four][..., 0], lengths / lengths.norm(dim=1, keepdim=True), 1e-9)


@pytest.mark.parametrize("tap", [JACOBIAN, ALL, ONE], ids=["jacobian", "all", "one"])
def test_a_document_has_its_own_whatever_else_is_in_its_batch(tap: Tap, batch: Batch) -> None:
    model, pieces = model_of("Bert"), model_of("Bert")
    setattr(pieces, EQUAL, True)
    with torch.no_grad():
        whole, equal = (run(one, batch, [tap])[tap] for one in (model, pieces))
        for doc in range(5):
            length = int(batch["attention_mask"][doc].sum())
            names = ("input_ids", "attention_mask", "token_type_ids")
            alone = Batch({n: batch[n][doc : doc + 1, :length] for n in names if n in batch})
            alone["labels"] = batch["labels"][doc : doc + 1]
            close(run(model, alone, [tap])[tap][0], whole[doc, :length], 2e-5)
    close(equal[batch.mask], whole[batch.mask], 2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_students_have_a_gradient_in_turn(attention: str, steps: int, batch: Batch) -> None:
    """What they change by where a parameter is moved, of blocks and of embeddings."""
    model = model_of("Bert", attention=attention).double()
    tap = Tap("attribution", how=Attributing(ig_steps=steps))
    torch.manual_seed(2)
    against = torch.randn(*batch.mask.shape, 3, dtype=torch.float64)

    def value(one: Any) -> torch.Tensor:
        return (run(one, batch, [tap])[tap] * against).sum()

    parameters = dict(model.named_parameters())
    chosen = [n for n in parameters if n.endswith(("query.weight", "word_embeddings.weight"))]
    ways = {name: torch.randn_like(parameters[name]) for name in chosen}
    made = torch.autograd.grad(value(model), [parameters[name] for name in chosen])
    slope = sum(float((g * ways[n]).sum()) for n, g in zip(chosen, made, strict=True))
    sides = []
    for step in (1e-6, -1e-6):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for name in chosen:
                other.get_parameter(name).add_(step * ways[name])
            sides.append(float(value(other)))
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-5)


def test_what_hangs_on_nothing_has_attributions_of_zero_and_no_gradient(batch: Batch) -> None:
    model = model_of("Bert")
    with torch.no_grad():
        model.classifier.weight.zero_()
    found = run(model, batch, [ALL])[ALL]
    assert not found.detach().any()
    found.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_value_is_attributed_by_its_own_gradient(batch: Batch) -> None:
    model = model_of("Bert", num_labels=1)
    with torch.no_grad():
        found = run(model, batch, [ONE, ALL, JACOBIAN, Tap("embeddings")])
    lengths = (found[JACOBIAN] * found[Tap("embeddings")]).norm(dim=-1) * batch.mask
    assert torch.equal(found[ONE], found[ALL])
    close(found[ONE][..., 0], lengths / lengths.norm(dim=1, keepdim=True), 1e-5)


def test_frozen_embeddings_make_no_difference(batch: Batch) -> None:
    model, frozen = model_of("Bert"), model_of("Bert")
    frozen.bert.embeddings.requires_grad_(False)
    found, same = (run(one, batch, [ALL])[ALL] for one in (model, frozen))
    assert torch.equal(found, same)
    same.sum().backward()
    assert frozen.classifier.weight.grad is not None


def config_of(student: str, **widths: list[int]) -> StudentConfig:
    """What a module of three outputs declares."""
    return StudentConfig(student=student, tap_widths=widths, vocab_size=600, pad_token_id=0)


def test_a_module_gives_them_by_the_embeddings_it_declares(batch: Batch) -> None:
    torch.manual_seed(3)
    module = StaticEmbeddings(vocabulary=600, outputs=3, embedding=8, dense=8, dropout=0.0)
    model = ModuleStudent(config_of("static", embeddings=[8]), module)
    found = run(model, batch, [ALL, JACOBIAN, LOGITS, Tap("embeddings")])
    close(found[ALL].double(), by_hand(found), 3e-5)
    assert found[ALL].requires_grad
    three = Tap("attribution", how=Attributing(ig_steps=3))
    with pytest.raises(ModelError, match="cannot be run from a share of its embeddings"):
        run(model, batch, [three])
    recurrent = BiLSTM(vocabulary=600, outputs=3, embedding=8, hidden=4, dense=4)
    bare = ModuleStudent(config_of("bilstm", pooled=[4]), recurrent)
    with pytest.raises(ConfigError, match="gives no embeddings: it declares logits, pooled"):
        run(bare, batch, [ALL])


def test_what_cannot_be_differentiated_is_refused_in_a_line(batch: Batch) -> None:
    unlabelled = Batch({**batch, "labels": torch.tensor([2, 0, -100, 1, 2])})
    with torch.no_grad(), pytest.raises(ConfigError, match=r"views=one of 3 classes .* views=all"):
        run(model_of("Bert"), unlabelled, [ONE])
    with pytest.raises(ConfigError, match="a gradient of what a classifier says of a document"):
        run(model_of("Bert", "masked-lm"), batch, [JACOBIAN], task="masked-lm")
    again = model_of("Bert").train()
    name = "activation_checkpointing_enable"  # what transformers has come to call it
    (getattr(again, name, None) or again.gradient_checkpointing_enable)()
    with pytest.raises(ModelError, match=r"leave training\.gradient_checkpointing out"):
        run(again, batch, [ALL])
    other = model_of("Bert")
    other.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="has no second derivative: load it with"):
        run(other, batch, [ALL])
