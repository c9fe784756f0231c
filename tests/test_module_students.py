"""Any torch module is a student: it trains on logits and on the taps it declares, or is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import kdcache
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.maintenance.spot_check import spot_check
from kdcache.store import Cache
from tests.conftest import Lines, bert_config
from tests.test_trainer import Watcher, assert_same_weights, log_of

QUICK: Any = {"batch_size": 16, "lr": 1e-2, "seed": 3, "device": "cpu"}
HIDDEN = ("losses.hidden.layer_map=0:1,1:4", "losses.hidden.weight=1")


def steps(count: int) -> list[str]:
    return [f"training.max_steps={count}", f"training.logging_steps={max(1, count // 8)}"]


class Averaging(nn.Module):
    """Two layers over embeddings, and a classifier of their masked mean; or of each token."""

    def __init__(self, outputs: int = 3, by_token: bool = False, **told: Any) -> None:
        super().__init__()
        self.settings: Any = {"outputs": outputs, "by_token": by_token}
        self.taps: Any = {"hidden": [12, 20], "pooled": 20}
        self.by_token = by_token
        self.student = nn.Embedding(600, 12)  # of the name that it lies under itself, inside
        self.inner, self.outer = nn.Linear(12, 20), nn.Linear(20, outputs)
        self.dropout = nn.Dropout(0.1)
        for name, value in told.items():
            setattr(self, name, value)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        words = self.student(input_ids)
        states = torch.tanh(self.inner(self.dropout(words)))
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1)
        logits = self.outer(states if self.by_token else pooled)
        return {"logits": logits, "hidden": [words, states], "pooled": pooled}


class Tensor(Averaging):
    """No more than logits, as a tensor, of tied embeddings."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return super().forward(input_ids, attention_mask)["logits"]


def made(kind: type[Averaging] = Averaging, **settings: Any) -> Averaging:
    torch.manual_seed(5)
    return kind(**settings)


def undropped() -> Averaging:
    """One without dropout, which no two splits of a batch draw alike."""
    student = made()
    student.dropout.p = 0.0
    return student


@pytest.fixture(scope="module")
def trained(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Averaging]:
    """A module trained on soft labels and hidden states, and its folder."""
    out, student = tmp_path_factory.mktemp("module") / "out", made()
    kdcache.train(
        cache, recipe="kd", student=student, out=out, overrides=[*steps(48), *HIDDEN], **QUICK
    )
    return out, student


def test_a_module_learns_from_logits_and_hidden_states_it_declares(
    trained: tuple[Path, Averaging],
) -> None:
    folder, student = trained
    log = log_of(folder)
    for name in ("loss_kl", "loss_hidden"):
        assert log[-1][name] < 0.9 * log[0][name]
    new = made().state_dict()
    assert new.keys() == student.state_dict().keys()
    assert not any(torch.equal(new[name], value) for name, value in student.state_dict().items())


