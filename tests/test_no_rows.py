"""No row in a document, a forward batch, a part, a micro-batch: nothing is kept, nothing is lost.

A masked language model's document of unknown words has nothing to mask, a `fraction` leaves a short
document without a row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.building.builder import build
from kdcache.losses import CacheSpec, Hard, HiddenMSE, LogitMSE, Loss, SoftKL
from kdcache.maintenance.exporting import export
from kdcache.maintenance.spot_check import spot_check
from kdcache.maintenance.verifying import verify
from kdcache.models import plain_head
from kdcache.signals import (
    Head,
    Hidden,
    HiddenHead,
    ModelSizes,
    Signal,
    Tap,
    parse,
    with_artifacts,
)
from kdcache.signals.codecs.quantised import FLOATS
from kdcache.signals.codecs.vocabulary import by_frequency
from kdcache.store import Cache
from kdcache.tasks import TASKS
from kdcache.training.objective import Objective
from kdcache.training.train import train
from tests.activations import Outputs, activations, say
from tests.test_fraction import student

LOGITS = [
    "logits:dense,dtype=fp16",
    "logits:topk,k=8,draws=4",
    "logits:topk-small,k=8,draws=4",
    "logits:sampled,n=12",
    "logits:hidden-head,dtype=int4",
]
"""Codecs with the options that are none by default; every codec with its defaults: conformance."""
HIDDEN = [f"hidden:layers=0-4,dtype={dtype}" for dtype in ("int8", "int8,group=8", "int4", *FLOATS)]


def no_outputs(vocabulary: int) -> Outputs:
    """A batch of two documents of three tokens, none of whose rows is kept."""
    mask, none = torch.zeros(2, 3, dtype=torch.bool), torch.empty(0, dtype=torch.int64)
    head = Head(hidden=torch.empty(0, 32), weight=torch.empty(vocabulary, 32))
    hidden = [torch.zeros(2, 3, 32)] * 5
    return activations(
        logits=torch.empty(0, vocabulary), hidden=hidden, mask=mask, selected=none, head=head
    )


@pytest.mark.parametrize("vocabulary", [600, 70_000])
@pytest.mark.parametrize("text", LOGITS + [f"{h},positions=masked" for h in HIDDEN])
def test_no_row_is_encoded_and_decoded(text: str, vocabulary: int) -> None:
    shape = ModelSizes(outputs=vocabulary, hidden=32, layers=4)
    order = by_frequency(np.zeros(0, np.int64), vocabulary)
    signal: Any = with_artifacts({"it": parse(text)}, shape, lambda name: order.to_bytes())["it"]
    if isinstance(signal, HiddenHead):
        object.__setattr__(signal.layer, "layers", {"": (torch.zeros(vocabulary, 32), None)})
    arrays = signal.encode(no_outputs(vocabulary))
    for spec in signal.arrays(TASKS["masked-lm"], shape):
        assert tuple(arrays[spec.name].shape) == (0, *spec.row_shape)
        assert str(arrays[spec.name].numpy().dtype) == spec.dtype
    if isinstance(signal, Hidden):
        assert signal.decode(arrays, Tap("hidden", 4)).dense().shape == (0, 32)
        return
    soft = signal.soft(arrays, vocabulary)
    for field in fields(soft):
        value = getattr(soft, field.name)
        assert value is None or len(value) == 0


LOSSES_OF: dict[str, Callable[[Signal, Signal], Loss | None]] = {
    "hard": lambda logits, hidden: Hard(),
    "kl": lambda logits, hidden: SoftKL(),
    "logit_mse": lambda logits, hidden: LogitMSE() if logits.codec == "dense" else None,
    "hidden": lambda logits, hidden: HiddenMSE(layer_map="1:0,2:4"),
}


def objective(cache: Cache, kinds: list[str]) -> Objective | None:
    """The losses of these kinds; None where one asks for what the cache does not hold."""
    losses: dict[str, Loss] = {}
    for kind in kinds:
        made = LOSSES_OF[kind](cache.signals["logits"], cache.signals["hidden"])
        if made is None:
            return None
        losses[kind] = made
    cache_spec = CacheSpec(
        task=cache.plan.task,
        label_kind=cache.plan.config.label_kind,
        signals=cache.signals,
        shape=cache.shape,
        labelled=cache.plan.labelled,
    )
    return Objective(
        losses, cache_spec, ModelSizes(outputs=cache.shape.outputs, hidden=32, layers=2)
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of unknown words, and two with something to mask, of one part of two."""
    path = tmp_path_factory.mktemp("no_rows") / "texts.txt"
    lines = ["漢字 語"] * 40 + ["the module is a parser", "it returns the value of the object"]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=range(len(LOGITS)), ids=LOGITS)
