"""What documents count for: by a column, their class, or what the teacher says of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.special import softmax

import kdcache
from kdcache.errors import ConfigError, CorpusError, KdcacheError, MismatchError
from kdcache.losses import SoftKL
from kdcache.losses.example_weights import EXAMPLE_WEIGHTS, Way, expertise
from kdcache.losses.pairs import Pairs
from kdcache.losses.pool import Pool
from kdcache.losses.selecting import SELECTED
from kdcache.losses.weighed import Asked
from kdcache.plans.subsample import uniforms
from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from kdcache.training.specs import cache_spec
from kdcache.training.train import train
from kdcache.training.weighing import Weigher
from kdcache.training.weighting import weighting_of
from tests import steps
from tests.conformance.test_losses import documents
from tests.objectives import batch_of, bind
from tests.steps import ALL, BATCH, TURNS, Student, steps_of
from tests.test_several_caches import other
from tests.test_stages import At
from tests.test_steps import part_labelled, values
from tests.test_teachers_run import both
from tests.test_trainer import assert_same_weights, log_of, narrow

__all__ = ["both", "narrow", "other", "part_labelled", "values"]  # fixtures

TASK = "text-classification"
SHORT = ("training.max_steps=2", "training.logging_steps=1", "training.learning_rate=1e-3")


def with_weights(corpus: Path, out: Path, weigh: Callable[[int], object]) -> Path:
    """The corpus with a column of weights and one of domains."""
    with corpus.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "weight", "domain"])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, "weight": weigh(number), "domain": f"d{number % 3}"})
    return out


def heaviness(number: Any) -> Any:
    """What the documents of the session's corpus weigh, by their number."""
    return number % 5 * 0.75


@pytest.fixture(scope="module")
def weighed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's corpus with those weights."""
    return with_weights(corpus, tmp_path_factory.mktemp("w") / "weighed.csv", heaviness)


def weigher(cache: Cache, table: Any) -> Weigher:
    weighting = weighting_of(table)
    assert weighting is not None
    spec = cache_spec(cache, cache.plan.labelled, several=True)
    pool = Pool(cache.plan, cache.plan.docs)
    return Weigher(weighting, cache, spec, pool, cache.shape, seed=0)


def weights_of(
    cache: Cache, table: Any, step: int = 0, documents: int = 40
) -> np.ndarray[Any, Any]:
    """What the first documents of a cache weigh."""
    made = weigher(cache, table)
    batch = cache.batch(cache.plan.docs[:documents], made.arrays)
    assert made.weigh(batch, step) == pytest.approx(float(batch["example_weight"].sum()))
    return batch["example_weight"].numpy()


def test_every_way_is_its_formula(cache: Cache, weighed: Path) -> None:
    docs = cache.plan.docs[:40]
    batch = cache.batch(docs)
    labels = batch["labels"].numpy()
    chances = softmax(batch["logits/values"].double().numpy(), 1)
    true = chances[np.arange(40), labels]
    counts = np.bincount(cache.plan.per_document["label"][cache.plan.docs])
    column = heaviness(cache.plan.per_document["doc_id"][docs])
    right = chances.argmax(1) == labels
    assert 0 < right.sum() < 40
    from_file = {"column": "weight", "file": str(weighed)}
    expected: dict[str, tuple[dict[str, Any], Any]] = {
        "column": (from_file, column),
        "class-balance": ({"power": 0.5}, (counts.sum() / (3 * counts[labels])) ** 0.5),
        "teacher-probability": ({"power": 2}, true**2),
        "teacher-confidence": ({}, chances.max(1)),
        "teacher-correct": ({"wrong": 0.25}, np.where(right, 1, 0.25)),
        "expertise": (
            {"prototype": "weight", "file": str(weighed)},
            (1 + column) / (1 + np.exp((1 - true) ** 2)),
        ),
    }
    expected["selector"] = ({"keep": 0.7}, (uniforms(docs, 0, 0, SELECTED) < 0.7) * 1.0)
    assert expected.keys() == EXAMPLE_WEIGHTS.keys()
    for name, (options, wanted) in expected.items():
        found = weights_of(cache, {"name": name, **options})
        assert found == pytest.approx(wanted, rel=1e-5), name


