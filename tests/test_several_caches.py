"""One student from several caches: steps of one cache each, in an order of seed and epoch alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from kdcache.building.builder import build
from kdcache.corpora.standard_library import Docstring
from kdcache.errors import ConfigError, MismatchError
from kdcache.models import run as run_model
from kdcache.models.teacher import model_sizes
from kdcache.store import Cache
from kdcache.training.documents import CachedDocuments
from kdcache.training.loader import make_loader
from kdcache.training.mixing import MixedDocuments, pass_documents, steps_of
from kdcache.training.objective import Objective
from kdcache.training.recipe import load_recipe
from kdcache.training.result import TrainResult
from kdcache.training.specs import cache_spec
from kdcache.training.train import train
from kdcache.training.traits import OF_A_HEAD, TRAITS, apart, require_together
from tests.conftest import write_csv
from tests.test_stages import At
from tests.test_trainer import assert_same_weights

DENSE = ["logits/values"]


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[Docstring], classifier: Path
) -> Cache:
    """Another corpus for the same teacher, its logits in another codec; no hidden states."""
    folder = tmp_path_factory.mktemp("other")
    rows = [(s.text.upper(), s.package) for s in sentences[::3][:77]]
    return build(
        write_csv(folder / "other.csv", rows),
        teacher=classifier,
        task="text-classification",
        out=folder / "other.cache",
        signals=["logits:topk,k=2"],
        max_length=48,
        seed=9,
    )


@pytest.fixture(scope="module")
def narrow_config(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> str:
    """A small student's configuration, with dropout."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.from_pretrained(classifier, **sizes)
    config.save_pretrained(folder := tmp_path_factory.mktemp("narrow"))
    return str(folder)


def mixed(cache: Cache, other: Cache, mix: Any = None, **options: Any) -> MixedDocuments:
    sets = [CachedDocuments(one, []) for one in (cache, other)]
    made = MixedDocuments(sets, mix, **{"seed": 3, **options})
    made.batch = 16
    return made


def turns(dataset: MixedDocuments, **options: Any) -> list[list[int]]:
    return list(make_loader(dataset, **{"batch_size": 16, **options}).batch_sampler)


def cache_of(dataset: MixedDocuments, docs: Any) -> int:
    (found,) = {int(np.searchsorted(dataset.starts, doc, "right")) - 1 for doc in docs}
    return found


def test_an_epoch_without_shares_is_a_pass_over_all_documents(cache: Cache, other: Cache) -> None:
    dataset = mixed(cache, other)
    steps = turns(dataset)
    assert sorted(chain.from_iterable(steps)) == sorted(
        [*cache.plan.docs, *(dataset.starts[1] + other.plan.docs)]
    )
    assert len(dataset) == cache.plan.documents + other.plan.documents == sum(map(len, steps))
    found = [cache_of(dataset, docs) for docs in steps]
    assert {0, 1} == set(found[:8])  # in turn, not one behind the other
    short = [len(docs) for docs in steps if len(docs) < 16]
    assert short == [len(steps[-1])] == [other.plan.documents % 16]


@pytest.mark.parametrize("window", [0, 4])
def test_the_order_is_a_function_of_seed_epoch_and_step(
    cache: Cache, other: Cache, window: int
) -> None:
    def order(seed: int, epoch: int, mix: Any = (0.5, 0.5)) -> list[int]:
        dataset = mixed(cache, other, mix, seed=seed, window=window)
        dataset.set_epoch(epoch)
        return [int(doc) for doc in dataset.order]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 1, (0.4, 0.6))
    assert torch.equal(torch.get_rng_state(), before)