def test_its_folder_holds_its_own_names_and_opens_again(
    trained: tuple[Path, Averaging], corpus: Path
) -> None:
    folder, student = trained
    plain = made()
    plain.load_state_dict(load_file(folder / "model.safetensors"))
    with pytest.raises(ModelError, match=r"class tests.*:Averaging.*say --trust-remote-code"):
        kdcache.open_student(folder)
    opened: Any = kdcache.open_student(folder, trust_remote_code=True)
    ids, mask = torch.tensor([[2, 90, 31, 3]]), torch.ones(1, 4, dtype=torch.int64)
    logits = [one.eval()(ids, mask)["logits"] for one in (student, plain, opened)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    with pytest.raises(ModelError, match=r"say --trust-remote-code"):
        kdcache.evaluate(folder, corpus, device="cpu")
    scores = kdcache.evaluate(folder, corpus, device="cpu", trust_remote_code=True)
    assert scores["documents"] == 240
    assert scores["parameters"] == sum(p.numel() for p in student.parameters())
    assert "kdcache.open_student" in (folder / "README.md").read_text("utf-8")


def test_a_resumed_module_equals_the_unbroken_one_bit_for_bit(cache: Cache, tmp_path: Path) -> None:
    def run(name: str, **more: Any) -> Path:
        options = {"overrides": [*steps(6), *HIDDEN], **QUICK, **more}
        return kdcache.train(
            cache,
            recipe="kd",
            student=made(Tensor) if "taps" in name else made(),
            out=tmp_path / name,
            **options,
        ).folder

    whole = run("whole")
    stopped = Watcher({3: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(KeyboardInterrupt):
        run("broken", progress=stopped)
    with pytest.raises(MismatchError, match=r"student.module = '.*Averaging of 7,5.* parameters'"):
        kdcache.train(
            cache,
            recipe="kd",
            student=made(outputs=4),
            out=tmp_path / "broken",
            overrides=[*steps(6), *HIDDEN],
            resume=True,
            **QUICK,
        )
    assert_same_weights(whole, run("broken", resume=True))


def test_a_module_of_tokens_learns_from_a_language_model(
    masked_cache: Cache, tmp_path: Path
) -> None:
    student = made(outputs=masked_cache.shape.outputs, by_token=True)
    folder = kdcache.train(
        masked_cache,
        recipe="mlm-kd",
        student=student,
        out=tmp_path / "out",
        overrides=steps(8),
        **{**QUICK, "batch_size": 4},
    ).folder
    assert log_of(folder)[-1]["loss"] < log_of(folder)[0]["loss"]


def test_a_model_of_transformers_is_trained_as_it_is(
    cache: Cache, tokenizer: Path, tmp_path: Path
) -> None:
    model = transformers.BertForSequenceClassification(
        bert_config(tokenizer, num_hidden_layers=2, num_labels=3)
    )
    before = model.classifier.weight.detach().clone()
    folder = kdcache.train(
        cache, recipe="pkd-skip", student=model, out=tmp_path / "out", overrides=steps(2), **QUICK
    ).folder
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(saved.classifier.weight, model.classifier.weight.cpu())
    assert not torch.equal(saved.classifier.weight, before)
    assert saved.config.id2label == {0: "asyncio", 1: "email", 2: "tkinter"}


def test_a_module_without_settings_says_what_its_folder_is_for(
    cache: Cache, corpus: Path, tmp_path: Path
) -> None:
    student, told = made(settings=None), Lines()
    with pytest.raises(ConfigError, match=r"tells no `settings`.*--eval"):
        kdcache.train(
            cache, recipe="kd", student=student, out=tmp_path / "no", eval_file=corpus, **QUICK
        )
    assert not (tmp_path / "no").exists()
    folder = kdcache.train(
        cache,
        recipe="kd",
        student=student,
        out=tmp_path / "out",
        overrides=steps(1),
        progress=told,
        **QUICK,
    ).folder
    assert any("holds its weights for code of your own" in line for line in told.messages)
    with pytest.raises(ModelError, match=r"whose class tells no `settings`"):
        kdcache.open_student(folder, trust_remote_code=True)


def test_a_module_is_a_teacher_of_its_outputs_and_taps(
    trained: tuple[Path, Averaging], corpus: Path, tmp_path: Path
) -> None:
    folder, student = trained
    options: Any = {"teacher": folder, "task": "text-classification", "max_length": 48, "limit": 24}
    signals = ["logits:dense", "hidden:layers=1,positions=mean,dtype=fp32"]
    with pytest.raises(ModelError, match="say --trust-remote-code"):
        kdcache.build(corpus, out=tmp_path / "no", signals=signals, **options)
    options["trust_remote_code"] = True
    with pytest.raises(ConfigError, match="the model gives no query: it declares logits, "):
        kdcache.build(corpus, out=tmp_path / "no", signals=["query:layers=1"], **options)
    assert not (tmp_path / "no").exists()
    taught = kdcache.build(corpus, out=tmp_path / "cache", signals=signals, **options)
    assert kdcache.verify(taught.path, full=True) == []
    docs = taught.plan.docs[:5]
    batch = taught.batch(docs)
    with torch.no_grad():
        said = student.eval()(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(
        taught.soft_labels(docs).values, said["logits"], atol=1e-5, rtol=1e-5
    )
    mask = batch["attention_mask"].unsqueeze(-1)
    means = (said["hidden"][1] * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(taught.hidden(1, docs).dense(), means, atol=1e-5, rtol=1e-5)
    out = kdcache.train(
        taught, recipe="kd", student="static:embedding=8,dense=8", out=tmp_path / "out",
        overrides=steps(1), **QUICK,
    ).folder  # fmt: skip
    report = kdcache.evaluate(
        out, corpus, teacher=folder, limit=24, trust_remote_code=True, device="cpu"
    )
    assert report["teacher"]["accuracy"] > 0
    for one in ({"init_from_teacher": [1]}, {"student": "static:embeddings=teacher"}):
        with pytest.raises(
            ModelError, match="is a module, of which students take no layers and no"
        ):
            kdcache.train(taught, recipe="kd", out=tmp_path / "no", **one, **QUICK)
    with pytest.raises(ModelError, match="Averaging, whose code is not run again here"):
        spot_check(taught.path, 3)


def test_a_teacher_of_ones_own_class_is_scored_where_it_is_trusted_and_refused_before_training(
    trained: tuple[Path, Averaging], cache: Cache, corpus: Path, tmp_path: Path
) -> None:
    options: Any = {"student": "static:embedding=8", "eval_teacher": trained[0], **QUICK}
    scored: tuple[Any, ...] = ({"dev_split": 0.2}, {"eval_file": corpus})
    for where in scored:
        with pytest.raises(ModelError, match=r"class tests.*:Averaging.*say --trust-remote-code"):
            kdcache.train(cache, recipe="kd", out=tmp_path / "no", **where, **options)
        assert not (tmp_path / "no").exists()
    on_dev, on_file = (
        kdcache.train(
            cache,
            recipe="kd",
            out=tmp_path / f"out-{number}",
            trust_remote_code=True,
            overrides=steps(1),
            **where,
            **options,
        ).metrics
        for number, where in enumerate(scored)
    )
    assert on_dev["dev"]["teacher"]["source"] == "run: out"
    own = kdcache.evaluate(trained[0], corpus, device="cpu", trust_remote_code=True)
    assert on_file["evaluation"]["teacher"]["accuracy"] == own["accuracy"]


class Odd(Averaging):
    """Gives its hidden states in another shape than it declares."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        out = super().forward(input_ids, attention_mask)
        return {**out, "hidden": [state[:, 1:] for state in out["hidden"]]}


class Looping(Averaging):
    """Goes through documents one by one, which no graph of any number of them does."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        out = super().forward(input_ids, attention_mask)
        lengths = attention_mask.sum(1).tolist()
        means = [rows[:n].mean(0) for rows, n in zip(out["hidden"][1], lengths, strict=True)]
        return {**out, "logits": self.outer(torch.stack(means))}


@pytest.mark.slow  # the exporter takes its time to give up
def test_a_module_that_is_no_graph_is_not_shipped(cache: Cache, tmp_path: Path) -> None:
    options = {"out": tmp_path / "out", "overrides": steps(1), **QUICK}
    folder = kdcache.train(cache, recipe="kd", student=made(Looping), **options).folder
    with pytest.raises(ModelError, match="say --trust-remote-code"):
        kdcache.ship(folder, tmp_path / "shipped", progress=False)
    with pytest.raises(ModelError, match=r"torch cannot export .* to ONNX") as found:
        kdcache.ship(folder, tmp_path / "shipped", trust_remote_code=True, progress=False)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "shipped").exists()


class Silent(Averaging):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return {}


REFUSED = {
    "outputs": (Averaging, {"outputs": 4}, "gives \\[2, 4\\] for its logits .* \\[2, 3\\]"),
    "no logits": (Silent, {}, "gives nothing for its logits"),
    "shape": (Odd, {}, "for its hidden of layer 0 of 2 documents .* its taps declare"),
    "layers": (Averaging, {"taps": {"hidden": [12]}}, "layer map .* needs student layer 1"),
    "width": (Averaging, {"taps": {"hidden": [12, 21]}}, "gives .*, 20\\].*layer 1.*, 21\\]"),
    "undeclared": (Averaging, {"taps": {"pooled": 20}}, "the student gives none"),
    "unknown": (Averaging, {"taps": {"hiden": [1]}}, "did you mean 'hidden'"),
    "one width": (Averaging, {"taps": {"hidden": 12}}, "a list of widths, one a layer"),
    "no mapping": (Averaging, {"taps": ["hidden"]}, "names taps with their widths"),
    "settings": (Averaging, {"settings": {"a": object()}}, "as JSON values"),
    "vocabulary": (Averaging, {"vocabulary": 601}, "ids up to 600 .*`vocabulary`"),
    "tensor": (Tensor, {}, "gives 0 layers of hidden and declares 2 widths"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_does_not_fit_is_refused_before_anything_is_written(
    name: str, cache: Cache, tmp_path: Path
) -> None:
    kind, settings, message = REFUSED[name]
    with pytest.raises((ConfigError, ModelError), match=message) as found:
        kdcache.train(
            cache,
            recipe="kd",
            student=made(kind, **settings),
            out=tmp_path / "out",
            overrides=[*steps(1), *HIDDEN],
            **QUICK,
        )
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_one_learned_map_does_not_serve_layers_of_several_widths(
    cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"layers of the student that are 12 and 20 wide"):
        kdcache.train(
            cache,
            recipe="kd",
            student=made(),
            out=tmp_path / "out",
            overrides=[*HIDDEN, "losses.hidden.shared_projection=true"],
            **QUICK,
        )


def test_a_recipe_with_a_module_needs_the_module(
    trained: tuple[Path, Averaging], cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"is a module, tests.*Averaging of .*, which is given in"
    ):
        kdcache.train(cache, recipe=trained[0] / "recipe.toml", out=tmp_path / "out")


def test_a_file_that_describes_no_student_is_refused(
    trained: tuple[Path, Averaging], corpus: Path, tmp_path: Path
) -> None:
    record = json.loads((trained[0] / "kdcache_student.json").read_text("utf-8"))
    broken: list[Any] = [[], {**record, "format": 2}, {**record, "labels": None}, {}]
    for number, one in enumerate(broken):
        (tmp_path / "kdcache_student.json").write_text(json.dumps(one), "utf-8")
        with pytest.raises(ModelError, match="is no description of a student"):
            kdcache.evaluate(tmp_path, corpus)
        assert number < len(broken)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_a_module_is_not_checkpointed_within_a_step(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing is for a model"):
        kdcache.train(
            cache,
            recipe="kd",
            student=made(),
            out=tmp_path / "out",
            overrides=[*steps(1), "training.gradient_checkpointing=true"],
            **QUICK,
        )
    assert not (tmp_path / "out").exists()
