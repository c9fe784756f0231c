"""A profile: parts that add up, ops that the recipe runs, ways that come to the same losses."""

from __future__ import annotations

import json
import timeit
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcache
from kdcache.errors import ConfigError, ModelError
from kdcache.profiling.ops import OpWatch
from kdcache.profiling.recorder import CLOCKS, OTHER, Recorder
from kdcache.profiling.result import ProfileResult
from kdcache.profiling.turns import OURS, PLAIN, TIME, UNFUSED, turns
from kdcache.spans import span, watched
from kdcache.store import Cache
from kdcache_kernels import linear_kl, linear_topk_kl, relation_kl, topk_kl

STUDENT: Any = {"init_from_teacher": [1, 2], "device": "cpu", "batch_size": 3}


@pytest.fixture(scope="module")
def heads(masked_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A profile of a student whose losses take its head, and the folder that it wrote."""
    out = tmp_path_factory.mktemp("profile") / "out"
    return kdcache.profile(masked_cache, recipe="kd", steps=2, out=out, **STUDENT), out


@pytest.fixture(scope="module")
def layers(cache: Cache) -> ProfileResult:
    """A profile of a student of hidden states and logits, in steps of two batches each."""
    given = ["training.gradient_accumulation_steps=2"]
    return kdcache.profile(cache, recipe="pkd-last", steps=2, overrides=given, **STUDENT)


def test_the_parts_of_a_step_add_up_to_it(heads: tuple[Any, Path], layers: ProfileResult) -> None:
    for result in (heads[0], layers):
        for row in result.report["rows"]:
            assert sum(row["parts"].values()) == pytest.approx(row["mean_seconds"])
            assert min(row["parts"].values()) >= 0
            expected = {"waiting for data", "decode", "forward", "backward", "optimizer", OTHER}
            assert expected <= row["parts"].keys()
    assert "loss kl" in heads[0].report["rows"][0]["parts"]
    assert "reading" in heads[0].report["rows"][0]["beside"]


def test_the_ways_come_to_one_loss(heads: tuple[Any, Path], layers: ProfileResult) -> None:
    for result, ways in ((heads[0], (OURS, UNFUSED, PLAIN)), (layers, (OURS, PLAIN))):
        rows = result.report["rows"]
        assert [row["way"] for row in rows] == [way.name for way in ways]
        for row in rows:
            assert row["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
            assert row["peak_bytes"] is None or row["peak_bytes"] > 0


def test_the_ops_are_those_that_the_recipe_runs(
    heads: tuple[Any, Path], layers: ProfileResult
) -> None:
    (head,) = heads[0].report["ops"]
    assert (head["op"], head["calls"]) == ("linear_topk_kl", 1)
    found = {row["op"]: row for row in layers.report["ops"]}
    assert found.keys() == {"topk_kl", "hidden_mse"}
    assert {row["calls"] for row in found.values()} == {2}  # a batch each
    for row in (head, *found.values()):
        assert row["bytes"] > 0
        assert row["share_of_limit"] == pytest.approx(row["limit_seconds"] / row["seconds"])
        assert (row["flops"] > 0) == row["op"].startswith("linear")
        assert row["bound"] in ("copy", "product")


def test_files_hold_the_report_and_a_trace_that_names_parts_and_ops(
    heads: tuple[Any, Path],
) -> None:
    result, out = heads
    assert {path.name for path in out.iterdir()} == {"profile.json", "profile.png", "trace.json"}
    assert json.loads((out / "profile.json").read_text()) == json.loads(json.dumps(result.report))
    names = {event["name"] for event in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert {"forward", "loss kl", "linear_topk_kl", "backward", "optimizer"} <= names


def test_what_a_loss_keeps_of_steps_sets_no_way_apart(cache: Cache) -> None:
    assert cache.plan.parts > 1  # the numbers of documents have gaps
    result = kdcache.profile(cache, recipe="crd", steps=1, **STUDENT)
    ours, plain = (row["loss"] for row in result.report["rows"])
    assert ours == pytest.approx(plain, rel=1e-5)


def test_losses_that_are_no_numbers_are_not_timed(cache: Cache) -> None:
    given = ["losses.kl.weight=1e39"]  # infinite in float32
    with pytest.raises(ModelError, match="the student's outputs are no numbers"):
        kdcache.profile(cache, recipe="kd", overrides=given, **STUDENT)


def test_a_notebook_shows_all_tables(layers: ProfileResult) -> None:
    shown = layers._repr_html_()
    assert shown.count("<table") == 3
    assert "plain torch losses" in shown
    assert layers.table().rows[-1][0] == "step"
    assert "plain torch losses" in repr(layers)


def test_bytes_and_products_of_ops_are_counted_by_hand() -> None:
    rows, classes, width, k = 5, 11, 4, 3
    f64: Any = {"dtype": torch.float64}  # which no kernel has to be compiled for
    hidden = torch.randn(rows, width, requires_grad=True, **f64)
    head = torch.randn(classes, width, requires_grad=True, **f64)
    ids = torch.arange(k).expand(rows, k).contiguous()
    logprobs, tail = torch.full((rows, k), -2.0, **f64), torch.full((rows,), -0.5, **f64)
    weight, lengths = torch.ones(rows, **f64), torch.tensor([2, 3])
    with OpWatch(CLOCKS["cpu"]) as watch:
        topk_kl(hidden @ head.T, ids, logprobs, tail_logmass=tail, weight=weight)
        linear_topk_kl(
            hidden, head.detach(), None, ids, logprobs, tail_logmass=tail, row_weight=weight
        )
        teacher = torch.randn(rows, 7, **f64), torch.randn(classes, 7, **f64)
        linear_kl(hidden, head, *teacher, row_weight=weight)
        relation_kl(hidden, torch.randn(rows, 6, **f64), lengths, heads=2)
    by_op = {call.op: call for call in watch.calls}
    read = rows * classes + 2 * rows * k + rows + rows
    assert by_op["topk_kl"].bytes == 8 * (read + rows * classes + 1 + 2 * rows)
    assert by_op["topk_kl"].flops == 0
    product = 2 * rows * classes
    assert by_op["linear_topk_kl"].flops == 2 * product * width  # a frozen head has no gradient
    assert by_op["linear_kl"].flops == product * (3 * width + 7)
    assert by_op["relation_kl"].flops == 2 * (4 + 9) * (3 * width + 6)


def test_each_way_is_the_first_of_a_round_as_often_as_the_others() -> None:
    found = turns((OURS, UNFUSED, PLAIN), 6, trace=True)
    timed = [turn for turn in found if turn.kind == TIME]
    assert Counter(turn.way for turn in timed) == dict.fromkeys((OURS, UNFUSED, PLAIN), 6)
    firsts = Counter(turn.way for turn in timed if turn.first)
    assert firsts == dict.fromkeys((OURS, UNFUSED, PLAIN), 2)
    assert [turn.kind for turn in found[-4:]] == ["ops", "ops", "ops", "trace"]


def test_parts_of_a_part_count_once() -> None:
    recorder = Recorder(CLOCKS["cpu"])
    recorder.begin()
    with watched(recorder.part), span("outer"), span("inner"):
        pass
    found = recorder.end()
    assert set(found.parts) == {"outer", "inner", OTHER}
    assert sum(found.parts.values()) == pytest.approx(found.seconds)


def test_parts_cost_nothing_where_nobody_watches() -> None:
    def run() -> None:
        with span("forward"):
            pass

    least = min(timeit.repeat(run, number=2000, repeat=5)) / 2000
    assert least < 5e-6  # some ten a step, which takes ten milliseconds and more


def test_only_clocks_that_can_tell_are_taken() -> None:
    with pytest.raises(ConfigError, match="got mps: give --device cpu"):
        kdcache.profiling.recorder.clock_of(torch.device("mps"))


def test_the_command_prints_what_the_report_holds(
    cache: Cache, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    from kdcache_cli.main import main

    monkeypatch.chdir(tmp_path)
    given = ["--recipe", "annealing-kd", "--stage", "labels", "--init-from-teacher", "1-2"]
    call = ["profile", str(cache.path), *given, "--steps", "1", "--device", "cpu", "--quiet"]
    assert main(call) == 0
    out = capsys.readouterr().out
    for words in (
        "stage ",
        "labels",
        "Where a step's time goes",
        "loss hard",
        "plain torch losses",
    ):
        assert words in out, out
    assert not list(tmp_path.iterdir())


def test_the_command_profiles_a_build(
    corpus: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcache_cli.main import main

    given = ["--teacher", str(classifier), "--task", "text-classification", "--limit", "12"]
    assert main(["profile", "--build", str(corpus), *given, "--device", "cpu", "--quiet"]) == 0
    out = capsys.readouterr().out
    for words in ("forward", "encoding", "100.0%", "while the teacher ran"):
        assert words in out, out


def test_the_parts_of_a_build_add_up_to_it(corpus: Path, classifier: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = kdcache.profile_build(
        corpus,
        teacher=classifier,
        task="text-classification",
        device="cpu",
        limit=40,
        part_tokens=512,
        out=out,
    )
    (row,) = result.report["rows"]
    assert sum(row["parts"].values()) == pytest.approx(row["seconds"])
    expected = {"reading", "forward", "encoding", "device to host", "waiting for the writer", OTHER}
    assert expected <= row["parts"].keys()
    assert row["beside"].keys() == {"writing"}
    assert 0 <= row["overlap"] <= 1
    assert result.report["settings"]["documents"] == 40
    assert result.report["settings"]["parts"] > 1
    assert {path.name for path in out.iterdir()} == {"build.json", "build.png"}
    assert list(tmp_path.iterdir()) == [out]
    assert "waiting for the writer" in result._repr_html_()
