"""What is read out of a model is what its parts compute, in every architecture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdcache.models.run import run
from kdcache.models.teacher import model_sizes
from kdcache.plans.batch import Batch
from kdcache.signals import TAP_KINDS, Activations, Tap
from tests.taps import (
    APART,
    CAPPED,
    FAMILIES,
    QKV,
    attend,
    batch_of,
    close,
    inputs,
    model_of,
)

FEW = ("Bert", "Qwen3")
"""Tried each time: attention in two directions; in one, grouped, windowed and rotated."""
ROTARY = ("ModernBert", "Llama", "Qwen3", "Gemma3Text", "Mistral", "SmolLM3")
PROJECTION = re.compile(r"\.(?:(query|key|value)|([qkv])_(?:proj|lin)|c_attn|Wqkv)$")


def families(*names: str) -> list[Any]:
    """Parameters; all but a few are slow."""
    return [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in names]


@pytest.fixture(scope="module")
def batch(tokenizer: Path) -> Batch:
    return batch_of(tokenizer)


@pytest.mark.parametrize("family", families(*FAMILIES, *CAPPED))
def test_queries_and_keys_make_the_attention_of_the_model(family: str, batch: Batch) -> None:
    """Of an eager model of the same weights: masks, windows, scales and rotations included."""
    implementation = "eager" if family in CAPPED else "sdpa"
    model, eager = model_of(family, attention=implementation), model_of(family, attention="eager")
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        found = run(model, batch, [Tap("query"), Tap("key")])
        wanted = eager(**inputs(eager, batch), output_attentions=True).attentions
    keys = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    assert list(found.attention) == [1, 2, 3]
    for layer, probabilities in enumerate(wanted, start=1):
        assert found[Tap("query", layer)].shape[:3] == probabilities.shape[:3]
        assert found[Tap("key", layer)].shape[1] == keys
        real = batch.mask[:, None, :, None].expand_as(probabilities)
        close(attend(found, layer)[real], probabilities[real], 3e-6)


@pytest.mark.parametrize("family", families(*FAMILIES))
def test_queries_keys_and_values_are_what_their_projections_say(family: str, batch: Batch) -> None:
    """Those that nothing rotates; values of all."""
    model, outputs = model_of(family), {name: [] for name in QKV}

    def keep(kinds: tuple[str, ...]) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            for kind, part in zip(kinds, output.chunk(len(kinds), -1), strict=True):
                outputs[kind].append(part)

        return hook

    for name, module in model.named_modules():
        if found := PROJECTION.search(name):
            short = {kind[0]: kind for kind in QKV}
            kind = found[1] or short.get(found[2])
            module.register_forward_hook(keep((kind,) if kind else QKV))
    with torch.no_grad():
        got = run(model, batch, [Tap(kind) for kind in QKV])
    for kind in ("value",) if family in ROTARY else QKV:
        assert len(outputs[kind]) == 3
        for layer, wanted in enumerate(outputs[kind], start=1):
            assert torch.equal(got.states(Tap(kind, layer)), wanted)
            assert torch.equal(got.rows(Tap(kind, layer)), wanted[batch.mask])


@pytest.mark.parametrize("family", families(*FAMILIES, *APART))
def test_a_configuration_tells_how_wide_every_tap_is(family: str, batch: Batch) -> None:
    model = model_of(family)
    sizes = model_sizes(model.config, "text-classification")
    taps = [Tap(kind) for kind in TAP_KINDS if kind != "head"]
    taps = [tap for tap in taps if tap.name not in QKV or family not in APART]
    with torch.no_grad():
        found = run(model, batch, taps)
    for tap, values in found.values.items():
        assert found.rows(tap).shape[1] == sizes.width(tap.name), tap
        assert len(values) == len(batch["docs"])


@pytest.mark.parametrize("family", families(*FAMILIES, *APART))
def test_hidden_states_are_those_the_model_tells_of(family: str, batch: Batch) -> None:
    """And the embeddings are what its first block reads."""
    model, first = model_of(family), []
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    blocks[0].register_forward_pre_hook(
        lambda _module, args, given: first.append((*args, *given.values())[0]), with_kwargs=True
    )
    with torch.no_grad():
        found = run(model, batch, [Tap("hidden"), Tap("embeddings")])
        out = model(**inputs(model, batch), output_hidden_states=True)
        second = run(model, batch, [Tap("hidden", 2)])
    wanted = out.encoder_hidden_states if family == "T5" else out.hidden_states
    assert len(found.layers("hidden")) == len(wanted) == 4
    assert all(map(torch.equal, found.layers("hidden"), wanted))
    assert torch.equal(found[Tap("embeddings")], first[0])
    assert list(second.values) == [Tap("hidden", 2)]
    assert torch.equal(second[Tap("hidden", 2)], wanted[2])


HEADS = {  # the others apply a linear layer to the vector
    **dict.fromkeys(
        ("Roberta", "XLMRoberta", "Electra", "MPNet"), lambda m, x: m.classifier(x[:, None])
    ),
    "T5": lambda model, x: model.classification_head(x),
}


@pytest.mark.parametrize("family", families(*FAMILIES, *APART))
def test_the_classifier_makes_the_logits_of_pooled(family: str, batch: Batch) -> None:
    model = model_of(family)
    with torch.no_grad():
        found = run(model, batch, [Tap("pooled"), Tap("hidden"), Tap("logits")])
        pooled, last = found[Tap("pooled")], found.layers("hidden")[-1]
        linear = getattr(model, "score", getattr(model, "classifier", None))
        close(HEADS.get(family, lambda _, x: linear(x))(model, pooled), found[Tap("logits")])
        wanted = model(**inputs(model, batch)).logits
    assert torch.equal(found[Tap("logits")], wanted)
    assert pooled.shape == (len(batch["docs"]), 32)
    if family in HEADS and family != "T5":  # the first token
        assert torch.equal(pooled, last[:, 0])
    if hasattr(model, "score"):  # the last
        assert torch.equal(pooled, last[torch.arange(len(last)), batch.mask.sum(1) - 1])


def test_pooled_is_taken_before_dropout(batch: Batch) -> None:
    model, outputs = model_of("Bert", classifier_dropout=0.5), []
    model.bert.pooler.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    eval_mode = run(model, batch, [Tap("pooled")])[Tap("pooled")]
    assert torch.equal(eval_mode, outputs[-1])
    model.train()
    assert torch.equal(run(model, batch, [Tap("pooled")])[Tap("pooled")], outputs[-1])


@pytest.mark.parametrize("pad", [None, 3])
def test_a_decoder_pools_where_it_does_whatever_its_pad(pad: int | None, batch: Batch) -> None:
    """All documents end in token 3, which as a pad is passed over."""
    model = model_of("GPT2")
    model.config.pad_token_id = pad
    with torch.no_grad():
        found = run(model, batch, [Tap("pooled"), Tap("logits"), Tap("hidden", 3)])
    close(model.score(found[Tap("pooled")]), found[Tap("logits")])
    last = batch.mask.sum(1) - (1 if pad is None else 2)
    assert torch.equal(found[Tap("pooled")], found[Tap("hidden", 3)][torch.arange(len(last)), last])


@pytest.mark.parametrize("pads", [False, True])
def test_rows_of_all_tokens_are_those_of_the_mask_and_so_are_their_gradients(pads: bool) -> None:
    """Without a pad, they are the states themselves: nothing is copied."""
    states = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(5) < torch.tensor([[5], [2 if pads else 5], [5]])
    rows = Activations(values={Tap("hidden", 1): states}, mask=mask).rows(Tap("hidden", 1))
    assert torch.equal(rows, states[mask])
    assert (rows.data_ptr() == states.data_ptr()) is not pads
    push = torch.randn_like(rows)
    (found,), (wanted,) = (torch.autograd.grad(x, states, push) for x in (rows, states[mask]))
    assert torch.equal(found, wanted)
