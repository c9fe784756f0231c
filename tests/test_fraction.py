"""A fraction of the positions: the rows kept are the whole cache's, and losses know which."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
import transformers
import zarr

from kdcache.bench.report import installed
from kdcache.bench.store_cases import cases
from kdcache.bench.store_readers import READERS, Source
from kdcache.building.budget import propose
from kdcache.building.builder import build, estimate
from kdcache.building.describe import describe_bytes
from kdcache.errors import ConfigError, DamageError
from kdcache.evaluation.evaluator import evaluate
from kdcache.losses import CacheSpec, Hard, HiddenMSE, LogitMSE, SoftKL
from kdcache.maintenance.copying import copy
from kdcache.maintenance.exporting import export, part_columns
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.maintenance.verifying import verify
from kdcache.models import plain_head
from kdcache.plans import round_up
from kdcache.plans.batch import Batch
from kdcache.signals import ModelSizes, parse_all
from kdcache.store import Cache, open_cache
from kdcache.tasks import Space, Subset
from kdcache.training.objective import Objective
from kdcache.training.train import train
from tests.activations import say
from tests.damage import copy_of, files_of, flip, forge_manifest
from tests.test_builder import Watch
from tests.test_subsets import FRACTIONS, LOGITS, sampled_by_hand

TASKS: list[str] = ["masked-lm", "causal-lm"]
SLOW = pytest.mark.slow
PLACE: dict[str, str] = {"masked-lm": "selected", "causal-lm": "all"}
SPACE: dict[str, Space] = {"masked-lm": "selected", "causal-lm": "token"}
SIGNALS = ["logits:{logits}", "hidden:layers=0-4,positions={place},dtype=int8"]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, prose_file: Path, masked_lm: Path, causal_lm: Path
) -> Any:
    """Make caches of some parts, by task and signals, each once."""
    folder, made = tmp_path_factory.mktemp("fraction"), {}
    teachers: dict[str, Path] = {"masked-lm": masked_lm, "causal-lm": causal_lm}

    def build_once(task: str, *signals: str) -> Cache:
        key = (task, *signals)
        if key not in made:
            made[key] = build(
                prose_file,
                teacher=teachers[task],
                task=task,
                out=folder / f"{len(made)}.zarr",
                signals=signals,
                limit=40,
                max_length=40,
                part_tokens=768,
                batch_tokens=512,
                seed=3,
            )
        return made[key]

    return build_once


def signals_of(task: str, logits: str = "topk,k=8", fraction: float = 1.0) -> list[str]:
    given = [text.format(logits=logits, place=PLACE[task]) for text in SIGNALS]
    return [text + (f",fraction={fraction}" if fraction < 1 else "") for text in given]


@pytest.mark.parametrize("task", TASKS)
def test_kept_rows_are_those_of_the_whole_cache(task: str, place: Any) -> None:
    """Those of every codec: tests/conformance."""
    whole = place(task, *signals_of(task))
    part = place(task, *signals_of(task, fraction=0.2))
    assert part.plan.parts > 2
    assert part.plan.sha256 == whole.plan.sha256
    for docs in (part.plan.docs, part.plan.docs[[9, 2, 30, 4]]):
        kept = part.sampled_rows("logits", docs)
        assert 0 < len(kept) < len(whole.sampled_rows("logits", docs))
        for name in part.layouts:
            np.testing.assert_array_equal(part.read(name, docs), whole.read(name, docs)[kept])
        assert torch.equal(part.hidden(4, docs).dense(), whole.hidden(4, docs).dense()[kept])
        found, wanted = (cache.soft_labels(docs).logprobs for cache in (part, whole))
        assert torch.equal(found, wanted[kept])
        batch = part.batch(docs)
        assert batch["logits/kept"].tolist() == batch["hidden/kept"].tolist() == kept.tolist()
    assert "logits/kept" not in whole.batch(docs)
    assert "hidden/kept" not in part.batch(docs, part.arrays_of("logits"))
    rows = part.plan.count(part.space_of("logits"))
    stored = part.read(part.arrays_of("logits")[0], part.plan.docs)
    assert part.fidelity["logits"]["rows"] == rows == len(stored)


@pytest.mark.parametrize("task", TASKS)
def test_tokens_are_sampled_beside_whole_logits(task: str, place: Any) -> None:
    """Each signal has its own rows; those of logits need not be those of hidden states."""
    texts = ["logits:topk,k=8", "hidden:layers=0-4,positions=all,fraction=0.4"]
    mixed = place(task, *texts)
    whole = place(task, "logits:topk,k=8", "hidden:layers=0-4,positions=all,dtype=int8")
    docs = mixed.plan.docs
    kept = mixed.sampled_rows("hidden", docs)
    assert abs(len(kept) - 0.4 * mixed.plan.tokens) <= mixed.plan.parts
    np.testing.assert_array_equal(
        mixed.read("hidden/L4/codes", docs), whole.read("hidden/L4/codes", docs)[kept]
    )
    np.testing.assert_array_equal(mixed.read("logits/ids", docs), whole.read("logits/ids", docs))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_bytes_are_exact_before_the_teacher_runs(fraction: float, place: Any) -> None:
    signals = signals_of("causal-lm", fraction=fraction)
    cache = place("causal-lm", *signals)
    told = describe_bytes(cache.plan, parse_all(signals), cache.shape)
    assert told["arrays"] == cache.bytes
    whole = describe_bytes(cache.plan, parse_all(signals_of("causal-lm")), cache.shape)["arrays"]
    for layout in cache.layouts.values():
        on_disk = sum(
            (cache.path / layout.key(s)).stat().st_size
            for p in range(cache.plan.parts)
            for s in layout.part_shards(p)
        )
        assert on_disk == told["arrays"][layout.name] <= whole[layout.name]
        assert layout.part_rows == round_up(math.ceil(cache.plan.rows["token"] * fraction))


def objective(cache: Cache, losses: Any) -> Objective:
    config = cache.plan.config
    known = CacheSpec(
        task=cache.plan.task,
        label_kind=config.label_kind,
        signals=cache.signals,
        shape=cache.shape,
        labelled=cache.plan.labelled,
    )
    return Objective(losses, known, ModelSizes(outputs=cache.shape.outputs, hidden=32, layers=2))


def student(task: str, vocabulary: int) -> Any:
    torch.manual_seed(7)
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "initializer_range": 0.3}
    if task == "causal-lm":
        config: Any = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, n_positions=64, **sizes
        )
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **sizes
    )
    return transformers.BertForMaskedLM(config).eval()


def by_hand(outputs: Any, whole: Cache, docs: Any, kept: Any, name: str) -> torch.Tensor:
    """A loss in plain float64 torch: rows of the whole cache, the mean over those kept."""
    rows = torch.from_numpy(kept)
    if name == "hidden":
        at = (
            outputs.mask.flatten().nonzero().squeeze(1)
            if outputs.selected is None
            else outputs.selected
        )
        total = outputs.hidden[0].new_zeros((), dtype=torch.float64)
        for mine, theirs in ((1, 0), (2, 4)):
            found = outputs.hidden[mine].flatten(0, 1)[at].double()
            wanted = whole.hidden(theirs, docs).dense().double()
            total = total + (found - wanted)[rows].square().mean() / 2
        return total
    soft, logits = whole.soft_labels(docs), outputs.logits.double()
    if name == "logit_mse":
        assert soft.values is not None
        return (logits - soft.values.double())[rows].square().mean()
    mine, p = logits.log_softmax(-1), soft.logprobs.double()
    q = mine.gather(1, soft.ids)
    if soft.tail_logmass is not None:
        rest = mine.exp().scatter(1, soft.ids, 0.0).sum(-1, keepdim=True).log()
        p = torch.cat([p, soft.tail_logmass.double()[:, None]], 1)
        q = torch.cat([q, rest], 1)
    return (p.exp() * (p - q))[rows].sum() / len(rows)


HELD = {
    "kl": ("topk,k=8", {"kl": SoftKL()}),
    "kl through heads": ("hidden-head,dtype=int8", {"kl": SoftKL()}),
    "kl and hard": ("topk-small,k=8", {"kl": SoftKL(weight=0.5), "hard": Hard(weight=0.25)}),
    "hidden": ("topk,k=8", {"hidden": HiddenMSE(layer_map="1:0,2:4")}),
    "all": (
        "dense",
        {
            "kl": SoftKL(weight=0.5),
            "hard": Hard(weight=0.25),
            "logit_mse": LogitMSE(weight=0.1),
            "hidden": HiddenMSE(weight=3.0, layer_map="1:0,2:4"),
        },
    ),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("fused", [False, True], ids=["logits", "head"])
@pytest.mark.parametrize("task", TASKS)
def test_a_loss_and_its_gradient_are_those_at_the_kept_rows(
    task: str, fused: bool, held: str, place: Any
) -> None:
    logits, losses = HELD[held]
    whole = place(task, *signals_of(task, logits))
    part = place(task, *signals_of(task, logits, 0.2))
    aim, docs = objective(part, losses), part.plan.docs[[3, 9, 4, 17, 6]]
    batch = part.batch(docs, aim.arrays)
    model = student(task, part.shape.outputs)
    head = plain_head(model, batch) if fused and not aim.matrix else None
    total, terms = aim(say(model, task, batch, hidden=True, head=head), batch)
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    outputs = say(model, task, whole.batch(docs), hidden=True)
    kept = whole.plan.sampled_rows(docs, Subset(SPACE[task], 0.2))
    wanted = torch.zeros((), dtype=torch.float64)
    for name, loss in losses.items():
        if name == "hard":
            value = torch.nn.functional.cross_entropy(outputs.logits.double(), batch["labels"])
        else:
            value = by_hand(outputs, whole, docs, kept, name)
        torch.testing.assert_close(terms[name].double(), value.detach(), rtol=2e-5, atol=0)
        wanted = wanted + loss.weight * value
    torch.testing.assert_close(total.detach().double(), wanted.detach(), rtol=2e-5, atol=0)
    wanted.backward()
    exact = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert exact.keys() == found.keys()
    for name, gradient in exact.items():
        error = (found[name] - gradient).abs().max()
        assert error <= 2e-5 * (1e-2 + gradient.abs().max()), name


def test_pads_count_for_the_share_that_is_kept(place: Any) -> None:
    """The sum over kept tokens, divided by the like share of the padded positions."""
    part = place("causal-lm", *signals_of("causal-lm", fraction=0.2))
    whole = place("causal-lm", *signals_of("causal-lm"))
    loss = HiddenMSE(layer_map="1:0,2:4", positions="all", pads="count")
    aim, docs = objective(part, {"hidden": loss}), part.plan.docs[:6]
    batch = part.batch(docs, aim.arrays)
    outputs = say(student("causal-lm", part.shape.outputs), "causal-lm", batch, hidden=True)
    mean = by_hand(outputs, whole, docs, part.sampled_rows("hidden", docs), "hidden").detach()
    share = float(batch["attention_mask"].double().mean())
    assert share < 1
    assert float(aim(outputs, batch)[0].detach()) == pytest.approx(float(mean) * share, rel=1e-5)


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("task", TASKS)
def test_documents_without_a_kept_row_cost_nothing(task: str, logits: str, place: Any) -> None:
    part = place(task, *signals_of(task, logits, 0.003))
    counts = part.plan.spans(part.plan.docs, part.space_of("logits"))[1]
    assert part.plan.parts <= counts.sum() < len(counts)
    assert verify(part.path, full=True) == []
    assert part.fidelity["logits"]["rows"] == counts.sum()
    docs = part.plan.docs[counts == 0][:4]
    losses = {"kl": SoftKL(), "hidden": HiddenMSE(layer_map="1:0")}
    aim = objective(part, losses)
    batch: Batch = part.batch(docs, aim.arrays)
    assert len(batch["logits/kept"]) == 0
    model = student(task, part.shape.outputs)
    for head in (None, plain_head(model, batch)):
        total, _ = aim(say(model, task, batch, hidden=True, head=head), batch)
        assert float(total.detach()) == 0.0
        total.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


class Breaking(Watch):
    """A progress that breaks a training run after six steps."""

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            self.done += done if unit == "steps" else 0
            if self.done == 6:
                raise RuntimeError("stopped")

        yield advance


@pytest.mark.parametrize("task", ["masked-lm", pytest.param("causal-lm", marks=SLOW)])
def test_a_student_is_trained_and_a_stopped_run_goes_on_exactly(
    task: str, place: Any, tmp_path: Path
) -> None:
    part = place(task, *signals_of(task, fraction=0.2))
    sizes = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "intermediate_size": 48, "vocab_size": part.shape.outputs}
    if task == "causal-lm":
        sizes = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        sizes["vocab_size"] = part.shape.outputs
    (tmp_path / "config.json").write_text(json.dumps(sizes))

    overrides = ["training.max_steps=8", "training.logging_steps=4", "training.learning_rate=1e-2"]
    overrides += ["training.save_steps=4", "training.save_strategy=steps"]
    overrides += ["losses.hidden.layer_map=1:0,2:4", "losses.hidden.weight=1"]

    def run(name: str, **options: Any) -> Any:
        return train(
            part,
            recipe="mlm-kd" if task == "masked-lm" else "causal-kd",
            out=tmp_path / name,
            config=str(tmp_path / "config.json"),
            overrides=[*overrides, "training.per_device_train_batch_size=8"],
            **options,
        )

    whole = run("whole")
    log = json.loads((whole.folder / "training_log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=Breaking())
    resumed = run("broken", resume=True)
    weights = [(r.folder / "model.safetensors").read_bytes() for r in (whole, resumed)]
    assert weights[0] == weights[1]


def test_an_interrupted_build_comes_out_the_same_to_the_byte(
    place: Any, prose_file: Path, causal_lm: Path, tmp_path: Path
) -> None:
    signals = signals_of("causal-lm", "topk-small,k=8", 0.2)
    whole = place("causal-lm", *signals)
    options: dict[str, Any] = {"limit": 40, "max_length": 40, "part_tokens": 768, "seed": 3}
    given = {"teacher": causal_lm, "task": "causal-lm", "signals": signals, "batch_tokens": 512}
    with pytest.raises(KeyboardInterrupt):
        build(prose_file, out=tmp_path / "c", progress=Watch(900), **given, **options)
    assert not open_cache(tmp_path / "c").complete
    build(prose_file, out=tmp_path / "c", **given, **options)
    assert files_of(tmp_path / "c") == files_of(whole.path)


def test_damage_is_found_and_made_again_and_the_teacher_agrees(place: Any, tmp_path: Path) -> None:
    cache = place("causal-lm", *signals_of("causal-lm", fraction=0.2))
    assert spot_check(cache.path, 12).findings == []
    root = copy_of(cache, tmp_path)
    flip(root / "logits/ids/c/1/0", 77)
    (root / "hidden/L4/codes/c/0/0").unlink()
    (root / "hidden/L0/scale/zarr.json").unlink()
    assert len(verify(root, full=True)) == 3
    assert repair(root).left == ()
    assert files_of(root) == files_of(cache.path)


@pytest.mark.parametrize("fraction", ["0.2", None, 0, -1, 1e300, [0.2], {}, 0.9])
def test_a_forged_fraction_is_refused(fraction: Any, place: Any, tmp_path: Path) -> None:
    root = copy_of(place("causal-lm", *signals_of("causal-lm", fraction=0.2)), tmp_path)
    forge_manifest(root, lambda record: record["signals"]["logits"].update(fraction=fraction))
    with pytest.raises(DamageError, match=r"signals\.logits|the manifest says"):
        open_cache(root)


def test_a_copy_and_a_merge_hold_the_same_rows(place: Any, tmp_path: Path) -> None:
    """Logits of every token, hidden states of a fifth: asked of the teacher one after the other."""
    part = place("causal-lm", signals_of("causal-lm", fraction=0.2)[1])
    logits = place("causal-lm", "logits:topk,k=8")
    copy(part.path, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(part.path)
    merge([logits.path, part.path], tmp_path / "both")
    both, docs = open_cache(tmp_path / "both"), part.plan.docs
    assert verify(tmp_path / "both", full=True) == []
    assert both.signals == {**logits.signals, **part.signals}
    assert both.spaces == {**logits.spaces, **part.spaces}
    np.testing.assert_array_equal(
        both.read("hidden/L4/codes", docs), part.read("hidden/L4/codes", docs)
    )


@pytest.mark.parametrize("raw", [False, True], ids=["decoded", "raw"])
@pytest.mark.parametrize("task", TASKS)
def test_an_export_says_which_rows_there_are(
    task: str, raw: bool, place: Any, tmp_path: Path
) -> None:
    cache = place(task, *signals_of(task, fraction=0.2))
    made = export(cache, tmp_path / "out", form="parquet", raw=raw)
    assert export(cache, tmp_path / "tensors", raw=raw).bytes
    name = "hidden/L4/scale" if raw else "hidden.L4"
    for part, file in enumerate(made.files):
        table = duckdb.sql(f"select * from '{tmp_path / 'out' / file}'")
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
        columns = part_columns(cache, part, raw=raw)
        done = 0
        for doc, row in zip(cache.plan.part_docs(part).tolist(), rows, strict=True):
            kept = sampled_by_hand(cache.plan, doc, SPACE[task], 0.2)[1]
            assert row["logits.kept"] == row["hidden.kept"] == kept
            assert row["hidden.kept_len"] == len(kept)
            wanted = columns[name].rows[done : done + len(kept)]
            np.testing.assert_array_equal(np.array(row[name]), wanted.tolist())
            done += len(kept)


@pytest.mark.parametrize("task", TASKS)
def test_the_teacher_agrees_with_its_own_rows(
    task: str, place: Any, prose_file: Path, masked_lm: Path, causal_lm: Path
) -> None:
    cache = place(task, *signals_of(task, "dense", 0.2))
    teacher = masked_lm if task == "masked-lm" else causal_lm
    rows = evaluate(teacher, prose_file, cache=cache, limit=40, max_length=40)["teacher_rows"]
    assert rows["documents"] > 0
    assert rows["agreement"] == 1.0
    assert rows["divergence"] == pytest.approx(0, abs=1e-6)


@SLOW
def test_store_benchmarks_read_the_kept_rows(place: Any, tmp_path: Path) -> None:
    cache = place("causal-lm", *signals_of("causal-lm", fraction=0.003))
    source = Source(cache, cache.plan.parts)
    for case in cases(source):
        batch = case.batches[0]
        starts, counts = batch.spans[cache.space_of("logits")]
        here = {
            name: make for name, (make, needs) in READERS.items() if not needs or installed(needs)
        }
        for reader, make in here.items():
            for array, found in make(source, tmp_path)(batch).items():
                rows = zarr.open_array(cache.path / array, mode="r")
                pieces = [rows[a : a + n] for a, n in zip(starts, counts, strict=True)]
                np.testing.assert_array_equal(found, np.concatenate(pieces), err_msg=reader)


def test_proposals_keep_the_fraction(masked_cache: Cache) -> None:
    shape = ModelSizes(outputs=30_522, hidden=768, layers=12)
    texts = ["logits:topk,k=64,fraction=0.5", "hidden:layers=3,positions=all,fraction=0.25"]
    for proposal in propose(masked_cache.plan, shape, 10**9, parse_all(texts)):
        assert proposal.signals[0] == texts[0]
        assert proposal.signals[1].startswith(texts[1] + ",dtype=")
        told = describe_bytes(masked_cache.plan, parse_all(proposal.signals), shape)
        assert told["total"] == proposal.bytes


@pytest.mark.parametrize("logits", LOGITS)
def test_classes_are_kept_for_every_document(
    logits: str, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    signals = [f"logits:{logits.replace('8', '2')},fraction=0.2".replace("int2", "int8")]
    message = "fraction=0.2 of logits|hidden-head is for language models"
    with pytest.raises(ConfigError, match=message):
        estimate(corpus, teacher=classifier, task="text-classification", signals=signals)


def test_positions_that_are_not_all_there_serve_no_others(place: Any) -> None:
    part = place("masked-lm", "logits:topk,k=8", "hidden:layers=0-4,positions=all,fraction=0.4")
    for positions in ("cls", "selected"):
        with pytest.raises(ConfigError, match=r"holds positions=all,fraction=0\.4: set losses"):
            objective(part, {"hidden": HiddenMSE(layer_map="1:0", positions=positions)})
    objective(part, {"hidden": HiddenMSE(layer_map="1:0", positions="all")})
