"""The loss of a step is that of all its documents, however they are cut into batches."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from kdcache.building.builder import build
from kdcache.errors import ConfigError, MismatchError
from kdcache.losses import LABELS, HiddenMSE, Match
from kdcache.signals import Tap
from kdcache.training.documents import CachedDocuments
from kdcache.training.recipe import DataOrder, Recipe
from kdcache.training.scale import keep_scale, require_whole
from tests import steps
from tests.conftest import write_csv
from tests.steps import ALL, BATCH, TURNS, Student, steps_of

ROOT = Path(__file__).parents[1]
ALONE = {
    "cache": ["hard", "kl", "logit_mse", "hidden", "labels beside"],
    "masked_cache": ["hard", "kl", "hidden"],
    "causal_cache": ["hard", "kl", "hidden"],
}
TOGETHER = {
    "cache": ["three", "squares", "one length"],
    "masked_cache": ["three", "element"],
    "causal_cache": ["three", "first token"],
    "part_labelled": ["kl and hard", "squares"],
    "values": ["squares"],
    "fraction": ["three"],
}
TEACHERS = {
    "cache": "classifier",
    "masked_cache": "masked_lm",
    "causal_cache": "causal_lm",
    "part_labelled": "classifier",
    "values": "regressor",
    "fraction": "causal_lm",
}
CASES = [
    (place, name, dtype)
    for table, dtype in (
        (ALONE, torch.float64),
        (TOGETHER, torch.float64),
        (TOGETHER, torch.float32),
    )
    for place, names in table.items()
    for name in names
]


@pytest.fixture(scope="module")
def part_labelled(folder, sentences, classifier):
    """A document in four has a label: most micro-batches of three have one, some none."""
    rows = [(s.text, s.package if i % 4 == 0 else "") for i, s in enumerate(sentences[:40])]
    return _classified(folder / "part", rows, classifier)


@pytest.fixture(scope="module")
def values(folder, sentences, regressor):
    """Numbers for labels, of two documents in three."""
    rows = [(s.text, "" if i % 3 == 0 else i / 7) for i, s in enumerate(sentences[:40])]
    return _classified(folder / "values", rows, regressor)


def _classified(path, rows, teacher):
    file = write_csv(path.with_suffix(".csv"), rows)
    return build(
        file,
        teacher=teacher,
        task="text-classification",
        out=path.with_suffix(".zarr"),
        signals=["logits:dense"],
        max_length=48,
    )


@pytest.fixture(scope="module")
def fraction(folder, prose_file, causal_lm):
    """An eighth of the tokens: a micro-batch may have no row at all."""
    return build(
        prose_file,
        teacher=causal_lm,
        task="causal-lm",
        out=folder / "eighth.zarr",
        signals=["logits:topk,k=8,fraction=0.125", "hidden:layers=4,positions=all,fraction=0.125"],
        max_length=32,
        limit=30,
    )


def documents_and_tokens(student):
    docs = student.cache.plan.docs[: student.documents]
    return len(docs), int(student.cache.plan.per_document["doc_len"][docs].sum())


def compare(whole, dtype, args, found):
    """Hold what `found` says of every step, (log entry, gradients), against the whole batch."""
    data = whole.data()
    wanted = steps_of(data, BATCH * TURNS)
    assert len(found) == len(wanted) == 2
    for docs, (entry, taken) in zip(wanted, found, strict=True):
        loss, terms, exact = whole.at_once(data.read(docs), args)
        assert entry["loss"] == pytest.approx(loss, rel=2e-6)
        for term, value in terms.items():
            assert entry[f"loss_{term}"] == pytest.approx(value, rel=2e-6, abs=1e-9)
        for key in taken.keys() - exact.keys():  # of a head that no loss reads
            assert not taken[key].any()
        largest = max(float(g.abs().max()) for g in exact.values())
        bound = 1e-9 * max(1, largest) if dtype == torch.float64 else 1e-5 * largest
        for key, gradient in exact.items():
            assert (taken[key] - gradient).abs().max() <= bound, (key, largest)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[] if c[2] == torch.float64 else pytest.mark.slow) for c in CASES],
    ids=lambda case: " ".join(map(str, case)),
)
def test_accumulated_micro_batches_are_the_whole_batch(case, request, tmp_path):
    place, name, dtype = case
    cache, config = (request.getfixturevalue(n) for n in (place, TEACHERS[place]))
    student = Student(cache, config, ALL[name], dtype)
    trainer, taken = student.trainer(tmp_path, turns=TURNS)
    found = list(zip(*steps.run(trainer, taken), strict=True))
    whole = Student(cache, config, ALL[name], dtype)
    compare(whole, dtype, trainer.args, found)
    assert trainer.seen() == documents_and_tokens(whole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Likeness of the documents of a batch to each other; over what, a subclass says."""

    kind: ClassVar[str] = "pairs"
    over: ClassVar[str] = "batch"
    weight: float = 1.0

    def matches(self, student, teacher):
        return [Match(Tap("logits"), LABELS)]

    def value(self, pairs, step):
        progress = pairs[0].student
        return (progress @ progress.T).mean() * step.weight.sum()


