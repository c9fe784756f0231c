"""What recipes ask of a cache: the signals that serve them, and which a cache serves."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.errors import ConfigError
from kdcache.maintenance.merging import merge
from kdcache.signals import parse_all
from kdcache.store import Cache
from kdcache.training.bound import require_own_state
from kdcache.training.data_order import DataOrder
from kdcache.training.objective import Objective
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import beside_signals, served_by
from kdcache.training.specs import cache_spec
from kdcache.training.wanted_signals import signals_of_teacher
from kdcache_cli.shipped import read_recipes

TASK = "text-classification"
RECIPES = sorted(read_recipes())
NARROW = {"minilmv2": ["stages.relations.losses.relations.heads=8"]}
"""Changes for a teacher of width 32, which the 48 relation heads of MiniLMv2 do not divide."""


def recipe_of(name: str) -> Recipe:
    """A shipped recipe for the teachers of these tests."""
    return load_recipe(name, NARROW.get(name, []))


@pytest.fixture(scope="module")
def plan(folder: Path, corpus: Path, classifier: Path) -> str:
    out = folder / "rich-plan"
    kdcache.plan(corpus, tokenizer=classifier, task=TASK, out=out, limit=24)
    return str(out)


@pytest.fixture(scope="module")
def rich(folder: Path, plan: str, classifier: Path) -> Cache:
    """A cache of all that the shipped recipes need of a classifier for a student of two layers."""
    recipes = [recipe_of(name) for name in RECIPES]
    signals = signals_of_teacher(recipes, classifier, TASK, 2)
    return kdcache.build(plan, teacher=classifier, task=TASK, out=folder / "rich", signals=signals)


@pytest.fixture(scope="module")
def with_more(folder: Path, plan: str, rich: Cache, masked_lm: Path, classifier: Path) -> Cache:
    """The same beside what a masked language model says of every token, and the teacher at points
    of its boundary."""
    words, points = folder / "rich-words", folder / "rich-points"
    kdcache.build(plan, teacher=masked_lm, task=TASK, teacher_task="masked-lm", out=words)
    kdcache.ascend(rich, teacher=classifier, out=points, steps=1)
    merge([rich.path, words, points], folder / "rich-all")
    return kdcache.open_cache(folder / "rich-all")


BEYOND = {
    "text-smoothing": "what a masked language model says of every token",
    "bss": "kdcache ascend CACHE",
    "meta-kd": "reads column 'domain' of the corpus, which no cache holds: --set stages.",
    "backward-kd": "learns at points too, and no cache given is of any",
    "mixed-vocab": "both have one vocabulary: set student.tokenizer to the folder of another",
}
"""Recipes that need what no signal of the teacher is, and words of what says so."""
SAID = {
    "meta-kd": "stages.intermediate.data.example_weights.file=corpus.tsv",
    "mixed-vocab": "student.tokenizer=folder",
}
"""Those of them that a setting alone serves."""
OF_CLASSES = {
    "ad-kd": "attribution is a gradient of what a classifier says",
    "simkd": "pooled is what a classifier reads",
    "mlkd-bert": "compares documents by the class of each",
    "backward-kd": "points are of documents that are classified; the task is masked-lm",
    "text-smoothing": "lets a student read words that the whole text makes likely",
}
"""Recipes that no cache of a language model serves, and words of what says so."""


def test_a_cache_of_what_all_recipes_need_serves_them_all(rich: Cache, with_more: Cache) -> None:
    found = served_by(rich, [recipe_of(name) for name in RECIPES], 2)
    lacking = {one.recipe: one for one in found if one.why}
    assert lacking.keys() == BEYOND.keys()
    for name, words in BEYOND.items():
        assert words in lacking[name].why
        assert lacking[name].signals == ()
    found = served_by(with_more, [recipe_of(name) for name in BEYOND], 2)
    left = {name: lacking[name].why for name in SAID}
    left["backward-kd"] = lacking["backward-kd"].why
    assert {one.recipe: one.why for one in found} == dict.fromkeys(BEYOND, "") | left
    said = [load_recipe(name, [setting]) for name, setting in SAID.items()]
    assert [one.why for one in served_by(rich, said, 2)] == [""] * len(said)


def test_a_cache_of_points_serves_what_learns_at_points_too(folder: Path, with_more: Cache) -> None:
    points = kdcache.open_cache(folder / "rich-points")
    found = {one.recipe: one for one in served_by(points, [recipe_of(n) for n in RECIPES], 2)}
    assert found["backward-kd"].why == ""
    assert "needs hidden states; the cache holds" in found["hidden"].why
    assert not any(one.signals for one in found.values())  # no build makes a cache of points
    with pytest.raises(ConfigError, match="needs hidden states; the cache holds"):
        kdcache.train(points, recipe="hidden", init_from_teacher=[2, 4], out=folder / "s")


def test_points_of_a_second_teacher_count_where_a_loss_learns_there(
    with_more: Cache, tmp_path: Path
) -> None:
    (plain,) = served_by(with_more, [load_recipe("backward-kd")], 2)
    assert "with both caches, not merged" in plain.why
    taught = ['losses.there.kind="logit_mse"', 'losses.there.teachers="points"']
    recipe = load_recipe("backward-kd", [*taught, "training.max_steps=1"])
    assert served_by(with_more, [recipe], 2)[0].why == ""
    run = kdcache.train(
        with_more, recipe=recipe, init_from_teacher=[2, 4], out=tmp_path / "s", progress=False
    )
    assert run.metrics["steps"] == 1


def test_what_is_wanted_beside_is_said_with_the_signals_that_lack(
    cache: Cache, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"all that recipe mixed-vocab needs; then losses\.words"):
        kdcache.train(cache, recipe="mixed-vocab", init_from_teacher=[2, 4], out=tmp_path / "s")


def test_what_no_cache_of_a_task_serves_is_told_without_a_signal(
    masked_cache: Cache, masked_lm: Path, tmp_path: Path
) -> None:
    short = {"init_from_teacher": [2, 4], "out": tmp_path / "s", "progress": False}
    found = served_by(masked_cache, [load_recipe(name) for name in OF_CLASSES], 2)
    for one in found:
        assert OF_CLASSES[one.recipe] in one.why
        assert one.signals == ()
        with pytest.raises(ConfigError, match=re.escape(OF_CLASSES[one.recipe])):
            kdcache.train(masked_cache, recipe=one.recipe, **short)


def test_what_no_signal_is_is_told_beside_those_that_lack(cache: Cache) -> None:
    (found,) = served_by(cache, [load_recipe("mixed-vocab")], 2)
    assert "hidden:layers=0-2-4,positions=all" in found.signals
    assert BEYOND["mixed-vocab"] in found.beside


def test_what_is_served_trains_and_what_is_not_is_refused_with_the_same_words(
    cache: Cache, tmp_path: Path
) -> None:
    found = served_by(cache, [recipe_of(name) for name in RECIPES], 2)
    assert {bool(one.why) for one in found} == {True, False}
    student = kdcache.make_student(cache, init_from_teacher=[2, 4])
    for one in found:
        for stage in recipe_of(one.recipe).in_stages():
            by_words = any(hasattr(loss, "by_words") for loss in stage.losses.values())
            if not one.why and not by_words and "together" not in stage.student:
                alike = replace(stage, data=DataOrder())  # weights of documents are for `train`
                assert kdcache.make_objective(cache, alike, student).bound
        if one.why and len(recipe_of(one.recipe).in_stages()) == 1:
            call: Any = partial(kdcache.make_objective, student=student)
            if one.recipe == "backward-kd":  # a loop of one's own takes what caches it likes
                call = partial(kdcache.train, out=tmp_path / "s", progress=False)
            with pytest.raises(ConfigError) as refused:
                call(cache, recipe=one.recipe)
            assert str(refused.value) == one.why


def test_signals_that_are_proposed_serve_the_recipe(
    cache: Cache, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    fitnet = load_recipe("fitnet")
    (found,) = served_by(cache, [fitnet], 2)
    assert found.why
    assert found.signals
    made = kdcache.build(
        str(corpus),
        teacher=classifier,
        task=TASK,
        out=tmp_path / "c",
        signals=found.signals,
        limit=12,
    )
    assert [one.why for one in served_by(made, [fitnet], 2)] == [""]


def test_a_student_that_shares_its_blocks_has_twice_as_many(
    corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    shared = load_recipe("pea-kd")
    signals = signals_of_teacher([shared], classifier, TASK, 2)
    assert signals == ["logits:dense", "hidden:layers=1-2-3,positions=cls"]
    made = kdcache.build(
        str(corpus), teacher=classifier, task=TASK, out=tmp_path / "c", signals=signals, limit=12
    )
    short = ["stages.predictions.training.max_steps=1", "stages.patient.training.max_steps=1"]
    options = {"init_from_teacher": [2, 4], "out": tmp_path / "s", "progress": False}
    assert kdcache.train(made, recipe=shared, overrides=short, **options).folder.is_dir()
    with pytest.raises(ConfigError, match="multiple of the student's; they have 4 and 6"):
        signals_of_teacher([shared], classifier, TASK, 3)


def test_layers_of_the_first_token_are_those_that_no_recipe_wants_whole(classifier: Path) -> None:
    recipes = [load_recipe("pkd-skip"), load_recipe("at")]
    texts = signals_of_teacher(recipes, classifier, TASK, 2)
    signals = parse_all(texts)
    whole = {tap.layer for tap in signals["hidden"].gives()}
    other = {tap.layer for n, s in signals.items() if n == "hidden-cls" for tap in s.gives()}
    assert not whole & other


def test_a_language_models_hidden_states_are_those_of_the_tokens_that_have_logits(
    masked_lm: Path,
) -> None:
    (hidden,) = (
        text
        for text in signals_of_teacher([load_recipe("distilbert")], masked_lm, "masked-lm")
        if text.startswith("hidden")
    )
    assert "positions=all" in hidden


@pytest.mark.parametrize("recipe", ["bert-emd", "crd"])
def test_what_a_loss_keeps_is_of_one_teacher(rich: Cache, recipe: str) -> None:
    loss = {"bert-emd": "emd", "crd": "crd"}[recipe]
    chosen = load_recipe(recipe, [f"losses.{loss}.teachers=all"])
    known = cache_spec(rich, len(rich.plan.labelled_docs), several=True)
    student = replace(known.shape, layers=2)
    one = Objective(chosen.losses, known, student, teaching=chosen.teaching)
    with pytest.raises(ConfigError, match=f"losses.{loss} keeps .* 2 are trained together"):
        require_own_state(one, 2)
    two = replace(known, others={"other": replace(known, name="other")})
    with pytest.raises(ConfigError, match="learns from one teacher; 2 are named"):
        Objective(chosen.losses, two, student, teaching=chosen.teaching)


def test_documents_have_places_without_gaps_in_caches_of_several_parts(cache: Cache) -> None:
    docs = torch.from_numpy(cache.plan.docs)
    assert int(docs[-1]) >= len(docs)  # numbers have gaps
    spec = cache_spec(cache, 0)
    assert spec.places(docs).equal(torch.arange(spec.documents))


def test_what_is_wanted_beside_signals_is_said_as_training_says_it(classifier: Path) -> None:
    recipes = [recipe_of(name) for name in ("kd", *BEYOND)]
    signals = signals_of_teacher(recipes, classifier, TASK, 2)
    found = beside_signals(recipes, signals, classifier, TASK, 2)
    assert found.keys() == BEYOND.keys()
    for name, words in BEYOND.items():
        assert words in found[name]


def test_values_have_no_divergence_whatever_the_signals(regressor: Path) -> None:
    recipes = [recipe_of("kd"), recipe_of("kd-mse")]
    found = beside_signals(recipes, ["logits:dense"], regressor, TASK, 1)
    assert found == {
        "kd": "losses.kl: the teacher gives values, not probabilities; use the loss logit_mse "
        "(recipe kd-mse)"
    }