def test_shares_are_of_the_steps_and_a_cache_starts_over_when_it_is_through(
    cache: Cache, other: Cache
) -> None:
    dataset = mixed(cache, other, (0.25, 0.75))
    steps = turns(dataset)
    assert len(steps) == -(-(cache.plan.documents + other.plan.documents) // 16)
    assert all(len(docs) == 16 for docs in steps)
    found = Counter(cache_of(dataset, docs) for docs in steps)
    assert found[0] == round(len(steps) / 4)
    assert dataset.shares == [found[0] / len(steps), found[1] / len(steps)]
    seen: list[list[int]] = [[], []]
    for epoch in range(12):
        dataset.set_epoch(epoch)
        for docs in turns(dataset):
            seen[cache_of(dataset, docs)] += docs
    for docs, one in zip(seen, (cache, other), strict=True):
        times = Counter(docs)
        assert len(times) == one.plan.documents
        assert max(times.values()) - min(times.values()) <= 1


def test_passes_are_whole_and_follow_each_other_wherever_epochs_cut_them() -> None:
    whole = pass_documents(10, start=0, stop=40, seed=1, cache=0)
    assert [sorted(whole[i : i + 10]) for i in (0, 10, 20, 30)] == [list(range(10))] * 4
    assert (whole[:10] != whole[10:20]).any()
    parts = [pass_documents(10, start=i, stop=i + 8, seed=1, cache=0) for i in range(0, 40, 8)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert (pass_documents(10, start=0, stop=10, seed=1, cache=1) != whole[:10]).any()


def test_steps_are_shared_out_by_largest_remainder() -> None:
    assert steps_of([90, 10], [0.5, 0.5], 10) == [5, 5]
    assert steps_of([90, 15], [0.7, 0.3], 10) == [8, 3]
    assert steps_of([10, 10, 13], [1 / 3, 1 / 3, 1 / 3], 10) == [2, 1, 1]


def test_a_share_that_comes_to_no_step_is_refused(cache: Cache, other: Cache) -> None:
    with pytest.raises(ConfigError, match=r"share of .*other\.cache, 0\.001 \(--mix\), comes to"):
        len(mixed(cache, other, (0.999, 0.001)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("mix", [None, (0.3, 0.7)])
def test_any_number_of_ranks_takes_the_same_steps_in_as_many_turns(
    cache: Cache, other: Cache, mix: Any, drop_last: bool
) -> None:
    whole = [sorted(docs) for docs in turns(mixed(cache, other, mix), drop_last=drop_last)]
    for ranks, size in ((1, 4), (2, 8), (2, 2), (4, 1)):
        options = {"batch_size": size, "drop_last": drop_last, "ranks": ranks}
        shares = [turns(mixed(cache, other, mix), rank=rank, **options) for rank in range(ranks)]
        lengths = {len(share) for share in shares}
        per_step = 16 // (size * ranks)
        assert lengths == {len(whole) * per_step}
        for step, docs in enumerate(whole):
            at = slice(step * per_step, (step + 1) * per_step)
            found = [doc for share in shares for turn in share[at] for doc in turn]
            assert sorted(doc for doc in found if doc >= 0) == docs
            assert {~doc for doc in found if doc < 0} <= set(docs)  # stand in, of the same cache


def test_a_batch_is_that_of_its_cache_and_says_which(cache: Cache, other: Cache) -> None:
    arrays = [DENSE, list(other.layouts)]
    sets = [CachedDocuments(c, names) for c, names in zip((cache, other), arrays, strict=True)]
    dataset = MixedDocuments(sets, None, seed=3)
    dataset.batch = 16
    seen: Counter[int] = Counter()
    for batch in make_loader(dataset, batch_size=16):
        one = (cache, other)[batch.cache]
        expected = one.batch(batch["docs"].numpy(), arrays[batch.cache])
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert batch.to("cpu").cache == batch.cache
        seen[batch.cache] += len(batch["docs"])
    assert seen == {0: cache.plan.documents, 1: other.plan.documents}
    assert dataset.turn([~int(other.plan.docs[0] + dataset.starts[1])]).idle


class Stop(transformers.TrainerCallback):
    """Asks a run to stop, as Ctrl-C does, behind a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> str:
    """A student's configuration without dropout: it says the same in training as after it."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.AutoConfig.from_pretrained(classifier, **sizes, **off)
    config.save_pretrained(folder := tmp_path_factory.mktemp("still"))
    return str(folder)


def recorded(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def test_the_loss_of_a_step_is_that_of_its_cache(
    cache: Cache, other: Cache, still: str, tmp_path: Path
) -> None:
    quiet_run = [
        "training.learning_rate=0.0",
        "training.logging_steps=1",
        "training.weight_decay=0.0",
    ]
    run = train(
        [cache, other],
        mix="1,3",
        recipe="kd",
        config=still,
        out=tmp_path / "s",
        overrides=quiet_run,
        batch_size=32,
        epochs=1,
        seed=4,
    )
    student = transformers.AutoModelForSequenceClassification.from_pretrained(run.folder)
    student.eval()
    losses = load_recipe("kd").losses
    sizes = model_sizes(student.config, cache.plan.task)
    bound = [Objective(losses, cache_spec(one, one.plan.labelled), sizes) for one in (cache, other)]
    sets = [CachedDocuments(c, o.arrays) for c, o in zip((cache, other), bound, strict=True)]
    window = load_recipe("kd").data.window
    dataset = MixedDocuments(sets, (0.25, 0.75), seed=4, window=window)
    dataset.batch = 32
    expected, share = [], Counter[str]()
    with torch.no_grad():
        for batch in make_loader(dataset, batch_size=32):
            objective = bound[batch.cache]
            outputs = run_model(student, batch, objective.taps(), task=cache.plan.task)
            expected.append(float(objective(outputs, batch)[0]))
            share[(cache, other)[batch.cache].path.name] += 1
    logged = [
        entry["loss"] for entry in recorded(run.folder, "training_log.json") if "loss" in entry
    ]
    assert logged == pytest.approx(expected, rel=1e-5)
    assert len(logged) == -(-(cache.plan.documents + other.plan.documents) // 32)
    told = recorded(run.folder, "metrics.json")["caches"]
    assert {row["cache"]: row["share"] for row in told} == {
        name: steps / len(logged) for name, steps in share.items()
    }
    card = (run.folder / "README.md").read_text("utf-8")
    for row, one in zip(told, (cache, other), strict=True):
        assert row["contents"] == one.completion["contents"]  # type: ignore[index]  # complete
        assert f"| cache {row['cache']} | {row['share']:.0%} of the" in card
        assert row["contents"] in card


@pytest.mark.parametrize("mix", [pytest.param(None, marks=pytest.mark.slow), (0.4, 0.6)])
def test_a_resumed_run_of_several_caches_is_the_unbroken_one_bit_for_bit(
    cache: Cache, other: Cache, narrow_config: str, tmp_path: Path, mix: Any
) -> None:
    options: dict[str, Any] = {
        "recipe": "kd",
        "config": narrow_config,
        "mix": mix,
        "epochs": 2,
        "batch_size": 16,
        "overrides": ["training.gradient_accumulation_steps=2", "training.save_strategy=no"],
    }
    whole = train([cache, other], out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train([cache, other], out=tmp_path / "broken", callbacks=[Stop()], **options)
    for changed in ({"mix": (0.5, 0.5)}, {"first": other, "second": cache}, {"second": None}):
        pair = [changed.get("first", cache), changed.get("second", other)]
        with pytest.raises(MismatchError, match="holds a run with cache"):
            train(
                [one for one in pair if one is not None],  # type: ignore[misc]  # what is meant
                out=tmp_path / "broken",
                resume=True,
                **{**options, "mix": changed.get("mix", mix if changed.get("second", 1) else None)},
            )
    options["overrides"] += ["description=told otherwise", "needs=nothing"]  # for people alone
    again = train([cache, other], out=tmp_path / "broken", resume=True, **options)
    assert again.metrics["steps"] == whole.metrics["steps"] == 2 * 11 - (mix is not None) * 2
    one, two = (load_file(run.folder / "model.safetensors") for run in (whole, again))
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def changed(cache: Cache, **config: Any) -> Cache:
    """A cache whose plan says something else of itself."""
    made = Cache(cache.path)
    made.plan = dataclasses.replace(
        cache.plan, config=dataclasses.replace(cache.plan.config, **config)
    )
    return made


def tokenizer(cache: Cache, **values: Any) -> dict[str, Any]:
    return {"tokenizer": {**cache.plan.config.tokenizer, **values}}


def differences(cache: Cache) -> dict[str, dict[str, Any]]:
    return {
        "tokenizer (SHA-256)": tokenizer(cache, sha256="f" * 64),
        "number of tokens": tokenizer(cache, vocab_size=7),
        "pad token": tokenizer(cache, pad_id=9),
        "token types": tokenizer(cache, type_ids=False),
        "mask token": tokenizer(cache, mask_id=4),
    }


def test_caches_that_do_not_go_together_are_named_with_the_difference(
    cache: Cache, other: Cache
) -> None:
    require_together(cache, other)
    made = {name: changed(other, **config) for name, config in differences(other).items()}
    assert made.keys() == TRAITS.keys()
    for name, odd in made.items():
        masked = changed(cache, **tokenizer(cache, mask_id=5))
        one = masked if name == "mask token" else cache
        pattern = (
            rf"{re.escape(str(cache.path))} and {re.escape(str(odd.path))} do not go together: "
        )
        with pytest.raises(
            MismatchError, match=rf"{pattern}the {re.escape(name)} is .*: \w"
        ) as caught:
            require_together(one, odd)
        assert "\n" not in str(caught.value)


def test_caches_of_other_tasks_or_classes_need_a_head_each(cache: Cache, other: Cache) -> None:
    names = [*(cache.plan.config.classes or [])]
    config: dict[str, dict[str, Any]] = {
        "task": {"task": "masked-lm"},
        "kind of label": {"label_kind": "regression"},
        "classes": {"corpus": {**cache.plan.config.corpus, "classes": names[::-1]}},
    }
    made = {name: changed(other, **values) for name, values in config.items()}
    made["number of outputs"] = Cache(other.path)
    made["number of outputs"].shape = dataclasses.replace(other.shape, outputs=5)
    assert made.keys() == OF_A_HEAD.keys()
    assert apart(cache, other) == ""
    for name, odd in made.items():
        require_together(cache, odd)
        assert f"the {name} is" in apart(cache, odd)


def test_what_several_caches_cannot_serve_is_refused_before_anything_loads(
    cache: Cache, other: Cache, narrow_config: str, tmp_path: Path
) -> None:
    def refused(error: type[Exception], match: str, caches: Any, **options: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            train(caches, out=tmp_path / "x", **{"config": narrow_config, **options})
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    both = [cache, other]
    named = rf"{re.escape(str(cache.path))} and {re.escape(str(other.path))} do not go together"
    hidden = ["losses.hidden.weight=1.0", "losses.hidden.layer_map=uniform"]
    refused(ConfigError, f"{named} in recipe kd, .*losses.hidden needs", both, overrides=hidden)
    refused(ConfigError, f"{named} in recipe kd-mse, .*the first can serve", both, recipe="kd-mse")
    few = min(len(one.plan.docs) for one in both)
    whole = [
        "training.dataloader_drop_last=true",
        f"training.per_device_train_batch_size={few + 1}",
    ]
    refused(ConfigError, f"leaves nothing of .* there are {few} documents", both, overrides=whole)
    refused(ConfigError, "named twice", [cache, Cache(cache.path)])
    refused(ConfigError, "got an empty list", [])
    refused(ConfigError, "several caches, and there is one", cache, mix="1")
    refused(ConfigError, r"3 shares, and there are 2 caches", both, mix="1,2,3")
    refused(ConfigError, r"more than 0 and finite; got '1,0'", both, mix="1,0")
    refused(ConfigError, r"shares as in 0\.7,0\.3; got 'half'", both, mix="half")
    refused(ConfigError, r"\(--mix\), comes to none", both, mix=(1, 1000))
    refused(ConfigError, "--allow-partial is for one cache", both, allow_partial=True)


def test_what_is_learned_of_one_cache_is_refused_for_several_of_any_sizes(
    cache: Cache, corpus: Path, classifier: Path, narrow_config: str, tmp_path: Path
) -> None:
    few = build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "few",
        signals=["logits:dense", "hidden:layers=4,positions=cls"],
        max_length=48,
        limit=12,
    )
    with pytest.raises(ConfigError, match=r"losses\.crd remembers the documents of one cache"):
        train([cache, few], recipe="crd", out=tmp_path / "x", config=narrow_config)
    policy = ["losses.rl.weight=1", "losses.rl.semantic=cls"]
    with pytest.raises(ConfigError, match=r"losses\.rl learns which of a cache's teachers to take"):
        train([cache, few], overrides=policy, out=tmp_path / "x", config=narrow_config)
    assert not (tmp_path / "x").exists()


def test_documents_of_a_dev_file_are_left_out_of_every_cache(
    cache: Cache, other: Cache, narrow_config: str, tmp_path: Path, corpus: Path
) -> None:
    (tmp_path / "dev.csv").write_text("\n".join(corpus.read_text("utf-8").splitlines()[:41]))
    twin = tmp_path / "twin.cache"
    shutil.copytree(cache.path, twin)
    run = train(
        [other, twin],
        out=tmp_path / "s",
        config=narrow_config,
        dev=tmp_path / "dev.csv",
        epochs=1,
        batch_size=64,
    )
    told = run.metrics["caches"]
    assert [row["documents_an_epoch"] for row in told] == [77 - 14, cache.plan.documents - 40]
    assert run.metrics["dev"]["documents"] == 40


STAGES = """
[training]
max_steps = 3
logging_steps = 1
per_device_train_batch_size = 16

[[stages]]
name = "soft"
[stages.losses.kl]

[[stages]]
name = "hard"
[stages.losses.hard]
"""


@pytest.mark.slow
def test_stages_learn_from_several_caches_and_a_run_that_died_between_them_goes_on(
    cache: Cache, other: Cache, narrow_config: str, tmp_path: Path
) -> None:
    (tmp_path / "two.toml").write_text(STAGES, "utf-8")

    def run(name: str, **more: Any) -> TrainResult:
        options = {"recipe": tmp_path / "two.toml", "config": narrow_config, "device": "cpu"}
        return train([cache, other], mix="0.5,0.5", out=tmp_path / name, **options, **more)

    def die() -> None:
        raise RuntimeError("stopped")

    whole = run("whole")
    for stage in whole.metrics["stages"].values():
        assert [round(row["share"], 1) for row in stage["caches"]] == [0.5, 0.5]
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=At("hard", 1, die))
    with pytest.raises(MismatchError, match="several"):
        train(
            [cache, other], mix="0.6,0.4", recipe=tmp_path / "two.toml", config=narrow_config,
            device="cpu", out=tmp_path / "broken", resume=True,
        )  # fmt: skip
    again = At()
    resumed = run("broken", resume=True, progress=again)
    assert [label.rpartition(" ")[2] for label in again.labels] == ["hard"]
    assert_same_weights(whole.folder, resumed.folder)
