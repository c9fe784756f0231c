"""Weights of losses that are set so that terms start with stated shares of the gradient."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdcache.errors import ConfigError, ModelError
from kdcache.store import Cache
from kdcache.training.balance import Balance, Balancer
from kdcache.training.own_loop import make_objective
from kdcache.training.recipe import load_recipe
from kdcache.training.shares import COST, Shares, apart
from kdcache.training.train import train
from tests.test_trainer import Watcher, assert_same_weights, log_of, narrow, stop

__all__ = ["narrow"]  # a fixture

STEPS = ("training.max_steps=8", "training.logging_steps=1", "training.learning_rate=1e-4")
THREE = (
    "losses.hard.weight=1e-3",
    "losses.hidden.weight=50",
    "losses.hidden.layer_map=uniform",
    "balance.by=gradient",
)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares are measured in every step."""
    monkeypatch.setattr(Shares, "due", lambda *_: True)


def run(cache: Cache, out: Path, narrow: str, *more: str, **options: Any) -> Any:
    overrides = [*STEPS, *THREE, *more]
    return train(cache, recipe="kd", out=out, config=narrow, overrides=overrides, **options)


def shares_of(entry: dict[str, float]) -> dict[str, float]:
    return {name: entry[f"gradient_{name}"] for name in ("hard", "hidden", "kl")}


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ((), {"hard": 1 / 3, "hidden": 1 / 3, "kl": 1 / 3}),
        (
            ("balance.shares={hard = 1, hidden = 3, kl = 6}", "balance.steps=3"),
            {"hard": 0.1, "hidden": 0.3, "kl": 0.6},
        ),
    ],
)
def test_terms_start_with_the_shares_that_were_stated(
    more: tuple[str, ...], wanted: dict[str, float], cache: Cache, narrow: str, tmp_path: Path
) -> None:
    result = run(cache, tmp_path / "run", narrow, *more)
    log = log_of(result.folder)
    assert shares_of(log[0]) == pytest.approx(wanted, rel=1e-5)  # in the first step to the digit
    mean = {name: sum(shares_of(entry)[name] for entry in log) / len(log) for name in wanted}
    assert mean == pytest.approx(wanted, abs=0.1)  # batches differ
    steps = 3 if more else 5
    found = [[entry[f"{name}.weight"] for name in wanted] for entry in log]
    assert found[steps - 1] != found[0]
    assert all(one == found[steps - 1] for one in found[steps:])
    for entry in log:
        terms = [entry[f"{name}.weight"] * entry[f"loss_{name}"] for name in wanted]
        assert entry["loss"] == pytest.approx(sum(terms), rel=1e-4)
    told = json.loads((result.folder / "metrics.json").read_text("utf-8"))["balance"]
    assert list(told["weights"].values()) == pytest.approx(
        [log[-1][f"{name}.weight"] for name in told["weights"]]
    )
    card = (result.folder / "README.md").read_text("utf-8")
    assert "| weights set | " in card
    assert f"({told['way']}) |" in card
    last = load_recipe(result.folder / "recipe.toml")
    assert last.balance is not None
    assert last.balance.steps == steps


