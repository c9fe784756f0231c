"""Reading taps changes nothing else, works however a model is run, and refuses what it cannot."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdcache.errors import ConfigError, KdcacheError, ModelError
from kdcache.models import check_taps, plain_head
from kdcache.models.run import EQUAL, run
from kdcache.plans.batch import Batch
from kdcache.signals import Tap
from kdcache.tasks import TASKS, Subset
from tests.activations import say
from tests.process_groups import process_group
from tests.taps import AUTO, CLASSES, QKV, attend, batch_of, close, inputs, model_of


@pytest.fixture(scope="module")
def batch(tokenizer: Path) -> Batch:
    return batch_of(tokenizer)


@pytest.mark.parametrize("family", ["Bert", "Qwen3"])
def test_nothing_is_put_into_a_model_that_is_asked_for_logits_and_hidden_states(
    family: str, batch: Batch
) -> None:
    """And asked for the rest, it says the same, bit for bit."""
    model, seen = model_of(family), []
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS

    def look(*_: Any) -> None:
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        seen.append((hooks, "get_interface" in vars(functions)))

    next(m for m in model.modules() if isinstance(m, nn.ModuleList))[1].register_forward_hook(look)
    with torch.no_grad():
        model(**inputs(model, batch), output_hidden_states=True)  # which stay to record them
        plain = say(model, CLASSES, batch, hidden=True)
        run(model, batch, [Tap("logits"), Tap("hidden"), Tap("embeddings")])
        assert seen == seen[:1] * 3
        assert not seen[0][1]
        full = run(model, batch, [Tap(n) for n in ("logits", "hidden", "pooled", *QKV)])
        assert seen[-1] != seen[0]
        assert not vars(functions).get("get_interface")
        model(**inputs(model, batch))
    assert seen[-1] == seen[0]
    assert torch.equal(full[Tap("logits")], plain.logits)
    assert all(map(torch.equal, full.layers("hidden"), plain.hidden))


@pytest.mark.parametrize("task", AUTO)
def test_documents_of_one_length_at_a_time_give_every_tap(task: str, batch: Batch) -> None:
    """On a model that says the same either way."""
    model = model_of("GPT2" if task == "causal-lm" else "Bert", task)
    names = ["hidden", "embeddings", *QKV, "logits", "pooled" if task == CLASSES else "head"]
    with torch.no_grad():
        wanted = run(model, batch, [Tap(name) for name in names], task=task)
        setattr(model, EQUAL, True)
        found = run(model, batch, [Tap(name) for name in names], task=task)
    assert found.values.keys() == wanted.values.keys()
    real = batch.mask[:, None, :, None].expand(-1, 4, -1, batch.mask.shape[1])
    for tap in wanted.values:
        assert found[tap].shape == wanted[tap].shape
        close(found.rows(tap), wanted.rows(tap), 1e-5)
    for layer in (1, 2, 3):
        close(attend(found, layer)[real], attend(wanted, layer)[real], 1e-5)
    if found.head is not None and wanted.head is not None:
        close(found.head.hidden, wanted.head.hidden, 1e-5)


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_the_head_is_left_out_unless_logits_are_asked_for_too(task: str, batch: Batch) -> None:
    model = model_of("Bert" if task == "masked-lm" else "Llama", task)
    batch = batch if task == "masked-lm" else Batch({k: batch[k] for k in batch if k != "selected"})
    passed: list[int] = []
    model.base_model.register_forward_hook(lambda *_: passed.append(1))
    both = run(model, batch, [Tap("logits"), Tap("head")])
    assert len(passed) == 2, "the first time, once more to see that there is such a head"
    alone = run(model, batch, [Tap("head")])
    assert len(passed) == 3
    rows = len(batch["selected"]) if task == "masked-lm" else int(batch.mask.sum())
    head = plain_head(model, batch)
    for found in (both, alone):
        assert found.head is not None
        assert found.head.weight is head.weight
        assert found[Tap("head")] is found.head.hidden
        assert found.head.hidden.shape == (rows, 32)
    assert Tap("logits") not in alone.values
    assert torch.equal(both[Tap("logits")], say(model, task, batch, hidden=False).logits)
    assert torch.equal(head(alone[Tap("head")]), both[Tap("logits")])
    assert "forward" not in vars(head)


def test_the_model_and_its_batch_decide_the_rows_of_the_logits(batch: Batch) -> None:
    for task, family in ((CLASSES, "Bert"), ("masked-lm", "Bert"), ("causal-lm", "GPT2")):
        model = model_of(family, task)
        lean = Batch({k: batch[k] for k in batch if k != "selected" or task == "masked-lm"})
        with torch.no_grad():
            found = run(model, lean, [Tap("logits")])[Tap("logits")]
        assert torch.equal(found, say(model, task, lean, hidden=False).logits.detach())


class Nameless(transformers.BertForMaskedLM):
    """A language model that does not say which part makes its logits."""

    def get_output_embeddings(self) -> None:
        return None


def test_a_language_model_that_cannot_be_told_from_a_classifier_is_refused(batch: Batch) -> None:
    model = Nameless(model_of("Bert", "masked-lm").config).eval()
    with pytest.raises(ModelError, match="Nameless gives logits of every token"):
        run(model, batch, [Tap("logits")])
    found = run(model, batch, [Tap("logits")], task="masked-lm")
    assert found[Tap("logits")].shape == (len(batch["selected"]), 600)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "ModernBert", "Llama"])
def test_pooled_is_proven_in_the_precision_that_a_student_is_trained_in(
    family: str, batch: Batch
) -> None:
    """Accelerate puts autocast around the forward alone, and makes the logits float32 again."""
    model = model_of(family)
    exact = run(model, batch, [Tap("pooled")])[Tap("pooled")]
    model = model_of(family)
    cast = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    model.forward = convert_outputs_to_fp32(cast)
    found = run(model, batch, [Tap("pooled"), Tap("logits")])
    assert found[Tap("logits")].dtype == torch.float32
    torch.testing.assert_close(found[Tap("pooled")].float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("space", ["token", "selected"])
def test_rows_of_a_subset_are_those_of_the_outputs(space: Any, batch: Batch) -> None:
    task: str = "causal-lm" if space == "token" else "masked-lm"
    model, subset = model_of("GPT2" if space == "token" else "Bert", task), Subset(space, 0.5)
    total = int(batch.mask.sum()) if space == "token" else len(batch["selected"])
    rows = torch.arange(0, total, 2)
    with torch.no_grad():
        head = plain_head(model, batch)
        outputs = say(model, task, batch, hidden=True, head=head)
        found = run(model, batch, [Tap("head"), Tap("hidden", 2), Tap("query", 2)], task=task)
    wanted, kept = (
        outputs.at_rows(TASKS[task], subset, rows),
        found.at_rows(TASKS[task], subset, rows),
    )
    assert kept.head is not None
    assert torch.equal(kept.head.hidden, wanted.head.hidden)
    assert torch.equal(kept.mask, wanted.mask)
    positions = "all" if space == "token" else "selected"
    for tap in (Tap("hidden", 2), Tap("query", 2)):
        assert torch.equal(kept.rows(tap, positions), found.rows(tap, positions)[rows])
    assert found.at_rows(TASKS[task], space, None) is found


WRONG: dict[str, tuple[str, list[Tap], str]] = {
    "name": ("Bert", [Tap("querry", 1)], "unknown tap 'querry'; did you mean 'query'"),
    "no layers": ("Bert", [Tap("pooled", 1)], "pooled has no layers; leave the layer out"),
    "too deep": ("Bert", [Tap("key", 4)], "key of layer 4 is out of range; the bert has layers 1"),
    "too shallow": ("Bert", [Tap("value", 0)], "value of layer 0 is out of range"),
    "no state": ("Bert", [Tap("hidden", 4)], r"layers 0 to 3 \(0 is the embedding output\)"),
    "DebertaV2": ("DebertaV2", [Tap("query", 1)], "deberta-v2 gives no query: adds scores of rel"),
    "MPNet": ("MPNet", [Tap("key")], "mpnet gives no key: adds a learned bias of positions"),
    "T5": ("T5", [Tap("value", 2)], r"t5 gives no value: .* take hidden states instead"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_there_is_not_is_refused_by_name(case: str, batch: Batch) -> None:
    """From the configuration alone, and where the model is run."""
    family, taps, text = WRONG[case]
    model = model_of(family)
    with pytest.raises(KdcacheError, match=text):
        check_taps(model.config, taps)
    with pytest.raises(KdcacheError, match=text):
        run(model, batch, taps)


def test_capped_scores_are_refused_unless_attention_is_eager(batch: Batch) -> None:
    model = model_of("Gemma2", attention="eager")
    assert run(model, batch, [Tap("query", 1)]).attention[1].softcap == 2.0
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ModelError, match="load it with attn_implementation='eager', or take hid"):
        run(model, batch, [Tap("query", 1)])


@pytest.mark.parametrize(
    ("family", "task", "tap", "text"),
    [
        ("Bert", "masked-lm", "pooled", "BertForMaskedLM gives no pooled: it has no classifier"),
        ("Bert", CLASSES, "head", "BertForSequenceClassification gives no head"),
        ("Gemma2", "causal-lm", "head", "Gemma2ForCausalLM gives no head: its logits are not"),
    ],
)
def test_what_the_logits_are_not_made_of_is_refused(
    family: str, task: str, tap: str, text: str, batch: Batch
) -> None:
    with pytest.raises(ModelError, match=text):
        run(model_of(family, task), batch, [Tap(tap)])


def test_a_classifier_whose_logits_are_changed_behind_it_is_refused(batch: Batch) -> None:
    model = model_of("Bert")

    def double(_module: Any, _inputs: Any, out: Any) -> None:
        out.logits = 2 * out.logits

    model.register_forward_hook(double)
    with pytest.raises(ModelError, match="its logits are not what its classifier makes"):
        run(model, batch, [Tap("pooled")])


def test_blocks_that_attend_twice_or_not_at_all_are_refused(batch: Batch) -> None:
    model = model_of("Bert")
    model.bert.encoder.layer[1].attention.self.layer_idx = 0
    with pytest.raises(ModelError, match="block 1 attends more than once"):
        run(model, batch, [Tap("query", 1)])
    del model.bert.encoder.layer[2]
    model.bert.encoder.layer[1].attention.self.layer_idx = 1
    with pytest.raises(ModelError, match="hands those of 2 of its 3 blocks"):
        run(model, batch, [Tap("query", 1)])


def test_the_attention_functions_are_given_back_when_a_model_fails(batch: Batch) -> None:
    model = model_of("Bert")
    wrong = Batch({**batch, "input_ids": batch["input_ids"] + 10**6})
    with pytest.raises(IndexError):
        run(model, wrong, [Tap("query")])
    assert "get_interface" not in vars(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_models_in_other_threads_are_not_listened_to(batch: Batch) -> None:
    model, other = model_of("Bert"), model_of("Llama")
    wanted = run(model, batch, [Tap("query")])

    def others(*_: Any) -> None:
        thread = threading.Thread(target=lambda: other(**inputs(other, batch)))
        thread.start()
        thread.join()

    model.bert.encoder.layer[0].register_forward_hook(others)
    found = run(model, batch, [Tap("query")])
    assert all(map(torch.equal, found.layers("query"), wanted.layers("query")))


TRAINED = [Tap("logits"), Tap("hidden", 1), Tap("pooled"), *(Tap(kind, 2) for kind in QKV)]


def gradients(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Of a number that every tap goes into."""
    model.zero_grad()
    found = run(model, batch, TRAINED)
    torch.stack([found.rows(tap).square().mean() for tap in TRAINED]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_flow_through_taps(batch: Batch) -> None:
    """To the blocks below them, as finite differences have it."""
    model = model_of("Bert", attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
    model = model.double().train()
    found = gradients(model, batch)
    assert found.keys() == dict(model.named_parameters()).keys()
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    totals = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight[1, 2] += step
            outputs = run(model, batch, TRAINED)
            totals.append(sum(float(outputs.rows(tap).square().mean()) for tap in TRAINED))
    slope = (totals[0] - totals[1]) / 2e-5
    exact = float(found["bert.encoder.layer.0.attention.self.query.weight"][1, 2])
    assert slope == pytest.approx(exact, rel=1e-5)


def test_under_ddp_taps_and_gradients_are_the_same(tmp_path: Path, batch: Batch) -> None:
    model = model_of("Bert")
    wanted = gradients(model, batch)
    with process_group(tmp_path):
        found = gradients(DistributedDataParallel(model), batch)
    assert {name.removeprefix("module.") for name in found} == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[f"module.{name}"], gradient)


def checkpointed(model: Any, *, reentrant: bool) -> Any:
    name = "activation_checkpointing_enable"  # what transformers has come to call it
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    return model.train()


def test_gradient_checkpointing_gives_the_same_gradients_or_is_refused(batch: Batch) -> None:
    off = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    wanted = gradients(model_of("Bert", **off).train(), batch)
    found = gradients(checkpointed(model_of("Bert", **off), reentrant=False), batch)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        close(found[name], gradient)
    model = checkpointed(model_of("Bert", **off), reentrant=True)
    with pytest.raises(ModelError, match="use_reentrant = false"):
        run(model, batch, [Tap("query", 1)])


@pytest.mark.slow
@pytest.mark.parametrize("tap", ["pooled", "query"])
def test_compiled_models_are_refused(tap: str, batch: Batch) -> None:
    whole, parts = torch.compile(model_of("Bert"), backend="eager"), model_of("Bert")
    parts.bert.encoder.layer[0].compile(backend="eager")
    for model in (whole, parts):
        with pytest.raises(ModelError, match=r"leave training\.torch_compile out"):
            run(model, batch, [Tap(tap)])


def test_taps_are_ordered_and_told_apart() -> None:
    taps = [Tap("query", 2), Tap("hidden"), Tap("hidden", 10), Tap("hidden", 2)]
    assert list(map(str, sorted(taps))) == [
        "hidden",
        "hidden of layer 2",
        "hidden of layer 10",
        "query of layer 2",
    ]
    assert len({*taps, Tap("hidden", 2)}) == 4
    with pytest.raises(ConfigError, match="unknown tap"):
        check_taps(transformers.BertConfig(), [Tap("attention")])