class Longest(Pairs):
    """A mean over documents: of each, its largest logit."""

    over: ClassVar[str] = "documents"

    def value(self, pairs, step):
        return pairs[0].student.amax(1) @ step.weight


def test_a_loss_over_documents_is_weighted_by_documents(cache, classifier, tmp_path):
    losses = {"longest": Longest()}
    student = Student(cache, classifier, losses, torch.float64)
    trainer, taken = student.trainer(tmp_path, turns=TURNS)
    found = list(zip(*steps.run(trainer, taken), strict=True))
    compare(Student(cache, classifier, losses, torch.float64), torch.float64, trainer.args, found)


def test_micro_batches_of_weighed_documents_are_the_whole_batch(
    masked_cache, masked_lm, tmp_path, monkeypatch
):
    plain = CachedDocuments.read

    def weighed(data, docs):
        batch = plain(data, docs)
        batch["example_weight"] = batch["docs"] % 3 / 2
        return batch

    monkeypatch.setattr(CachedDocuments, "read", weighed)
    known = (masked_cache, masked_lm, ALL["three"], torch.float64)
    trainer, taken = Student(*known).trainer(tmp_path, turns=TURNS)
    found = list(zip(*steps.run(trainer, taken), strict=True))
    compare(Student(*known), torch.float64, trainer.args, found)


def test_a_loss_over_pairs_is_refused_where_a_step_is_cut_unless_told(cache, classifier, tmp_path):
    student = Student(cache, classifier, {"likeness": Pairs()}, torch.float64)
    recipe = Recipe(name="pairs", losses=student.objective.losses)
    require_whole(student.arguments(tmp_path, 1), recipe)
    cut = student.arguments(tmp_path, TURNS)
    message = "losses.likeness compares .* cut into 4 batches .* data.split_pairs=true"
    with pytest.raises(ConfigError, match=message):
        require_whole(cut, recipe)
    require_whole(cut, dataclasses.replace(recipe, data=DataOrder(split_pairs=True)))
    trainer, taken = student.trainer(tmp_path, turns=TURNS)
    (first, _), _ = steps.run(trainer, taken)
    data = student.data()
    docs = steps_of(data, BATCH * TURNS)[0]
    alone = [
        student.at_once(data.read(docs[i : i + BATCH]), cut)[0] for i in range(0, len(docs), BATCH)
    ]
    assert first["loss"] == pytest.approx(sum(alone) / TURNS, rel=1e-6)


def test_pads_that_count_are_those_of_the_micro_batches(causal_cache, causal_lm, tmp_path):
    both = []
    for pads in ("out", "count"):
        losses = {"hidden": HiddenMSE(layer_map="2:4", positions="all", pads=pads)}
        student = Student(causal_cache, causal_lm, losses, torch.float64)
        trainer, taken = student.trainer(tmp_path, turns=TURNS)
        (first, _), _ = steps.run(trainer, taken)
        both.append(first["loss"])
    data = student.data()
    docs = steps_of(data, BATCH * TURNS)[0]
    batches = [data.read(docs[i : i + BATCH]) for i in range(0, len(docs), BATCH)]
    tokens = sum(batch.tokens for batch in batches)
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    assert tokens < padded
    assert both[1] == pytest.approx(both[0] * tokens / padded, rel=1e-6)


def test_a_step_that_no_batch_can_be_cut_to_names_the_ranks_that_can():
    """Two ranks share no step of five documents, whatever the batch."""
    args = SimpleNamespace(world_size=2, train_batch_size=5, gradient_accumulation_steps=1)
    message = "2 ranks of 5 cannot: resume on 1 rank, or on a number of ranks that divides 5$"
    with pytest.raises(MismatchError, match=message):
        keep_scale(args, {"documents_per_step": 5, "ranks": 1})