def test_expertise_is_that_of_meta_kd() -> None:
    """Weights of its published code, executed, for these logits and labels."""
    given = documents("text-classification")
    given = given.some([0, 1, 2, 3])
    logits = [
        [3.09685498, 2.50453326],
        [0.75621818, -1.31333508],
        [-0.11446069, -1.90870674],
        [-2.72495213, -0.76132997],
    ]
    published = [0.4683402, 0.31251629, 0.32405127, 0.49621317]
    values = np.asarray(logits)
    soft = {
        "ids": np.tile(np.arange(2), (4, 1)),
        "logprobs": values - np.logaddexp(*values.T)[:, None],
        "values": values,
    }
    made = {**given.__dict__, "soft": soft, "labels": np.asarray([0, 1, 1, 1])}
    made["logits"] = given.logits[:, :2]
    given = type(given)(**made)
    objective, batch = bind({"kl": SoftKL()}, given), batch_of(given)
    nothing: Any = None
    asked = Asked(
        batch=batch,
        pool=nothing,
        seed=0,
        step=0,
        soft=objective.bound["kl"].matches[0],
        pairs=Pairs(objective.cache, batch, nothing, project=nothing),
    )
    assert expertise(asked).tolist() == pytest.approx(published, rel=1e-6)


def test_prototypes_of_domains_are_told_by_the_cached_vectors_in_one_pass(
    corpus: Path, classifier: Path, cache: Cache, weighed: Path, tmp_path: Path
) -> None:
    signals = ["logits:dense", "hidden:layers=4,positions=all,dtype=fp32", "pooled:dtype=fp32"]
    made = kdcache.build(
        str(corpus), teacher=classifier, task=TASK, out=tmp_path / "c", signals=signals
    )
    docs, given = made.plan.docs, made.batch(made.plan.docs)
    rows = np.split(given["hidden/L4/codes"].double().numpy(), np.cumsum(lengths_of(given))[:-1])
    domain = made.plan.per_document["doc_id"][docs] % 3
    plain = weights_of(made, "expertise", documents=len(docs))
    vectors = {
        "mean": np.stack([document.mean(0) for document in rows]),
        "cls": np.stack([document[0] for document in rows]),
        "pooled": given["pooled/codes"].double().numpy(),
    }
    for name, known in vectors.items():
        means = np.stack([known[domain == place].mean(0) for place in range(3)])
        others = (means.sum(0) - means) / 2
        near = (cosines(known, means[domain]) + cosines(known, others[domain])) / 2
        table = {"name": "expertise", "domain": "domain", "file": str(weighed), "vectors": name}
        found = weights_of(made, table, documents=len(docs))
        assert found == pytest.approx(plain * (1 + near), rel=1e-5), name
        assert near.std() > 0


def cosines(one: Any, other: Any) -> Any:
    """Those of rows."""
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def lengths_of(batch: Any) -> Any:
    """Tokens of each document."""
    return batch["attention_mask"].sum(1).numpy()


@pytest.mark.parametrize(
    ("column", "options", "error", "message"),
    [
        ("domian", {}, ConfigError, "has no column 'domian'; its columns are .*domain"),
        ("one", {}, ConfigError, "all documents are of one, 'same': name a column of several"),
        ("gaps", {}, CorpusError, "column 'gaps' is empty somewhere; every document needs one"),
        ("domain", {"vectors": "first"}, ConfigError, "vectors of data.example_weights 'first'"),
        ("domain", {"vectors": "pooled"}, ConfigError, "needs pooled; the cache holds logits"),
        ("domain", {"prototype": "weight"}, ConfigError, "both say how near documents are"),
        ("domain", {"file": ""}, ConfigError, "file = the corpus of each cache"),
    ],
)
def test_domains_that_tell_nothing_are_refused(
    cache: Cache,
    weighed: Path,
    column: str,
    options: dict[str, str],
    error: type[KdcacheError],
    message: str,
    tmp_path: Path,
) -> None:
    with weighed.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "more.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "one", "gaps"])
        writer.writeheader()
        for number, row in enumerate(rows):
            writer.writerow({**row, "one": "same", "gaps": "d" if number != 9 else " "})
    table = {"name": "expertise", "domain": column, "file": str(tmp_path / "more.csv")}
    with pytest.raises(error, match=message):
        weigher(cache, {"vectors": "cls", **table, **options})


def test_documents_without_a_label_count_like_the_mean_or_as_nothing_is_known(
    part_labelled: Cache,
) -> None:
    docs = part_labelled.plan.docs[:40]
    without = part_labelled.plan.per_document["label"][docs] < 0
    assert 0 < without.sum() < 40
    assert (weights_of(part_labelled, "class-balance")[without] == 1).all()
    assert (weights_of(part_labelled, "teacher-correct")[without] == 1).all()
    unknown = weights_of(part_labelled, "teacher-probability")[without]
    assert unknown == pytest.approx(1 / 3)


