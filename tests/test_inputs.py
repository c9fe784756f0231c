"""What a student reads in the place of its word embeddings while it trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kdcache
from kdcache.errors import ConfigError, ModelError
from kdcache.inputs import Smooth, smoothed
from kdcache.losses import Moment
from kdcache.maintenance.merging import merge
from kdcache.models import run
from kdcache.models.embedded import EMBEDS
from kdcache.models.run import EQUAL
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, SoftLabels, Tap
from kdcache.store import Cache, open_cache
from kdcache.training.inputs import BoundInputs, inputs_of
from kdcache.training.own_loop import make_objective, make_student
from kdcache.training.recipe import load_recipe
from kdcache.training.specs import cache_spec
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.test_trainer import log_of, narrow, stopped_and_resumed

__all__ = ["narrow"]  # a fixture

TASK = "text-classification"
STEPS = ["training.max_steps=6", "training.logging_steps=1", "training.learning_rate=1e-3"]


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path, masked_lm: Path
) -> list[Path]:
    """The caches of a classifier and of a masked language model, over one plan."""
    folder = tmp_path_factory.mktemp("words")
    plan = folder / "plan.zarr"
    kdcache.plan(corpus, tokenizer=classifier, task=TASK, out=plan, max_length=24, limit=60)
    kdcache.build(str(plan), teacher=classifier, task=TASK, out=folder / "classes.cache")
    kdcache.build(
        str(plan),
        teacher=masked_lm,
        task=TASK,
        teacher_task="masked-lm",
        out=folder / "words.cache",
        signals=["logits:topk,k=16"],
    )
    return [folder / "classes.cache", folder / "words.cache"]


@pytest.fixture(scope="module")
def both(alone: list[Path]) -> Cache:
    out = alone[0].parent / "both.cache"
    merge(alone, out)
    return open_cache(out)


def words(rows: int, outputs: int, k: int) -> tuple[torch.Tensor, SoftLabels]:
    """The likeliest of random distributions over a vocabulary: p spread over k of it, and them."""
    logits = torch.randn(rows, outputs, generator=torch.Generator().manual_seed(rows)).double()
    logprobs, ids = logits.log_softmax(1).topk(k)
    whole = torch.zeros(rows, outputs).double().scatter(1, ids, logprobs.softmax(1))
    return whole, SoftLabels(ids=ids, logprobs=logprobs)


@pytest.mark.parametrize(("rows", "outputs", "k"), [(1, 2, 1), (7, 13, 5), (4, 9, 9)])
def test_smoothed_embeddings_are_products_with_the_table(rows: int, outputs: int, k: int) -> None:
    p, found = words(rows, outputs, k)
    table = torch.randn(outputs, 3).double().requires_grad_()
    ids = torch.arange(rows) % outputs
    made = smoothed(table, ids, found, lam=0.3)
    mixed = 0.3 * p + 0.7 * torch.eye(outputs).double()[ids]
    weight = torch.randn_like(made)
    torch.testing.assert_close(made, mixed @ table, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad(x, table, weight)[0] for x in (made, mixed @ table))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_words_that_the_table_lacks_are_left_out() -> None:
    table = torch.eye(4)
    found = SoftLabels(
        ids=torch.tensor([[5, 1, 2], [9, -1, 4]]),
        logprobs=torch.tensor([[0.7, 0.2, 0.1], [0.9, 0.05, 0.05]]).log(),
    )
    made = smoothed(table, torch.tensor([0, 3]), found, lam=0.6, k=2)
    torch.testing.assert_close(made, torch.tensor([[0.4, 0.4, 0.2, 0.0], [0.0, 0.0, 0.0, 1.0]]))


FAMILIES: dict[str, Any] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "Electra": {"embedding_size": 8},
    "DistilBert": {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 600,
    "max_position_embeddings": 64,
}


def small(family: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **FAMILIES[family]})
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


def read(cache: Cache, docs: Any) -> Batch:
    """Documents with what all teachers said."""
    return cache.batch(docs, list(cache.readable))


def prepared(cache: Cache, model: Any, batch: Batch, **options: Any) -> Batch:
    """The batch with smoothed embeddings."""
    spec = cache_spec(cache, 1, several=True)
    chosen = inputs_of({"kind": "smooth", **options})
    assert chosen is not None
    return BoundInputs(chosen, spec, spec.shape).put(model, batch)


@pytest.mark.parametrize("family", FAMILIES)
def test_unsmoothed_embeddings_change_nothing_of_any_family(family: str, both: Cache) -> None:
    model, batch = small(family), read(both, both.plan.docs[:5])
    plain = run(model, batch, [LOGITS], task=TASK)[LOGITS]
    same = run(model, prepared(both, model, batch, lam=0.0), [LOGITS], task=TASK)[LOGITS]
    torch.testing.assert_close(same, plain)
    smooth = run(model, prepared(both, model, batch), [LOGITS], task=TASK)[LOGITS]
    assert float((smooth - plain).detach().abs().max()) > 1e-4
    smooth.sum().backward()
    moved = model.get_input_embeddings().weight.grad.abs().sum(1).nonzero().flatten()
    assert len(moved) > len(batch["input_ids"].unique())


@pytest.mark.parametrize("equal", [False, True], ids=["padded", "of one length"])
def test_a_model_reads_them_as_it_reads_inputs_embeds(both: Cache, equal: bool) -> None:
    model, batch = small("Bert"), read(both, both.plan.docs[:7])
    assert len(batch["attention_mask"].sum(1).unique()) > 1
    made = prepared(both, model, batch, lam=0.7, k=3)
    assert not (made[EMBEDS] * ~batch.mask.unsqueeze(-1)).any()
    given = {name: batch[name] for name in ("attention_mask", "token_type_ids")}
    wanted = model(inputs_embeds=made[EMBEDS], **given).logits
    setattr(model, EQUAL, equal)
    found = run(model, made, [LOGITS, Tap("hidden", 0)], task=TASK)
    torch.testing.assert_close(found[LOGITS], wanted, rtol=1e-4, atol=1e-5)
    assert EMBEDS not in batch


def test_they_are_what_the_cache_says_of_every_token(both: Cache) -> None:
    model, docs = small("Bert"), both.plan.docs[[4, 0, 9]]
    (name,) = both.teachers
    theirs = open_cache(both.path, teacher=name).stored(docs, LOGITS)
    batch = read(both, docs)
    table, ids = model.get_input_embeddings().weight, batch["input_ids"][batch.mask]
    wanted = smoothed(table, ids, theirs, lam=0.4, temperature=2.0)
    made = prepared(both, model, batch, lam=0.4, temperature=2.0)
    torch.testing.assert_close(made[EMBEDS][batch.mask], wanted)


@pytest.mark.usefixtures("both")
def test_a_student_trains_on_them_and_is_scored_on_plain_texts(
    both: Cache, narrow: str, tmp_path: Path, corpus: Path
) -> None:
    lam = 'inputs.lam={start = 0.0, stop = 0.5, shape = "step"}'
    command = f"train {both.path} --recipe text-smoothing --config {narrow} --device cpu --quiet"
    more = [word for one in (*STEPS, lam) for word in ("--set", one)]
    dev = ["--dev-split", "20%", "--eval", str(corpus)]
    assert main([*command.split(), *more, *dev, "--out", str(tmp_path / "s")]) == 0
    assert [entry["inputs.lam"] for entry in log_of(tmp_path / "s")] == [0.0] * 3 + [0.5] * 3
    card = (tmp_path / "s" / "README.md").read_text("utf-8")
    assert "| in place of word embeddings | smooth (lam=0 to 0.5, temperature=1.0) |" in card
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text("utf-8"))
    again = kdcache.evaluate(tmp_path / "s", corpus, device="cpu")
    assert metrics["evaluation"]["accuracy"] == again["accuracy"]
    plain = train(both, recipe="finetune", config=narrow, out=tmp_path / "p", overrides=STEPS)
    smooth = train(
        both,
        recipe="finetune",
        config=narrow,
        out=tmp_path / "q",
        overrides=[*STEPS, "inputs=smooth"],
    )
    ours, theirs = ([entry["loss"] for entry in log_of(r.folder)] for r in (smooth, plain))
    assert all(one != other for one, other in zip(ours, theirs, strict=True))


def test_a_run_that_is_stopped_goes_on_exactly(both: Cache, narrow: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "text-smoothing",
        "config": narrow,
        "overrides": [*STEPS, "inputs.temperature={start = 4, stop = 1}", "inputs.k=5"],
    }
    stopped_and_resumed(both, tmp_path, **options)


def test_a_loop_of_ones_own_prepares_its_batches(both: Cache, narrow: str) -> None:
    student = make_student(both, config=narrow)
    change = 'inputs.lam={start = 0, stop = 1, shape = "step"}'
    objective = make_objective(both, "text-smoothing", student, [change])
    batch = both.batch(both.plan.docs[:4], objective.arrays)
    assert objective.changes
    read = objective.prepared(student, batch)
    loss, _ = objective(run(student, read, objective.taps(), task=TASK), batch)
    loss.backward()
    objective.advance(Moment(1, 2, 0, 1))
    assert objective.scheduled() == {"inputs.lam": 1.0}
    assert not torch.equal(objective.prepared(student, batch)[EMBEDS], read[EMBEDS])
    plain = make_objective(both, "finetune", student)
    assert plain.prepared(student, batch) is batch


def test_a_stage_may_have_inputs_of_its_own(both: Cache, narrow: str, tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text(
        "[training]\nmax_steps = 2\nlogging_steps = 1\n"
        '[[stages]]\nname = "smooth"\n[stages.inputs]\nkind = "smooth"\n'
        "lam = { start = 0.5, stop = 0.1 }\n[stages.losses.hard]\n"
        '[[stages]]\nname = "plain"\n[stages.losses.hard]\n',
        "utf-8",
    )
    recipe = load_recipe(file)
    assert [one.inputs is not None for one in recipe.in_stages()] == [True, False]
    assert recipe.several
    (tmp_path / "again.toml").write_text(recipe.to_toml(), "utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe
    result = train(both, recipe=file, config=narrow, out=tmp_path / "s")
    assert ["inputs.lam" in entry for entry in log_of(result.folder)] == [True] * 2 + [False] * 2
    assert "smooth: smooth (" in (result.folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["inputs=rough"], "unknown kind of inputs 'rough'"),
        (["inputs=[1]"], r"inputs is a name \(smooth\) or a table such as .* got \[1\]"),
        (["inputs={lam = 0.5}"], "inputs is a name"),
        (["inputs={kind = 'smooth', lam = 2}"], r"lam of smoothed inputs must lie in \[0, 1\]"),
        (["inputs={kind = 'smooth', temperature = 0}"], "temperature of smoothed inputs"),
        (["inputs={kind = 'smooth', k = -1}"], "k of smoothed inputs must be 0 or more; got -1"),
        (["inputs={kind = 'smooth', lambda = 1}"], "unknown field of inputs 'lambda'"),
        (
            ["inputs={kind = 'smooth', lam = {start = 0, stop = 3}}"],
            r"inputs.lam goes from 0 to 3: lam of smoothed inputs",
        ),
        (["lam=1"], "did you mean 'inputs.lam'"),
    ],
)
def test_options_that_make_no_sense_are_refused(overrides: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_recipe("kd", overrides)


def test_what_cannot_be_smoothed_is_refused_before_anything_loads(
    both: Cache,
    alone: list[Path],
    narrow: str,
    masked_cache: Cache,
    masked_lm: Path,
    classifier: Path,
    tmp_path: Path,
) -> None:
    def refused(cache: Any, match: str, *more: str, **student: Any) -> None:
        options = student or {"config": narrow}
        with pytest.raises(ConfigError, match=match) as caught:
            train(
                cache,
                recipe="text-smoothing",
                out=tmp_path / "s",
                overrides=[*STEPS, *more],
                **options,
            )
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "s").exists()

    (name,) = both.teachers
    needs = r"needs what a masked language model says of every token of the texts, unmasked; .*"
    refused(alone[0], needs + r"--task TASK --teacher-task masked-lm\) and merge the two")
    shown = "words that the whole text makes likely, and of the task masked-lm those are"
    refused(masked_cache, shown, "losses.kl.weight=1", config=str(masked_lm))
    refused(both, needs, f"inputs.teacher={both.first}")
    refused(both, "unknown teacher in inputs.teacher 'x'", "inputs.teacher=x")
    refused(both, "does not go with a student that is a module", student="static")
    two = f'student.together=["{classifier}", "{classifier}"]'
    refused(both, "several are trained together", two, student=None)
    assert load_recipe("text-smoothing", [f"inputs.teacher={name}"]).inputs

    def rebuilt(signal_text: str, out: str) -> Path:
        plan = alone[0].parent / "plan.zarr"
        options: dict[str, Any] = {"task": TASK, "teacher_task": "masked-lm"}
        place = tmp_path / f"{out}.cache"
        kdcache.build(str(plan), teacher=masked_lm, out=place, signals=[signal_text], **options)
        merge([alone[0], place], tmp_path / f"{out}-both.cache")
        return tmp_path / f"{out}-both.cache"

    refused(rebuilt("logits:topk,k=4,fraction=0.5", "half"), "build one without fraction")
    refused(rebuilt("hidden:layers=1,positions=all", "none"), "needs soft labels of .*logits:topk")
    drawn = rebuilt("logits:sampled,n=8", "drawn")
    refused(
        drawn, "inputs: temperature 2 needs .* Set inputs.temperature=1", "inputs.temperature=2"
    )


def test_of_two_masked_language_models_one_is_named(both: Cache) -> None:
    spec = cache_spec(both, 1, several=True)
    (name,) = both.teachers
    more = replace(spec, others={name: spec.others[name], "other": spec.others[name]})
    chosen = inputs_of("smooth")
    assert chosen is not None
    with pytest.raises(ConfigError, match=f"has {name} and other: set inputs.teacher"):
        BoundInputs(chosen, more, spec.shape)
    named = inputs_of({"kind": "smooth", "teacher": "other"})
    assert named is not None
    assert BoundInputs(named, more, spec.shape).arrays


def test_a_model_without_a_plain_table_is_refused(both: Cache) -> None:
    model, batch = small("Bert"), read(both, both.plan.docs[:2])
    own = model.get_input_embeddings()

    class Scaled(torch.nn.Embedding):
        pass

    model.set_input_embeddings(Scaled(*own.weight.shape))
    with pytest.raises(ModelError, match=r"no plain table of word embeddings \(it has Scaled\)"):
        prepared(both, model, batch)
    model.set_input_embeddings(own)
    made = prepared(both, model, batch)
    model.get_input_embeddings = lambda: torch.nn.Embedding(600, 16)
    with pytest.raises(ModelError, match="does not look its word embeddings up"):
        run(model, made, [LOGITS], task=TASK)


def test_smooth_is_a_way_that_a_recipe_can_say_in_one_word() -> None:
    chosen = load_recipe("finetune", ["inputs=smooth"]).inputs
    assert chosen is not None
    assert chosen.way == Smooth()
    assert str(chosen) == "smooth (lam=0.5, temperature=1.0)"
    with pytest.raises(ConfigError, match="inputs of the recipe is no table"):
        load_recipe("finetune", ["inputs=smooth", "inputs.k=4"])
