"""One student of several tasks: an encoder with a head for each cache, a step of one at a time."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import kdcache
from kdcache.building.builder import build
from kdcache.corpora.standard_library import Docstring
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.models import StudentSpec
from kdcache.models import run as run_model
from kdcache.models.heads import heads_config, load_heads
from kdcache.models.teacher import model_sizes
from kdcache.store import Cache
from kdcache.training.documents import CachedDocuments
from kdcache.training.loader import make_loader
from kdcache.training.mixing import MixedDocuments
from kdcache.training.objective import Objective
from kdcache.training.recipe import load_recipe
from kdcache.training.shares import Shares
from kdcache.training.specs import cache_spec
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.conftest import write_csv

HEADS = ("packages", "words")
CONFIG = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
CONFIG |= {"num_attention_heads": 2}


@pytest.fixture(scope="module")
def values(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[Docstring], regressor: Path
) -> Cache:
    """The raw value of a regression teacher of some texts."""
    folder = tmp_path_factory.mktemp("values")
    rows = [(s.text.upper(), len(s.text) / 100) for s in sentences[::4]]
    return build(
        write_csv(folder / "values.csv", rows),
        teacher=regressor,
        task="text-classification",
        out=folder / "lengths.cache",
        signals=["logits:dense"],
        max_length=48,
    )


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> str:
    """A small student's configuration, with dropout."""
    config = transformers.AutoConfig.from_pretrained(classifier, **CONFIG)
    config.save_pretrained(folder := tmp_path_factory.mktemp("narrow"))
    return str(folder)


@pytest.fixture(scope="module")
def both(cache: Cache, masked_cache: Cache) -> dict[str, Any]:
    return dict(zip(HEADS, (cache, masked_cache), strict=True))


def steps(count: int, **training: Any) -> list[str]:
    given = {"max_steps": count, "logging_steps": 1, "save_strategy": "no", **training}
    return [f"training.{name}={value}" for name, value in given.items()]