def test_rows_of_tokens_are_weighed_by_their_document(
    masked_cache: Cache, causal_cache: Cache
) -> None:
    for cache in (masked_cache, causal_cache):
        for way in ("teacher-probability", "teacher-confidence", "teacher-correct"):
            found = weights_of(cache, way)
            assert ((found >= 0) & (found <= 1)).all()
            assert way == "teacher-correct" or found.std() > 0  # random teachers are seldom right
    with pytest.raises(ConfigError, match="for documents of one class each"):
        weights_of(causal_cache, "class-balance")


def test_a_user_may_weigh_by_step_domain_and_another_teacher(
    both: Cache, weighed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rising(asked: Asked, *, domain: str, file: str) -> torch.Tensor:
        there = [cell == domain for cell in asked.cells("domain", file)]
        return torch.tensor(there) * float(asked.step)

    monkeypatch.setitem(EXAMPLE_WEIGHTS, "rising", Way(rising))
    table = {"name": "rising", "domain": "d1", "file": str(weighed)}
    inside = both.plan.per_document["doc_id"][both.plan.docs[:40]] % 3 == 1
    assert weights_of(both, table, step=7) == pytest.approx(7 * inside)
    first, small, named = (
        weights_of(both, {"name": "teacher-confidence", "teacher": name})
        for name in ("", "small", "classifier")
    )
    assert (first == named).all()
    assert (first != small).any()
    with pytest.raises(ConfigError, match=r"unknown teacher in data.example_weights 'smal'; did"):
        weights_of(both, {"name": "teacher-confidence", "teacher": "smal"})


@pytest.mark.parametrize("mean", ["weights", "documents"])
def test_a_step_of_weighed_documents_is_its_whole_batch_and_divides_by_what_is_said(
    mean: str, cache: Cache, classifier: Path, weighed: Path, tmp_path: Path
) -> None:
    """However it is cut; a mean over documents is that over weights times the mean weight."""
    made = weigher(cache, {"name": "column", "column": "weight", "file": str(weighed)})
    table = {"name": "column", "column": "weight", "file": str(weighed), "mean": mean}
    known = (cache, classifier, ALL["kl and hard"], torch.float64)
    trainer, taken = Student(*known).trainer(tmp_path, turns=TURNS)
    trainer.weighers = [weigher(cache, table)]
    trainer.dataset.weighed = True  # type: ignore[attr-defined]  # of one cache, which has it
    (first, _), (gradients, _) = steps.run(trainer, taken)
    whole = Student(*known)
    batch = whole.data().read(steps_of(whole.data(), BATCH * TURNS)[0])
    weight = made.weigh(batch, 0) / len(batch["docs"])
    assert weight not in (0.0, 1.0)
    loss, _, exact = whole.at_once(batch, trainer.args)
    factor = 1.0 if mean == "weights" else weight
    assert first["loss"] == pytest.approx(factor * loss, rel=2e-6)
    for name, gradient in exact.items():
        assert torch.allclose(gradients[name], factor * gradient, atol=1e-9), name
    assert trainer.mean_weight() == pytest.approx(
        made.weigh(cache.batch(whole.data().docs), 0) / len(whole.data())
    )


def test_weights_that_were_moved_are_added_up_on_the_host(cache: Cache, weighed: Path) -> None:
    made = weigher(cache, {"name": "column", "column": "weight", "file": str(weighed)})
    batch = cache.batch(cache.plan.docs[:8], [])
    batch.weighed = True
    moved = batch.to("meta")
    total = made.weigh(moved, 0)
    assert moved["example_weight"].device.type == "meta"
    rows = bind({"kl": SoftKL()}, documents("text-classification")).bound["kl"].rows
    assert moved.total(rows) == pytest.approx(total)


def test_a_document_that_weighs_nothing_teaches_nothing(
    cache: Cache, corpus: Path, narrow: str, tmp_path: Path
) -> None:
    """A student of documents of weight 1 beside some of weight 0 learns what those of weight 1
    teach: every term logged is that of these alone."""
    file = with_weights(corpus, tmp_path / "some.csv", lambda n: int(n % 2))
    table = f'data.example_weights={{name="column", column="weight", file="{file}"}}'
    out = train(cache, out=tmp_path / "run", config=narrow, overrides=[*SHORT, table]).folder
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    assert metrics["example_weights"]["way"] == "column (column=weight)"
    assert metrics["example_weights"]["mean"] == pytest.approx(0.5, abs=0.2)
    card = (out / "README.md").read_text("utf-8")
    assert "| documents weighed by | column (column=weight) |" in card
    assert load_recipe(out / "recipe.toml").data.weighting is not None
    whole = train(cache, out=tmp_path / "whole", config=narrow, overrides=SHORT).folder
    assert log_of(out)[0]["loss_kl"] != log_of(whole)[0]["loss_kl"]


STAGES = """
[training]
learning_rate = 1e-3
max_steps = 3
logging_steps = 1
per_device_train_batch_size = 8
gradient_accumulation_steps = 2
save_strategy = "steps"
save_steps = 1

[data.example_weights]
name = "column"
column = "weight"
file = "FILE"

[[stages]]
name = "own"
[stages.losses.kl]
[stages.data]
example_weights = "teacher-confidence"

[[stages]]
name = "column"
[stages.losses.kl]
[stages.losses.hard]

[[stages]]
name = "alike"
[stages.losses.hard]
[stages.data]
example_weights = ""
"""


@pytest.mark.slow
def test_stages_weigh_each_their_way_and_go_on_exactly_and_only_by_the_same_column(
    cache: Cache, weighed: Path, narrow: str, tmp_path: Path
) -> None:
    file = tmp_path / "weighed.csv"
    shutil.copy(weighed, file)
    recipe = tmp_path / "stages.toml"
    recipe.write_text(STAGES.replace("FILE", str(file)), "utf-8")
    options: dict[str, Any] = {"recipe": recipe, "config": narrow}
    whole = train(cache, out=tmp_path / "whole", **options)
    told = {name: one.get("example_weights") for name, one in whole.metrics["stages"].items()}
    assert told["own"]["way"] == "teacher-confidence"
    assert told["column"]["way"] == "column (column=weight)"
    assert told["alike"] is None
    out = tmp_path / "run"
    stop = At("column", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(cache, out=out, progress=stop, **options)
    text = file.read_text("utf-8")
    file.write_text(text.replace(",0.75,d", ",0.8,d"), "utf-8")
    with pytest.raises(MismatchError, match="weighs documents by other values of weight: put the"):
        train(cache, out=out, resume=True, **options)
    file.write_text(text, "utf-8")
    resumed = train(cache, out=out, resume=True, **options)
    assert_same_weights(whole.folder, resumed.folder)
    card = (resumed.folder / "README.md").read_text("utf-8")
    assert "own: teacher-confidence; column: column (column=weight) |" in card


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_what_the_record_says_of_the_stages_that_are_over(
    cache: Cache, weighed: Path, narrow: str, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "stages.toml", tmp_path / "run"
    own = '[stages.data]\nexample_weights = "teacher-confidence"\n'  # else as the recipe says
    recipe.write_text(STAGES.replace("FILE", str(weighed)).replace(own, ""), "utf-8")
    options: dict[str, Any] = {"recipe": recipe, "config": narrow, "out": out}
    stop = At("column", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(cache, progress=stop, **options)
    begun = json.loads((out / "cache.json").read_text("utf-8"))["example_weights"]
    assert begun.keys() == {"own", "column"}
    train(cache, resume=True, **options)
    assert json.loads((out / "cache.json").read_text("utf-8"))["example_weights"] == begun


class StopAt(transformers.TrainerCallback):
    """Ends the process's work after a step, as a cluster does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_was_stopped_behind_its_last_step_is_finished(
    cache: Cache, weighed: Path, narrow: str, tmp_path: Path
) -> None:
    table = f'data.example_weights={{name="column", column="weight", file="{weighed}"}}'
    options: dict[str, Any] = {"config": narrow, "overrides": [*SHORT, table]}
    with pytest.raises(KeyboardInterrupt):
        train(cache, out=tmp_path / "run", callbacks=[StopAt(2)], **options)
    run = train(cache, out=tmp_path / "run", resume=True, **options)
    assert run.metrics["steps_run"] == 0
    assert run.metrics["example_weights"]["mean"] is None


def test_each_of_several_caches_is_weighed_by_its_own_corpus(
    cache: Cache, other: Cache, weighed: Path, narrow: str, tmp_path: Path
) -> None:
    second = with_weights(other.path.parent / "other.csv", tmp_path / "two.csv", lambda n: 3)
    files = f'["{weighed}", "{second}"]'
    table = f'data.example_weights={{name="column", column="weight", file={files}}}'
    options: dict[str, Any] = {"config": narrow, "batch_size": 64, "epochs": 1}
    result = train([cache, other], out=tmp_path / "run", overrides=[table], **options)
    mean = (sum(map(heaviness, range(240))) + 3 * 77) / (240 + 77)
    assert result.metrics["example_weights"]["mean"] == pytest.approx(mean)
    one = f'data.example_weights={{name="column", column="weight", file="{weighed}"}}'
    with pytest.raises(ConfigError, match=r"file = the corpus of each cache.* expected 2; got 1"):
        train([cache, other], out=tmp_path / "x", overrides=[one], **options)
    swapped = files.replace(str(weighed), "w").replace(str(second), str(weighed))
    table = table.replace(files, swapped.replace('"w"', f'"{second}"'))
    with pytest.raises(MismatchError, match=r"is not the corpus of .*cache"):
        train([cache, other], out=tmp_path / "x", overrides=[table], **options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("teacher", "unknown data.example_weights 'teacher'; did you mean 'teacher-prob"),
        ("column", "data.example_weights needs column"),
        ("3", "must be a text or a table; got 3"),
        ("{power = 2}", "needs the name of a way"),
        ('{name = "class-balance", pwer = 2}', "unknown field .* 'pwer'; did you mean 'power'"),
        ('{name = "class-balance", power = "2"}', r"example_weights\.power must be a number"),
        ('{name = "class-balance", mean = "rows"}', "mean 'rows' .known: weights, documents"),
    ],
)
def test_weights_that_make_no_sense_are_refused_with_the_recipe(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("kd", [f"data.example_weights={value}"])


def test_what_a_cache_or_a_file_cannot_serve_is_refused_before_anything_loads(
    cache: Cache, weighed: Path, corpus: Path, narrow: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def refused(error: type[KdcacheError], match: str, **table: Any) -> None:
        text = ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
        overrides = [f"data.example_weights={{{text}}}"]
        with pytest.raises(error, match=match) as caught:
            train(cache, out=tmp_path / "run", config=narrow, overrides=overrides)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()

    def from_file(file: Path, column: str = "weight") -> dict[str, str]:
        return {"name": "column", "column": column, "file": str(file)}

    negative = with_weights(corpus, tmp_path / "negative.csv", lambda n: -(n == 7))
    refused(
        CorpusError,
        r"negative.csv:\d+: column 'weight' must be a .* got '-1'",
        **from_file(negative),
    )
    empty = with_weights(corpus, tmp_path / "empty.csv", lambda n: "")
    refused(CorpusError, r"empty.csv:2: column 'weight' must be a .* got ''", **from_file(empty))
    refused(ConfigError, "has no column 'wieght'; its columns are", **from_file(weighed, "wieght"))
    refused(CorpusError, "nowhere.csv", **from_file(tmp_path / "nowhere.csv"))
    lines = weighed.read_text("utf-8").splitlines(keepends=True)
    turned = tmp_path / "turned.csv"
    turned.write_text("".join([lines[0], *lines[1:][::-1]]), "utf-8")
    refused(MismatchError, "is not the corpus of .*in another order", **from_file(turned))
    refused(ConfigError, "power must be 0 or more", name="class-balance", power=-1)
    refused(ConfigError, "wrong must be 0 or more", name="teacher-correct", wrong=-1)

    for found, match in (
        (torch.ones(3), r"mine gives a weight for each of 8 .* a tensor \(8,\); got \(3,\)"),
        (-torch.ones(8), "finite and 0 or more; got -1.0"),
        ("one", "got str"),
    ):
        monkeypatch.setitem(EXAMPLE_WEIGHTS, "mine", Way(lambda asked, found=found: found))
        refused(ConfigError, match, name="mine")
    monkeypatch.setitem(EXAMPLE_WEIGHTS, "mine", Way(lambda asked: 1 / 0))
    refused(ConfigError, "example_weights=mine: ZeroDivisionError: division", name="mine")


def test_values_have_no_probabilities_to_weigh_by(values: Cache) -> None:
    for way in ("teacher-confidence", "teacher-probability"):
        with pytest.raises(ConfigError, match="asks for a teacher's probabilities, and this one"):
            weights_of(values, way)