@pytest.mark.parametrize("after", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_while_or_after_weights_are_set_goes_on_exactly(
    after: int, cache: Cache, narrow: str, tmp_path: Path
) -> None:
    saved = ("training.save_strategy=steps", "training.save_steps=1")
    whole = run(cache, tmp_path / "whole", narrow, *saved)
    with pytest.raises(RuntimeError, match="stopped"):
        run(cache, tmp_path / "run", narrow, *saved, progress=Watcher({after: stop}))
    resumed = run(cache, tmp_path / "run", narrow, *saved, resume=True)
    assert_same_weights(whole.folder, resumed.folder)
    one, other = (log_of(made.folder)[-1] for made in (whole, resumed))
    names = ("hard.weight", "hidden.weight", "kl.weight", "grad_norm")
    assert [one[name] for name in names] == [other[name] for name in names]


@pytest.mark.slow
def test_stages_are_balanced_each_for_itself(cache: Cache, narrow: str, tmp_path: Path) -> None:
    recipe = tmp_path / "two.toml"
    recipe.write_text(
        "[training]\nmax_steps = 2\nlogging_steps = 1\n"
        '[[stages]]\nname = "even"\nbalance = "gradient"\n'
        "[stages.losses.kl]\n[stages.losses.hard]\n"
        '[[stages]]\nname = "given"\n[stages.losses.kl]\n[stages.losses.hard]\n',
        "utf-8",
    )
    more = ["stages.even.balance.shares={kl = 3, hard = 1}"]
    with pytest.raises(ConfigError, match="balance of the recipe is no table"):
        load_recipe(recipe, more)
    recipe.write_text(recipe.read_text("utf-8").replace('"gradient"', "{steps = 1}"), "utf-8")
    result = train(cache, recipe=recipe, out=tmp_path / "run", config=narrow, overrides=more)
    first, _, third, _ = log_of(result.folder)
    assert first["gradient_kl"] == pytest.approx(0.75, rel=1e-4)
    assert third["gradient_kl"] != pytest.approx(0.75, rel=1e-2)
    assert "kl.weight" not in third
    assert "weights set in stage even" in (result.folder / "README.md").read_text("utf-8")


def test_weights_are_those_of_the_sums_and_keep_their_size() -> None:
    balancer = Balancer(Balance(shares={"a": 1, "b": 3}), {"a": 2.0, "b": 0.5, "c": 7.0})
    assert balancer.weights() == {"a": 2.0, "b": 0.5, "c": 7.0}
    balancer = Balancer(Balance(shares={"a": 1, "b": 3, "c": 1}), {"a": 2.0, "b": 0.5, "c": 7.0})
    balancer.add([3.0, 8.0, 0.0])  # nothing of c yet, as of labels that no document has
    balancer.add([1.0, 8.0, 0.0])
    found = balancer.weights()
    assert found == pytest.approx({"a": 16 * 0.25 / 4, "b": 16 * 0.75 / 16, "c": 7.0})
    assert balancer.due()
    again = Balancer(Balance(), {"a": 2.0, "b": 0.5, "c": 7.0})
    again.load_state_dict(balancer.state_dict())
    assert torch.equal(again.norms, balancer.norms)
    assert int(again.taken) == 2
    with pytest.raises(ModelError, match=r"losses.c has no gradient .* leave balance out"):
        balancer.require_finite(["a", "c"], {"a": 1.0})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["balance=gradients"], "unknown balance 'gradients'; did you mean 'gradient'"),
        (["balance=3"], "balance is .gradient. or a table such as .* got 3"),
        (["balance.step=3"], "unknown field of balance 'step'; did you mean 'steps'"),
        (["balance.steps=0"], "balance.steps must be 1 or more; got 0"),
        (["balance.shares.kl=0"], "balance.shares.kl must be more than 0; got 0"),
        (["balance=gradient"], "recipe kd has one, kl: leave balance out"),
        (
            ["balance=gradient", "losses.hard.weight={start=1, stop=0}"],
            "sets losses.hard.weight, which has a schedule",
        ),
        (
            ["losses.hard.weight=1", "balance.shares={kl=1}"],
            "balance.shares of recipe kd lacks hard: give each loss a share",
        ),
        (
            ["losses.hard.weight=1", "balance.shares={kl=1, hrd=1}"],
            "unknown loss in balance.shares of recipe kd 'hrd'; did you mean 'hard'",
        ),
    ],
)
def test_what_cannot_be_balanced_is_refused_with_the_recipe(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe("kd", overrides)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_runs_without_measured_gradients_are_refused_before_anything_loads(
    cache: Cache, narrow: str, tmp_path: Path
) -> None:
    for more, message in (
        ("training.gradient_checkpointing=true", "not go with training.gradient_checkpointing"),
        ('student.together=["bilstm", "static"]', "not go with students that are trained together"),
    ):
        own = {"student": narrow} if "student" in more else {}
        with pytest.raises(ConfigError, match=message):
            train(
                cache,
                recipe="kd",
                out=tmp_path / "run",
                overrides=[*STEPS, "losses.hard.weight=1", "balance=gradient", more],
                **({} if own else {"config": narrow}),
            )
        assert not (tmp_path / "run").exists()
    student = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.from_pretrained(narrow)
    )
    with pytest.raises(ConfigError, match=r"which kdcache\.train measures: give weights"):
        make_objective(cache, "kd", student, ["losses.hard.weight=1", "balance=gradient"])
    weighs = "data.example_weights=teacher-confidence"
    with pytest.raises(ConfigError, match=r"weighs documents .* leave it out, overrides="):
        make_objective(cache, "kd", student, [weighs])
    drawn = ["losses.hidden.layer_map=uniform", "losses.hidden.projection=linear"]
    maps = [
        make_objective(cache, "kd", student, drawn, seed=seed).projections.state_dict()
        for seed in (0, 0, 1)
    ]
    for name in maps[0]:
        assert torch.equal(maps[0][name], maps[1][name])
        assert not torch.equal(maps[0][name], maps[2][name])


@pytest.mark.parametrize("losses", [2, 3, 5])
@pytest.mark.parametrize("epoch", [4, 40, 1000])
def test_measuring_costs_a_hundredth_of_a_stage_or_is_done_once(losses: int, epoch: int) -> None:
    for steps in (1, 16, 30 * losses, 60 * losses, 61 * losses, 1000, 12_345):
        measured = len(range(0, steps, apart(losses, epoch)))
        assert measured == 1 or COST * losses * measured <= 0.01 * steps
        assert steps >= 30 * losses or measured == 1
