"""The students of `kdcache.students`: what they compute, and their way from the cache to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import kdcache
from kdcache.errors import ConfigError, KdcacheError, ModelError
from kdcache.models import StudentSpec, load_student
from kdcache.store import Cache
from kdcache.students import STUDENTS, BiLSTM, StaticEmbeddings
from kdcache_cli.main import main
from tests.test_trainer import log_of

SMALL = {"bilstm": "embedding=24,hidden=12,dense=16", "static": "embedding=24,dense=16"}
LENGTHS = torch.tensor([5, 1, 7])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    ids = torch.randint(0, 40, (3, 7))
    return ids, (torch.arange(7) < LENGTHS[:, None]).long()


def test_a_bilstm_reads_as_torch_s_own_over_packed_documents() -> None:
    """float64, ragged lengths, two layers."""
    torch.manual_seed(1)
    student = BiLSTM(vocabulary=40, outputs=3, embedding=6, hidden=5, layers=2, dense=4)
    student.double().eval()
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True).double()
    for layer, (ahead, behind) in enumerate(zip(student.forwards, student.backwards, strict=True)):
        for name, value in ahead.named_parameters():
            getattr(lstm, name.replace("l0", f"l{layer}")).data.copy_(value)
        for name, value in behind.named_parameters():
            getattr(lstm, name.replace("l0", f"l{layer}") + "_reverse").data.copy_(value)
    ids, mask = batch()
    packed = pack_padded_sequence(
        student.embeddings(ids), LENGTHS, batch_first=True, enforce_sorted=False
    )
    _, (last, _) = lstm(packed)
    pooled = torch.relu(student.dense(torch.cat([last[2], last[3]], -1)))
    out = student(ids, mask)
    torch.testing.assert_close(out["pooled"], pooled)
    torch.testing.assert_close(out["logits"], student.classifier(pooled))
    assert [state.shape[-1] for state in out["hidden"]] == student.taps["hidden"]


def test_static_embeddings_are_a_mean_without_pads() -> None:
    student = StaticEmbeddings(vocabulary=40, outputs=2, embedding=6, layers=0).double().eval()
    ids, mask = batch()
    means = [student.embeddings(row[:n]).mean(0) for row, n in zip(ids, LENGTHS, strict=True)]
    torch.testing.assert_close(student(ids, mask)["logits"], student.classifier(torch.stack(means)))


@pytest.mark.parametrize("name", STUDENTS)
def test_students_go_from_a_cache_to_scores_and_on(
    name: str,
    cache: Cache,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line: trained, scored, trained on, opened."""
    quick = ["--recipe", "kd", "--batch-size", "16", "--lr", "0.01", "--device", "cpu", "--quiet"]
    train = ["train", str(cache.path), *quick]
    steps = ["--set", "training.max_steps=30", "--set", "training.logging_steps=5"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main([*train, "--student", f"{name}:{SMALL[name]}", "--out", first, *steps]) == 0
    losses = [entry["loss"] for entry in log_of(first)]
    assert losses[-1] < 0.9 * losses[0]
    assert f"new weights: `{name}:" in (Path(first) / "README.md").read_text("utf-8")
    capsys.readouterr()
    assert main(["evaluate", first, str(corpus), "--json", "--device", "cpu", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 240
    on = ["--student", first, "--out", second, "--set", "training.max_steps=1"]
    on += ["--set", "training.warmup_steps=0"]
    assert main([*train, *on]) == 0
    record = json.loads((Path(second) / "kdcache_student.json").read_text("utf-8"))
    assert record["student"] == name
    assert record["labels"] == ["asyncio", "email", "tkinter"]
    one: Any = kdcache.open_student(first)
    two: Any = kdcache.open_student(second)
    assert one.settings == two.settings
    apart = (one.classifier.weight - two.classifier.weight).abs().max()
    assert 0 < apart <= 0.011  # one step of Adam from where the first stood


@pytest.mark.parametrize(
    "name",
    ["static", pytest.param("bilstm", marks=pytest.mark.slow)],  # an LSTM takes 20 s
)
def test_students_run_without_torch(name: str, cache: Cache, tmp_path: Path) -> None:
    folder = kdcache.train(
        cache,
        recipe="kd",
        student=f"{name}:{SMALL[name]}",
        out=tmp_path / "student",
        overrides=["training.max_steps=2"],
        device="cpu",
    ).folder
    report = kdcache.ship(folder, tmp_path / "shipped", progress=False)
    assert report["fidelity"]["difference"] <= 1e-4
    assert report["labels"] == ["asyncio", "email", "tkinter"]


class Counting(nn.Module):
    """Of a user's own: words and no more."""

    def __init__(self, *, vocabulary: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__()
        self.settings = {"vocabulary": vocabulary, "outputs": outputs, "scale": scale}
        self.embeddings, self.scale = nn.Embedding(vocabulary, outputs), scale

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        words = self.embeddings(input_ids) * attention_mask.unsqueeze(-1)
        return self.scale * words.sum(1)


def test_a_student_of_a_user_s_own_is_a_line_in_the_table(
    cache: Cache, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDENTS, "counting", Counting)
    folder = kdcache.train(
        cache,
        recipe="kd",
        student="counting:scale=0.5",
        out=tmp_path / "out",
        overrides=["training.max_steps=2"],
        device="cpu",
    ).folder
    opened: Any = kdcache.open_student(folder)
    assert (type(opened), opened.scale) == (Counting, 0.5)
    assert kdcache.evaluate(folder, corpus, device="cpu")["documents"] == 240


def test_students_may_begin_with_the_teacher_s_embeddings(
    cache: Cache, classifier: Path, tmp_path: Path
) -> None:
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    spec = StudentSpec(built="static:embeddings=teacher")
    student = load_student(cache, spec, seed=0).student
    assert torch.equal(student.embeddings.weight, teacher.get_input_embeddings().weight)
    with pytest.raises(ModelError, match=r"are \[600, 32\] and the student's \[600, 24\].*=32"):
        load_student(cache, StudentSpec(built="static:embeddings=teacher,embedding=24"), seed=0)


def test_a_seed_draws_a_student(cache: Cache) -> None:
    spec = StudentSpec(built=f"bilstm:{SMALL['bilstm']}")
    one, same, other = (load_student(cache, spec, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.student.dense.weight, same.student.dense.weight)
    assert not torch.equal(one.student.dense.weight, other.student.dense.weight)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bilstm:hiden=3", "did you mean 'hidden'"),
        ("bilstm:hidden=0", "hidden is a whole number, 1 or more; got 0"),
        ("static:layers=-1", "layers is a whole number, 0 or more"),
        ("static:dropout=1", "dropout is 0 or more and below 1"),
        ("static:embedding=wide", "embedding"),
        ("static:embeddings=mine", "embeddings=teacher starts from the teacher's"),
        ("bilstm:hidden", "needs a value"),
    ],
)
def test_wrong_settings_are_refused(
    source: str, message: str, cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(KdcacheError, match=message):
        kdcache.train(cache, recipe="kd", student=source, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_language_model_s_cache_has_no_such_student(masked_cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="classifies documents and the cache is for masked-lm"):
        kdcache.train(masked_cache, recipe="mlm-kd", student="static", out=tmp_path / "out")
