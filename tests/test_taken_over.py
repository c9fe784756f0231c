"""Students that take over a classifier or share parameters, and layers moved by transport."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import batch_norm, linear

from kdcache.building.builder import build
from kdcache.errors import ConfigError
from kdcache.models import load_config, run
from kdcache.models.auto import auto_class
from kdcache.signals import LOGITS, Tap
from kdcache.store import Cache
from kdcache.training.fitting import PROJECTIONS, STATE
from kdcache.training.train import train
from tests.conftest import save_teacher
from tests.test_stages import At
from tests.test_trainer import assert_same_weights, weights

STEPS = ["training.save_strategy=steps", "training.save_steps=1", "data.group_by_length=false"]
SIGNALS = [
    "logits:dense",
    "pooled:dtype=fp32",
    "attention:layers=1-2-3-4,dtype=fp32",
    "hidden:layers=4,positions=all,dtype=fp32",
]


@pytest.fixture(scope="module")
def whole(folder: Path, corpus: Path, classifier: Path) -> Cache:
    """All layers of all tokens, and what the classifier reads."""
    return build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=folder / "taken_over.zarr",
        signals=SIGNALS,
        keep_teacher_weights=True,
        max_length=24,
        limit=48,
    )


class Keep(transformers.TrainerCallback):
    """What the trained model says of a batch and has learned beside itself, when training ends."""

    def __init__(self, cache: Cache) -> None:
        self.batch = cache.batch(cache.plan.docs[:8], [])
        self.logits = self.read = torch.empty(0)
        self.learned: dict[str, torch.Tensor] = {}
        self.rates: set[float] = set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.rates = {group["lr"] for group in given["optimizer"].param_groups}

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model = given["model"].eval()
        with torch.no_grad():
            found = run(model, self.batch, [LOGITS, Tap("pooled")], task="text-classification")
        self.logits, self.read = found[LOGITS], found[Tap("pooled")]
        for name in (PROJECTIONS, STATE):
            if hasattr(model, name):
                state_dict = getattr(model, name).state_dict()
                self.learned |= {key: value.clone() for key, value in state_dict.items()}


def loaded(folder: Path) -> Any:
    """A student from its folder."""
    task = "text-classification"
    return auto_class(task).from_pretrained(folder, config=load_config(folder)).eval()


@pytest.mark.parametrize("projector", ["linear", "bottleneck"])
def test_the_folder_says_what_the_teachers_classifier_makes_of_the_projected_student(
    projector: str, whole: Cache, classifier: Path, tmp_path: Path
) -> None:
    keep = Keep(whole)
    more = ["training.max_steps=3", "training.learning_rate=1e-2"]
    result = train(
        whole,
        recipe="simkd",
        out=tmp_path / "s",
        init_from_teacher=[2, 4],
        overrides=[f"losses.simkd.projector={projector}", *more],
        callbacks=[keep],
    )
    assert max(keep.rates) == pytest.approx(20 * min(keep.rates))
    rows, known = keep.read, keep.learned
    layers = 1 if projector == "linear" else 3
    for place in range(layers):
        rows = linear(rows, known[f"simkd.maps.{place}.weight"])
        statistics = known[f"simkd.mean{place}"], known[f"simkd.variance{place}"]
        affine = known[f"simkd.gains.{place}"], known[f"simkd.shifts.{place}"]
        rows = batch_norm(rows, *statistics, *affine)
        rows = rows.relu() if place + 1 < layers else rows
    teacher = weights(classifier)
    wanted = linear(rows, teacher["classifier.weight"], teacher["classifier.bias"])
    assert not torch.allclose(known["simkd.mean0"], torch.zeros(1))
    torch.testing.assert_close(keep.logits, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        found = run(loaded(result.folder), keep.batch, [LOGITS], task="text-classification")
    torch.testing.assert_close(found[LOGITS], wanted, rtol=1e-4, atol=1e-5)
    assert (result.folder / "config.json").exists() is (projector == "linear")
    if projector == "linear":
        transformers.AutoModelForSequenceClassification.from_pretrained(result.folder)


def test_a_student_learns_to_feed_the_teachers_classifier(whole: Cache, tmp_path: Path) -> None:
    more = ["training.max_steps=30", "training.learning_rate=1e-2", "training.logging_steps=1"]
    options: Any = {"recipe": "simkd", "init_from_teacher": [4], "batch_size": 16}
    log: list[float] = []

    class Read(transformers.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            log.extend([logs["loss"]] if "loss" in logs else [])

    train(whole, out=tmp_path / "s", overrides=more, callbacks=[Read()], **options)
    assert np.mean(log[-5:]) < 0.7 * np.mean(log[:3])


def test_blocks_of_the_upper_half_are_the_lower_ones_with_queries_and_keys_exchanged(
    whole: Cache, classifier: Path, tmp_path: Path
) -> None:
    stages = [f"stages.{name}.training.max_steps=2" for name in ("predictions", "patient")]
    result = train(
        whole,
        recipe="pea-kd",
        out=tmp_path / "s",
        init_from_teacher=[1, 3],
        overrides=[*stages, "training.learning_rate=1e-2"],
    )
    for folder in (result.folder, result.folder / "stages" / "predictions"):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_hidden_layers == 4
        found = weights(folder)
        lower = [name for name in found if ".layer.0." in name or ".layer.1." in name]
        assert len(lower) == 32
        for name in lower:
            above = name.replace(".layer.1.", ".layer.3.").replace(".layer.0.", ".layer.2.")
            other = {"query": "key", "key": "query"}
            above = ".".join(other.get(part, part) for part in above.split("."))
            assert torch.equal(found[name], found[above]), name
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(weights(result.folder)[name], weights(classifier)[name])
    own = sum(parameter.numel() for parameter in model.bert.encoder.layer[:2].parameters())
    every = sum(parameter.numel() for parameter in model.parameters())
    assert result.metrics["parameters"] == every - own


RESUMED: dict[str, tuple[str, list[str], str]] = {
    "simkd": ("simkd", ["training.max_steps=3"], ""),
    "bottleneck": ("simkd", ["training.max_steps=3", "losses.simkd.projector=bottleneck"], ""),
    "pea-kd": (
        "pea-kd",
        ["stages.predictions.training.max_steps=2", "stages.patient.training.max_steps=3"],
        "patient",
    ),
    "bert-emd": ("bert-emd", ["training.max_steps=3"], ""),
}


@pytest.mark.parametrize(
    "case",
    [
        "bottleneck",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("simkd", "pea-kd", "bert-emd")),
    ],
)
def test_a_run_that_is_stopped_goes_on_exactly(case: str, whole: Cache, tmp_path: Path) -> None:
    recipe, overrides, stage = RESUMED[case]
    options: Any = {
        "recipe": recipe,
        "init_from_teacher": [2, 4],
        "overrides": [*overrides, *STEPS],
        "batch_size": 12,
    }
    keeps = Keep(whole), Keep(whole)
    unbroken = train(whole, out=tmp_path / "whole", callbacks=[keeps[0]], **options)
    stop = At(stage, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    if not stage:
        stop = Anywhere(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(whole, out=tmp_path / "run", progress=stop, **options)
    resumed = train(whole, out=tmp_path / "run", resume=True, callbacks=[keeps[1]], **options)
    assert_same_weights(unbroken.folder, resumed.folder)
    for name, values in keeps[1].learned.items():
        assert torch.equal(values, keeps[0].learned[name]), name
    if case == "bert-emd":
        moved = keeps[0].learned["emd.teacher_hidden"]
        assert float(moved.sum()) == pytest.approx(1)
        assert float(moved.max() - moved.min()) > 1e-3


class Anywhere(At):
    """The same of a run of one stage, which has no name."""

    def __init__(self, step: int, do: Any) -> None:
        super().__init__("", step, do)

    def bar(self, label: str, *, unit: str, total: int) -> Any:
        named = f"{label}, stage " if label.startswith("training") else label
        return super().bar(named, unit=unit, total=total)


def test_a_teacher_whose_classifier_has_layers_of_its_own_keeps_none(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    config = transformers.RobertaConfig(
        vocab_size=600,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
        type_vocab_size=2,
        num_labels=3,
    )
    model = transformers.RobertaForSequenceClassification(config)
    teacher = save_teacher(tmp_path / "roberta", tokenizer, model)
    cache = build(
        corpus,
        teacher=teacher,
        task="text-classification",
        out=tmp_path / "c",
        signals=["pooled"],
        max_length=24,
        limit=6,
    )
    assert "pooled/classifier.safetensors" not in cache.files
    with pytest.raises(ConfigError, match=r"takes over the teacher's classifier, .* has none"):
        train(cache, recipe="simkd", out=tmp_path / "s", init_from_teacher=[1])


def test_a_student_whose_classifier_is_not_linear_takes_none_over(
    whole: Cache, tokenizer: Path, tmp_path: Path
) -> None:
    config = transformers.ElectraConfig(
        vocab_size=600, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config.save_pretrained(tmp_path / "electra")
    with pytest.raises(ConfigError, match=r"electra has none that is one linear layer"):
        train(whole, recipe="simkd", out=tmp_path / "s", config=tmp_path / "electra")
