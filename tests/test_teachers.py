"""Several teachers of one loss: who counts how much, by formulas and by published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit, log_softmax, softmax

from kdcache.errors import ConfigError
from kdcache.losses import HiddenMSE, SoftKL
from kdcache.losses.taught import label_nats
from kdcache.losses.teachers import CHOOSERS, Asked, Policy, Teaching
from kdcache.plans.batch import Batch
from kdcache.signals import SoftLabels
from kdcache.training.recipe import load_recipe
from tests import methods
from tests.conformance.test_losses import documents, softened
from tests.frozen.make_losses import dense, topk
from tests.objectives import Array, Given, bind, evaluate, value


def of_three(**changes: Any) -> Given:
    """Documents of classes that three teachers have seen, the last with other hidden states."""
    first = replace(documents("text-classification"), **changes)
    assert first.taught is not None
    rng = np.random.default_rng(3)
    others = {
        name: replace(first, soft=softened(rng, 4), taught=first.taught * scale)
        for name, scale in (("small", 2), ("other.one", -1))
    }
    return replace(first, further=others)


def alone(given: Given) -> list[float]:
    """The divergence of the student from each teacher by itself, [teachers]."""
    sides = [given, *given.further.values()]
    return [evaluate({"kl": SoftKL()}, replace(side, further={})).total for side in sides]


def taught(given: Given, step: int = 0, seed: int = 0, **options: Any) -> float:
    """The divergence from teachers that are chosen so."""
    teaching = {"kl": Teaching(**{"teachers": "all", **options})}
    return evaluate({"kl": SoftKL()}, given, teaching=teaching, step=step, seed=seed).total


def test_all_is_the_mean_over_teachers_sum_their_sum_and_no_word_the_first() -> None:
    given = of_three()
    each = alone(given)
    assert taught(given) == pytest.approx(np.mean(each), rel=1e-12)
    assert taught(given, choose="sum") == pytest.approx(np.sum(each), rel=1e-12)
    some = taught(given, teachers=("other.one", "first"), choose="sum")
    assert some == pytest.approx(each[2] + each[0], rel=1e-12)
    assert taught(given, teachers="small") == each[1]
    assert evaluate({"kl": SoftKL()}, given).total == each[0]


def test_one_teacher_is_drawn_for_a_step_by_seed_and_step_alone() -> None:
    given = of_three()
    each = alone(given)
    found = [taught(given, step, choose="sampled") for step in range(12)]
    assert set(found) == set(each)
    assert found == [taught(given, step, choose="sampled") for step in range(12)]
    assert found != [taught(given, step, seed=1, choose="sampled") for step in range(12)]
    likely = {
        taught(given, step, choose="sampled", probability=(1.0, 1e6, 1.0)) for step in range(9)
    }
    assert likely == {each[1]}


def test_one_teacher_is_drawn_for_each_document_whatever_batch_it_is_in() -> None:
    def shares(docs: list[int], step: int, names: str = "ab") -> Array:
        asked = Asked(
            teachers=tuple(names),
            probability=(0.25, 0.75),
            batch=Batch(docs=torch.tensor(docs)),
            seed=5,
            step=step,
            cross_entropy=lambda name: torch.empty(0),
        )
        found: Mapping[str, Any] = CHOOSERS["sampled-documents"].shares(asked)
        return np.stack([found[name].numpy() for name in names])

    many = shares(list(range(4000)), 3)
    assert (many.sum(0) == 1).all()
    assert many.mean(1) == pytest.approx([0.25, 0.75], abs=0.03)
    assert (shares([7, 3999, 12], 3) == many[:, [7, 3999, 12]]).all()
    assert (shares(list(range(4000)), 4) != many).any()
    given = of_three()
    each = [evaluate({"kl": SoftKL()}, given.some([doc])).total for doc in range(4)]
    assert taught(given, choose="sampled-documents") != pytest.approx(np.mean(each), rel=1e-3)


def test_inverse_ce_weighs_each_document_by_each_teachers_error_on_its_label() -> None:
    given = of_three(labels=np.array([3, 1, -100, 0]))
    wanted = 0.0
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    for side in (given, *given.further.values()):
        logp = log_softmax(side.soft["logprobs"].astype(np.float64), axis=1)
        own = -logp[np.arange(4), np.maximum(given.labels, 0)]
        error = np.where(given.labels < 0, np.log(6), own)
        wanted += ((np.exp(logp) * (logp - logq)).sum(1) / (1 + error)).mean()
    assert taught(given, choose="inverse-ce") == pytest.approx(wanted, rel=1e-6)


def test_a_lone_teacher_is_weighed_all_the_same_and_a_person_told() -> None:
    given = replace(documents("text-classification"), labels=np.array([3, 1, 2, 0]))
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    logp = log_softmax(given.soft["logprobs"].astype(np.float64), axis=1)
    error = -logp[np.arange(4), given.labels]
    wanted = ((np.exp(logp) * (logp - logq)).sum(1) / (1 + error)).mean()
    assert taught(given, choose="inverse-ce") == pytest.approx(wanted, rel=1e-6)
    teaching = {"kl": Teaching(teachers="all", choose="sampled")}
    (note,) = bind({"kl": SoftKL()}, given, teaching=teaching).notes
    assert "losses.kl learns from all teachers of the cache, and there is one, first" in note


def test_of_several_classes_a_document_it_is_the_error_on_all_of_them() -> None:
    labels = np.array([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0], [-100] * 6, [1, 1, 1, 1, 1, 1]])
    given = of_three(labels=labels.astype(np.int8))
    wanted = 0.0
    for side in (given, *given.further.values()):
        z, q = side.soft["values"].astype(np.float64), given.logits.astype(np.float64)
        errors = -log_expit(np.where(labels == 1, z, -z)).sum(1)
        errors[2] = 6 * np.log(2)
        apart = expit(z) * (log_expit(z) - log_expit(q)) + expit(-z) * (
            log_expit(-z) - log_expit(-q)
        )
        wanted += (apart.sum(1) / (1 + errors)).mean()
    assert taught(given, choose="inverse-ce") == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_of_language_models_it_is_the_mean_error_on_a_documents_tokens(task: str) -> None:
    first = documents(task)
    given = replace(
        first,
        further={"b": replace(first, soft=softened(np.random.default_rng(5), len(first.labels)))},
    )
    known, logq = given.labels >= 0, log_softmax(given.logits.astype(np.float64), axis=1)
    wanted = 0.0
    for side in (given, given.further["b"]):
        logp = log_softmax(side.soft["logprobs"].astype(np.float64), axis=1)
        rows = -logp[np.arange(len(logp)), np.maximum(given.labels, 0)]
        of = [known & (given.owners == doc) for doc in range(4)]
        error = np.array([rows[some].mean() if some.any() else np.log(6) for some in of])
        share = (1 / (1 + error))[given.owners]
        wanted += ((np.exp(logp) * (logp - logq)).sum(1) * share).mean()
    assert taught(given, choose="inverse-ce") == pytest.approx(wanted, rel=1e-6)


def test_a_label_outside_the_stored_ids_has_an_even_share_of_their_tail() -> None:
    values = 2 * np.random.default_rng(2).standard_normal((5, 14)).astype(np.float32)
    soft = SoftLabels(**{name: torch.from_numpy(rows) for name, rows in topk(values).items()})
    labels = torch.tensor([int(soft.ids[0, 1]), 0, 1, -100, 2])
    found = label_nats(soft, labels, 14)
    exact = -log_softmax(values.astype(np.float64), axis=1)
    assert float(found[0]) == pytest.approx(exact[0, int(labels[0])], rel=1e-6)
    assert soft.tail_logmass is not None
    for row in (1, 2, 4):
        if int(labels[row]) not in soft.ids[row]:
            share = np.exp(float(soft.tail_logmass[row])) / 10
            assert float(found[row]) == pytest.approx(-np.log(share), rel=1e-6)
    assert found[3] == torch.inf


@pytest.mark.parametrize("case", ["mt_bert.a", "mt_bert.b"])
def test_the_recipe_mt_bert_has_the_papers_loss_and_gradients(case: str) -> None:
    """Soft labels as cross-entropy there, as divergence here: values differ by the teachers' own
    entropies, gradients do not. Hidden states are kept in float32 by a cache.
    """
    known = methods.Given(case).arrays
    temperature, last = float(known["temperature"]), len(known["s_hidden"]) - 1
    layers = ",".join(f"{layer}:{layer}" for layer in range(last + 1))
    recipe = load_recipe(
        "mt-bert",
        [
            f"losses.kl.temperature={temperature}",
            f"losses.hidden.layer_map={layers}",
            "losses.hidden.shared_projection=true",
        ],
    )
    documents_, length = known["s_hidden"].shape[1:3]
    sides = [
        Given(
            task="text-classification",
            lengths=np.full(documents_, length),
            labels=known["labels"],
            logits=known["s_logits"],
            hidden=known["s_hidden"],
            soft=dense(known["t_logits"][i]),
            taught=known["t_hidden"][i].astype(np.float32),
            positions="all",
            projection=(known["proj_weight"][i], known["proj_bias"][i]),
        )
        for i in range(len(known["t_logits"]))
    ]
    first, *others = sides
    names = ["second", "third"][: len(others)]
    given = replace(first, further=dict(zip(names, others, strict=True)))
    found = evaluate(recipe.losses, given, teaching=recipe.teaching)
    soft = softmax(known["t_logits"] / temperature, axis=2)
    entropies = -(soft * np.log(soft)).sum(2)
    own = (known["out_weights"] * entropies).mean(1).sum()
    assert found.total == pytest.approx(float(known["loss"]) - own, rel=1e-6)
    pairs = [("logits", "grad_s_logits"), ("hidden", "grad_s_hidden")]
    for name, wanted in pairs:
        close(found.gradients[name], known[wanted])
    for place in range(len(sides)):
        close(found.gradients[f"hidden_t{place}.weight"], known["grad_proj_weight"][place])
        close(found.gradients[f"hidden_t{place}.bias"], known["grad_proj_bias"][place])


def close(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-6 * np.abs(wanted).max(), rtol=1e-5)


def test_a_map_whose_teacher_is_not_drawn_has_a_gradient_of_zeros() -> None:
    maps = np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    given = of_three(projection=maps, peer=None)
    losses = {"hidden": HiddenMSE(projection="linear", positions="cls", shared_projection=True)}
    teaching = {"hidden": Teaching(teachers="all", choose="sampled")}
    leaves = {name: torch.from_numpy(values).double() for name, values in given.student.items()}
    found, _, objective = value(losses, given, leaves, teaching=teaching)
    learned = dict(objective.projections.named_parameters())
    moved = torch.autograd.grad(
        found, list(learned.values())
    )  # raises for one that has no part in it
    assert {n for n, g in zip(learned, moved, strict=True) if g.any()} in (
        {f"hidden_t{place}.weight", f"hidden_t{place}.bias"} for place in range(3)
    )


def test_micro_batches_of_several_teachers_add_up_to_the_step() -> None:
    given = of_three(weights=np.array([2.0, 0.5, 0.0, 1.0]))
    for choose in CHOOSERS:
        teaching = {"kl": Teaching(teachers="all", choose=choose)}
        losses, options = {"kl": SoftKL()}, {"teaching": teaching, "step": 4}
        whole = evaluate(losses, given, **options)
        parts = [given.some([0, 3]), given.some([1]), given.some([2])]
        if choose == "sampled-documents":  # which knows documents by their rows in the plan
            continue
        found = [evaluate(losses, part, totals=[3.5], **options).total for part in parts]
        assert sum(found) == pytest.approx(whole.total, rel=1e-12), choose


def test_a_policy_of_ones_own_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def surest(asked: Asked) -> Mapping[str, Any]:
        errors = torch.stack([asked.cross_entropy(name) for name in asked.teachers])
        best = errors.argmin(0)
        return {name: (best == i).double() for i, name in enumerate(asked.teachers)}

    monkeypatch.setitem(CHOOSERS, "surest", Policy(surest, labels=True))
    given = of_three(labels=np.array([3, 1, 2, 0]))
    errors, parts = [], []
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    for side in (given, *given.further.values()):
        logp = log_softmax(side.soft["logprobs"].astype(np.float64), axis=1)
        errors.append(-logp[np.arange(4), given.labels])
        parts.append((np.exp(logp) * (logp - logq)).sum(1))
    wanted = np.take_along_axis(np.stack(parts), np.stack(errors).argmin(0)[None], 0).mean()
    assert taught(given, choose="surest") == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "given", "message"),
    [
        (
            "teachers = ['large']",
            {},
            r"losses\.kl\.teachers 'large' \(known: first, small, other\.one\)",
        ),
        (
            "teachers = ['small', 'small']",
            {},
            r"losses\.kl: teachers names one twice: small, small",
        ),
        ("choose = 'sampled'", {}, r"losses\.kl: choose=sampled chooses among teachers: name them"),
        (
            "teachers = 'all'\nchoose = 'best'",
            {},
            r"unknown choose 'best' \(known: all, sum, sampled",
        ),
        (
            "teachers = 'all'\nchoose = 'sampled'\nprobability = [1, 2]",
            {},
            r"has 2 numbers; its teachers are first, small, oth",
        ),
        (
            "teachers = 'all'\nchoose = 'sampled'\nprobability = [1, 2, 0]",
            {},
            r"a number above 0 for each teacher",
        ),
        ("teachers = 3", {}, r"losses\.kl\.teachers must be a list or a text; got 3"),
        (
            "teachers = 'all'\nchoose = 'inverse-ce'",
            {"labelled": False},
            r"the corpus has none: choose all",
        ),
        (
            "kind = 'hard'\nteachers = 'small'",
            {},
            r"losses\.kl learns from labels: teachers and choose",
        ),
    ],
)
def test_teachers_that_cannot_be_are_refused_in_a_line(
    tmp_path: Any, losses: str, given: dict[str, Any], message: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[losses.kl]\n{losses}\n", "utf-8")

    def load_and_bind() -> None:
        recipe = load_recipe(file)
        bind(recipe.losses, of_three(**given), teaching=recipe.teaching)

    with pytest.raises(ConfigError, match=message) as caught:
        load_and_bind()
    assert len(str(caught.value).splitlines()) == 1


def test_what_one_of_several_teachers_lacks_is_told_of_that_teacher() -> None:
    given = of_three()
    poor = replace(given.further["small"], soft={})
    given = replace(given, further={**given.further, "small": poor})
    with pytest.raises(
        ConfigError, match=r"needs soft labels; the cache holds .* of teacher small:"
    ):
        bind({"kl": SoftKL()}, given, teaching={"kl": Teaching(teachers="all")})


def test_a_recipe_says_who_teaches_and_reads_back(tmp_path: Any) -> None:
    overrides = ["losses.kl.teachers=['small', 'first']", "losses.kl.probability=[0.7, 0.3]"]
    recipe = load_recipe("skdbert", overrides)
    assert recipe.teaching["kl"].teachers == ("small", "first")
    (tmp_path / "again.toml").write_text(recipe.to_toml(), "utf-8")
    assert load_recipe(tmp_path / "again.toml") == recipe
    assert "choose" not in load_recipe("kd").to_toml()