def masked(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
    masked_lm: Path,
) -> Cache:
    """A cache whose documents, forward batches and a part mostly have no row to keep."""
    hidden = HIDDEN[request.param % len(HIDDEN)]
    return build(
        corpus,
        teacher=masked_lm,
        task="masked-lm",
        out=tmp_path_factory.mktemp("selected") / "cache",
        signals=[LOGITS[request.param], f"{hidden},positions=masked"],
        max_length=16,
        part_tokens=128,
        batch_tokens=24,
        seed=6,
    )


def test_a_part_without_rows_is_built_checked_and_exported(masked: Cache, tmp_path: Path) -> None:
    parts = [masked.plan.part_docs(part) for part in range(masked.plan.parts)]
    rows = [masked.plan.extent(docs, "selected") for docs in parts]
    assert 0 in rows
    assert masked.plan.selected == sum(rows) > 0
    assert verify(masked.path, full=True) == []
    assert masked.fidelity["logits"]["rows"] == sum(rows)
    empty = parts[rows.index(0)]
    for name in masked.layouts:
        assert len(masked.read(name, empty)) == 0
    assert len(masked.soft_labels(empty).ids) == len(masked.hidden(4, empty).dense()) == 0
    for form in ("safetensors", "parquet"):
        assert len(export(masked, tmp_path / form, form=form).files) == len(parts)


def test_the_teacher_agrees_with_documents_without_a_row(masked: Cache) -> None:
    for documents in (1, 40):
        assert spot_check(masked.path, documents, seed=5).findings == []


def test_a_batch_without_rows_adds_nothing_to_any_loss(masked: Cache) -> None:
    lens = masked.plan.per_document["masked_len"][masked.plan.docs]
    docs, model = masked.plan.docs[lens == 0][:3], student("masked-lm", masked.shape.outputs)
    aims = [
        objective(masked, kinds) for kinds in ([[kind] for kind in LOSSES_OF] + [["kl", "hard"]])
    ]
    for aim in filter(None, aims):
        batch = masked.batch(docs, aim.arrays)
        for head in (None, plain_head(model, batch)):
            if aim.matrix and head is not None:
                continue
            model.zero_grad()
            total, terms = aim(say(model, "masked-lm", batch, hidden=True, head=head), batch)
            assert float(total.detach()) == 0
            assert all(float(term) == 0 for term in terms.values())
            total.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert gradients
            assert all((gradient == 0).all() for gradient in gradients)  # nor NaN


def test_a_fraction_leaves_short_forward_batches_without_a_row(
    prose_file: Path, causal_lm: Path, tmp_path: Path
) -> None:
    made = build(
        prose_file,
        teacher=causal_lm,
        task="causal-lm",
        out=tmp_path / "cache",
        signals=[
            "logits:hidden-head,dtype=int4,fraction=0.02",
            "hidden:layers=4,positions=all,dtype=int4,fraction=0.02",
        ],
        limit=20,
        max_length=24,
        batch_tokens=24,
    )
    counts = made.plan.spans(made.plan.docs, made.space_of("logits"))[1]
    assert 0 < counts.sum() < len(counts)
    assert verify(made.path, full=True) == []
    assert made.fidelity["logits"]["rows"] == counts.sum()


BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"intermediate_size": 48, "vocab_size": 600}


@pytest.mark.parametrize(
    "masked",
    [pytest.param(0, marks=pytest.mark.slow), 2, 4],
    ids=lambda number: LOGITS[number],
    indirect=True,
)
def test_micro_batches_without_rows_leave_a_student_finite(masked: Cache, tmp_path: Path) -> None:
    """Micro-batches of two documents, steps of eight: most have no row, and some steps neither."""
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    overrides = ["training.max_steps=5", "training.per_device_train_batch_size=2"]
    overrides += ["training.gradient_accumulation_steps=4", "training.logging_steps=1"]
    overrides += ["losses.hidden.layer_map=1:0,2:4", "losses.hidden.weight=1"]
    overrides += ["losses.kl.temperature=1"]
    made = train(
        masked,
        recipe="mlm-kd",
        out=tmp_path / "out",
        config=str(tmp_path / "config.json"),
        overrides=overrides,
    )
    log = json.loads((made.folder / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 5
    assert 0 in losses
    assert max(losses) > 0
    assert np.isfinite([entry["grad_norm"] for entry in log if "grad_norm" in entry]).all()