def recorded(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def auto(head: str) -> Any:
    kinds = {"packages": "SequenceClassification", "words": "MaskedLM"}
    return getattr(transformers, f"AutoModelFor{kinds[head]}")


def test_heads_have_one_encoder_and_are_ordinary_models(
    both: dict[str, Any], narrow: str, tmp_path: Path, corpus: Path
) -> None:
    run = train(
        both,
        recipe="kd",
        config=narrow,
        out=tmp_path / "s",
        mix="even",
        overrides=[*steps(6), "losses.hard.weight=0.5"],
        eval_file={"packages": corpus},
    )
    weights = {head: load_file(run.folder / head / "model.safetensors") for head in HEADS}
    shared = [n for n in weights["words"] if n.startswith("bert.")]
    assert len(shared) > 10
    for name in shared:
        assert torch.equal(weights["packages"][name], weights["words"][name])
    assert {n for n in weights["packages"] if n not in weights["words"]} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    for head, cache in both.items():
        model, info = auto(head).from_pretrained(run.folder / head, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        told = recorded(run.folder / head, "metrics.json")
        assert told["parameters"] == sum(p.numel() for p in model.parameters())
        assert told["heads"].keys() == set(HEADS)
        assert recorded(run.folder / head, "cache.json")["plan"] == cache.plan.sha256
        card = (run.folder / head / "README.md").read_text("utf-8")
        assert "a head for each of packages, words, on one encoder" in card
        assert f"| task | {cache.plan.task.name} |" in card
        assert transformers.AutoTokenizer.from_pretrained(run.folder / head)("a text")
    (scored,) = [m["evaluation"] for m in run.metrics["heads"].values() if "evaluation" in m]
    again = kdcache.evaluate(run.folder / "packages", corpus, device="cpu")
    assert scored["accuracy"] == again["accuracy"]
    assert recorded(run.folder, "metrics.json")["heads"]["packages"]["evaluation"] == scored
    assert "accuracy" in (run.folder / "packages" / "README.md").read_text("utf-8")
    log = [e for e in recorded(run.folder, "training_log.json") if "loss" in e]
    kinds = {f"loss_{head}.{loss}" for head in HEADS for loss in ("kl", "hard")}
    assert {name for e in log for name in e if name.startswith("loss_")} == kinds
    assert run.metrics["losses"].keys() == {"loss", *kinds}
    assert [row["head"] for row in run.metrics["caches"]] == list(HEADS)


def test_the_loss_of_a_step_is_that_of_its_head_alone(
    both: dict[str, Any], narrow: str, tmp_path: Path, classifier: Path
) -> None:
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.AutoConfig.from_pretrained(classifier, **CONFIG, **off)
    config.save_pretrained(tmp_path / "still")
    quiet = steps(8, learning_rate=0.0, weight_decay=0.0)
    run = train(
        both, recipe="kd", config=tmp_path / "still", out=tmp_path / "s", batch_size=16,
        mix="1,3", seed=4, overrides=quiet,
    )  # fmt: skip
    recipe = load_recipe("kd")
    models, bound = [], []
    for head, cache in both.items():
        model = auto(head).from_pretrained(run.folder / head).eval()
        sizes = model_sizes(model.config, cache.plan.task)
        spec = cache_spec(cache, cache.plan.labelled)
        models.append(model)
        bound.append(Objective(recipe.losses, spec, sizes))
    sets = [CachedDocuments(c, o.arrays) for c, o in zip(both.values(), bound, strict=True)]
    dataset = MixedDocuments(sets, (0.25, 0.75), seed=4, window=recipe.data.window)
    dataset.batch = 16
    expected, turns = [], Counter[int]()
    with torch.no_grad():
        for _, batch in zip(range(8), make_loader(dataset, batch_size=16), strict=False):
            model, objective = models[batch.cache], bound[batch.cache]
            outputs = run_model(model, batch, objective.taps(), task=objective.cache.task)
            expected.append(float(objective(outputs, batch)[0]))
            turns[batch.cache] += 1
    entries = [e for e in recorded(run.folder, "training_log.json") if "loss" in e]
    assert [entry["loss"] for entry in entries] == pytest.approx(expected, rel=1e-5)
    assert set(turns) == {0, 1}


class Watch(transformers.TrainerCallback):
    """Which heads' own weights changed in each step."""

    def __init__(self) -> None:
        self.changed: list[tuple[int, set[int]]] = []
        self.before: list[list[torch.Tensor]] = []

    def _own(self, model: Any) -> list[list[torch.Tensor]]:
        others = (1, 0)
        return [[p.detach().clone() for p in model.idle(other)] for other in others]

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.before = self._own(model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        pairs = zip(self.before, self._own(model), strict=True)
        found = {
            head
            for head, (one, two) in enumerate(pairs)
            if any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))
        }
        self.changed.append((model.turn, found))


def test_a_step_moves_its_own_head_and_leaves_the_others_alone(
    both: dict[str, Any], narrow: str, tmp_path: Path
) -> None:
    watch = Watch()
    hidden = ["losses.hidden.weight=1.0", "losses.hidden.layer_map=1:4"]
    hidden += ["losses.hidden.projection=linear", "losses.hidden.positions=cache"]
    run = train(
        both, recipe="hidden", config=narrow, out=tmp_path / "s", mix="even", lr=1e-3,
        callbacks=[watch], overrides=[*steps(8, weight_decay=0.1, warmup_steps=0), *hidden],
    )  # fmt: skip
    assert {turn for turn, _ in watch.changed} == {0, 1}
    assert all(found == {turn} for turn, found in watch.changed)
    assert run.metrics["losses"].keys() >= {"loss_packages.hidden", "loss_words.hidden"}


class Stop(transformers.TrainerCallback):
    """Asks a run to stop, as Ctrl-C does, behind a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_of_heads_is_the_unbroken_one_bit_for_bit_and_chooses_by_the_mean(
    both: dict[str, Any], narrow: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "recipe": "kd",
        "config": narrow,
        "mix": "annealed",
        "dev_split": "20%",
        "dev_every": 3,
        "lr": 1e-3,
        "batch_size": 32,
        "overrides": steps(9, save_strategy="steps", save_steps=100),
    }
    whole = train(both, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(both, out=tmp_path / "broken", callbacks=[Stop()], **options)
    for changed in ({"mix": "sqrt"}, {"names": ("a", "words")}):
        given = dict(zip(changed.pop("names", HEADS), both.values(), strict=True))
        with pytest.raises(MismatchError, match="holds a run with cache"):
            train(given, out=tmp_path / "broken", resume=True, **{**options, **changed})
    again = train(both, out=tmp_path / "broken", resume=True, **options)
    assert again.metrics["dev"] == whole.metrics["dev"]
    for head in HEADS:
        one, two = (load_file(r.folder / head / "model.safetensors") for r in (whole, again))
        assert [name for name in one if not torch.equal(one[name], two[name])] == []
    dev = whole.metrics["dev"]
    assert dev["metric"] == "mean_score"
    kept = dev["heads"]
    accuracy, nats = kept["packages"]["value"], kept["words"]["value"]
    assert (kept["packages"]["metric"], kept["words"]["metric"]) == ("accuracy", "cross_entropy")
    mean = (accuracy + float(torch.exp(torch.tensor(-nats, dtype=torch.float64)))) / 2
    assert dev["best"]["value"] == pytest.approx(mean, rel=1e-12)
    assert dev["best"]["value"] == max(point["value"] for point in dev["points"])
    assert dev["documents"] == sum(head["documents"] for head in kept.values())


@pytest.mark.slow
def test_the_losses_of_each_head_start_with_the_stated_shares_and_go_on_exactly(
    both: dict[str, Any], narrow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shares, "due", lambda *_: True)
    set_by = ["losses.hard.weight=1e-3", "balance.shares={kl = 1, hard = 3}", "balance.steps=2"]
    options: dict[str, Any] = {
        "recipe": "kd",
        "config": narrow,
        "mix": "even",
        "batch_size": 16,
        "overrides": [*steps(16, save_strategy="steps", save_steps=100), *set_by],
    }
    whole = train(both, out=tmp_path / "whole", **options)
    told: dict[str, list[dict[str, float]]] = {head: [] for head in HEADS}
    for entry in (e for e in recorded(whole.folder, "training_log.json") if "loss" in e):
        (head,) = (head for head in HEADS if f"loss_{head}.kl" in entry)
        told[head].append(entry)
        parts = {n: entry[f"{head}.{n}.weight"] * entry[f"loss_{head}.{n}"] for n in ("kl", "hard")}
        assert entry["loss"] == pytest.approx(sum(parts.values()), rel=1e-4)
        assert entry["share_kl"] == pytest.approx(parts["kl"] / sum(parts.values()))
    for head, entries in told.items():
        assert entries[0]["gradient_hard"] == pytest.approx(0.75, rel=1e-5)  # of the head's first
        kept = [entry[f"{head}.hard.weight"] for entry in entries[1:]]
        assert len(kept) > 2
        assert kept == [kept[0]] * len(kept)  # after two steps of its own
        assert kept[0] != entries[0][f"{head}.hard.weight"]
    weights = whole.metrics["balance"]["weights"]
    assert weights.keys() == {f"{head}.{name}" for head in HEADS for name in ("kl", "hard")}
    with pytest.raises(KeyboardInterrupt):
        train(both, out=tmp_path / "broken", callbacks=[Stop()], **options)
    again = train(both, out=tmp_path / "broken", resume=True, **options)
    assert again.metrics["balance"] == whole.metrics["balance"]
    for head in HEADS:
        one, two = (load_file(r.folder / head / "model.safetensors") for r in (whole, again))
        assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_caches_that_differ_get_a_head_each_and_that_is_said(
    cache: Cache, values: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    settings = "embedding=8,hidden=4,dense=8"
    command = f"train {cache.path} {values.path} --recipe mkd --student bilstm:{settings}"
    words = [word for one in steps(4) for word in ("--set", one)]
    assert main([*command.split(), "--out", str(out), "--device", "cpu", *words]) == 0
    assert (
        "the student has a head for each cache, cache-zarr and lengths" in capsys.readouterr().err
    )
    students = [kdcache.open_student(out / name) for name in ("cache-zarr", "lengths")]
    for name, one in students[0].state_dict().items():
        other = students[1].state_dict()[name]
        assert torch.equal(one, other) == (not name.startswith("classifier."))
    assert [one.settings["outputs"] for one in students] == [3, 1]


def test_heads_of_teacher_layers_keep_their_teachers_heads(cache: Cache, values: Cache) -> None:
    caches = {"one": cache}
    spec = StudentSpec(init_from_teacher=(1, 2))
    config = heads_config(spec, caches | {"two": cache})
    student = load_heads(config, spec, [cache, cache], seed=0)
    first, second = student.task_heads
    assert first.bert.encoder is second.bert.encoder
    assert first.classifier is not second.classifier
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert sum(p.numel() for p in student.idle(0)) == sum(
        p.numel() for p in second.classifier.parameters()
    )


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_what_heads_cannot_be_is_refused_before_anything_is_written(
    both: dict[str, Any], values: Cache, narrow: str, tmp_path: Path, corpus: Path
) -> None:
    pair = {"packages": both["packages"], "lengths": values}

    def refused(error: type[Exception], match: str, caches: Any = pair, **options: Any) -> None:
        given = {"recipe": "mkd", "config": narrow, "out": tmp_path / "x", **options}
        with pytest.raises(error, match=match) as caught:
            train(caches, **given)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    refused(ConfigError, "lengths.cache cannot serve recipe kd for head lengths", recipe="kd")
    refused(ConfigError, "masked.zarr cannot serve recipe mkd for head words", both)
    refused(ConfigError, "letters, digits, - and _", {"a b": values, "b": both["packages"]})
    refused(ConfigError, "got 'stages'", {"stages": values, "b": both["packages"]})
    refused(ConfigError, "is the only one: leave the name out", {"one": values})
    refused(ConfigError, "as in --eval packages=", eval_file=corpus)
    refused(ConfigError, "unknown head in --eval 'lenght'", eval_file={"lenght": corpus})
    refused(ConfigError, "--eval a=.* names a head, and the student has one", values,
            eval_file={"a": corpus})  # fmt: skip
    refused(ConfigError, "--dev packages=FILE --dev lengths=FILE", dev=corpus)
    refused(ConfigError, "name a dev file for each", dev={"packages": corpus})
    refused(ConfigError, "--dev a=FILE names a head", values, dev={"a": corpus})
    refused(ConfigError, "--mix takes shares .* one of even, sqrt", mix="half")
    refused(ConfigError, "are not sharded", overrides=["training.fsdp=full_shard"])
    checkpointing = ["training.gradient_checkpointing=true"]
    refused(ConfigError, "gradient_checkpointing is for a model", overrides=checkpointing)
    module = kdcache.students.StaticEmbeddings(vocabulary=600, outputs=1)
    refused(ConfigError, "a head for each of packages, lengths is made of", config=None,
            student=module)  # fmt: skip
    refused(ConfigError, "no parameter of the student is called 'clasifier", overrides=[
        'trainable=["clasifier.*"]'])  # fmt: skip


def test_teachers_of_two_shapes_cannot_give_one_encoder(
    cache: Cache, tokenizer: Path, sentences: list[Docstring], tmp_path: Path
) -> None:
    from tests.conftest import bert_config, save_teacher

    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    thin = bert_config(tokenizer, hidden_size=16, **labels)
    teacher = save_teacher(
        tmp_path / "thin", tokenizer, transformers.BertForSequenceClassification(thin)
    )
    rows = [(s.text, "ab"[i % 2]) for i, s in enumerate(sentences[:12])]
    other = build(
        write_csv(tmp_path / "few.csv", rows),
        teacher=teacher,
        task="text-classification",
        out=tmp_path / "few.cache",
        signals=["logits:dense"],
        max_length=48,
    )
    message = r"heads cache-zarr and few cannot have one encoder: embeddings\.\S+ is \[\d+, 32\]"
    with pytest.raises(ModelError, match=message):
        train([cache, other], recipe="mkd", init_from_teacher="1-2", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
