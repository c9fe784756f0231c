"""What every task of TASKS has to do, whatever it is: from a corpus through every command.

Teachers and documents are made of what a task says of itself, so that a new one is tested from the
moment it is listed; and a task of anybody's own, from a module that is imported, goes all the ways.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU, IOBES

import kdcache
from kdcache.corpora.documents import open_corpus
from kdcache.errors import CorpusError, DamageError
from kdcache.losses import HiddenMSE
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.models import load_tokenizer
from kdcache.models.auto import auto_class
from kdcache.plans.plan import column_space
from kdcache.signals import parse
from kdcache.store import create, plan_record
from kdcache.tasks import TASKS, Task
from kdcache.tasks.token_classification import entity_scores, first_of_words, scheme_of
from kdcache.training.dev import DevSet
from kdcache.training.dev_teacher import _correct, _lacks_rows
from kdcache_cli.main import main
from tests.conftest import SIZES, save_teacher
from tests.damage import copy_of, files_of, flip

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # all of them BERT's and GPT-2's
NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
DOCS = 24
SMALL = ["--max-length", "32", "--part-tokens", "256"]
QUICK = ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]


def told(*command: object) -> Any:
    """What a command prints as JSON."""
    with redirect_stdout(StringIO()) as out:
        assert main([*map(str, command), "--json", "--quiet"]) == 0
    return json.loads(out.getvalue())


def refused(*command: object) -> str:
    """The line that refuses a command."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as error:
        assert main([*map(str, command)]) == 2
    (line,) = [line for line in error.getvalue().splitlines() if line.startswith("error: ")]
    return line


class Walk:
    """A task with a teacher of random weights and documents, and what becomes of them."""

    def __init__(self, name: str, folder: Path, tokenizer: Path, texts: list[str]) -> None:
        self.task, self.name, self.folder, self.texts = TASKS[name], name, folder, texts
        self.tokenizer = tokenizer

    @cached_property
    def teacher(self) -> Path:
        torch.manual_seed(5)
        names: dict[str, Any] = {}
        if self.task.labelled:
            names = {
                "id2label": dict(enumerate(NAMES)),
                "label2id": {n: i for i, n in enumerate(NAMES)},
            }
        size = len(transformers.AutoTokenizer.from_pretrained(self.tokenizer))
        config: Any = transformers.BertConfig(
            vocab_size=size, initializer_range=0.2, **SIZES, **names
        )
        if self.task.causal:
            config = transformers.GPT2Config(
                vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=128,
                bos_token_id=2, eos_token_id=3, initializer_range=0.2,
            )  # fmt: skip
        model = auto_class(self.task).from_config(config)
        return save_teacher(self.folder / "teacher", self.tokenizer, model)

    def documents(self, start: int, stop: int) -> Path:
        """A file of documents as the task reads them."""
        rng, path = np.random.default_rng(start), self.folder / f"{start}-{stop}.jsonl"
        rows: list[dict[str, Any]] = []
        for text in self.texts[start:stop]:
            words = text.split()[:12]
            tags = rng.choice(NAMES, len(words)).tolist()
            of_words = (
                {self.task.words[0]: words, self.task.tags[0]: tags} if self.task.words else {}
            )
            label = {"label": tags[0]} if self.task.labelled else {}
            rows.append(of_words or {"text": text, **label})
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
        return path

    @cached_property
    def corpus(self) -> Path:
        return self.documents(0, DOCS)

    @cached_property
    def held_out(self) -> Path:
        return self.documents(DOCS, DOCS + 8)

    @cached_property
    def signals(self) -> list[str]:
        """Soft labels as the task has them, and hidden states of its rows."""
        return [*self.task.signals, f"hidden:layers=2-4,positions={self.places}"]

    @property
    def places(self) -> str:
        return {"document": "cls", "token": "all", "selected": "selected"}[self.task.rows]

    @cached_property
    def cache(self) -> Any:
        options = [arg for text in self.signals for arg in ("--signal", text)]
        command = ("build", self.corpus, "--teacher", self.teacher, "--task", self.name, *SMALL)
        told(*command, *options, "--out", self.folder / "cache")
        return kdcache.open_cache(self.folder / "cache")

    @cached_property
    def student(self) -> Any:
        """What training says of a student of two of the teacher's layers, scored and chosen."""
        return told(
            "train", self.cache.path, "--recipe", "kd", "--init-from-teacher", "2-4", *QUICK,
            "--out", self.folder / "student", "--dev-split", "0.25", "--eval", self.held_out,
            "--eval-teacher", self.teacher, "--set", "losses.hard.weight=0.5",
        )  # fmt: skip


@pytest.fixture(scope="session")
def walks(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, sentences: list[Any]
) -> dict[str, Walk]:
    texts = [sentence.text for sentence in sentences if len(sentence.text.split()) > 4]
    made = tmp_path_factory.mktemp
    return {name: Walk(name, made(name), tokenizer, texts) for name in TASKS}


every = pytest.mark.parametrize("name", TASKS)
ELSEWHERE = ("text-classification", "masked-lm", "causal-lm")
"""Tasks of which other tests go the long ways, too."""
long_way = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ELSEWHERE else []) for n in TASKS]
)


@every
def test_a_plan_says_to_the_byte_what_a_build_makes(name: str, walks: dict[str, Walk]) -> None:
    walk = walks[name]
    options = [arg for text in walk.signals for arg in ("--signal", text)]
    command = ("build", walk.corpus, "--teacher", walk.teacher, "--task", name, *SMALL)
    planned = told(*command, *options, "--dry-run")
    exact = {
        array: size
        for array, size in planned["bytes"]["arrays"].items()
        if array in walk.cache.bytes
    }
    assert exact == {array: walk.cache.bytes[array] for array in exact}
    assert any(array.startswith("hidden/") for array in exact)
    inspected = told("inspect", walk.cache.path)
    assert inspected["plan"]["task"] == name
    assert inspected["signals"] == walk.cache.manifest["signals"]


@every
def test_rows_are_what_the_model_says_at_them(name: str, walks: dict[str, Walk]) -> None:
    """Held against transformers' own model, document by document, without our hooks."""
    walk = walks[name]
    model = auto_class(walk.task).from_pretrained(walk.teacher).eval()
    for doc in walk.cache.plan.docs[:6]:
        batch = walk.cache.batch(np.asarray([doc]))
        inputs = {key: batch[key] for key in INPUTS if key in batch}
        with torch.inference_mode():
            out = model(**inputs, output_hidden_states=True)
        of_rows = {"document": [0], "token": ..., "selected": batch.get("selected")}[walk.task.rows]
        logits = out.logits if walk.task.rows == "document" else out.logits[0][of_rows]
        soft = walk.cache.soft_labels(np.asarray([doc]))
        wanted = logits.log_softmax(-1).gather(1, soft.ids.clamp(min=0))
        torch.testing.assert_close(soft.logprobs, wanted, atol=0.05, rtol=0.02)
        states = walk.cache.hidden(4, np.asarray([doc])).dense()
        exact = out.hidden_states[4][0][of_rows]
        assert (states - exact).norm() < 0.02 * exact.norm()


@long_way
def test_a_cache_is_checked_repaired_merged_and_exported(
    name: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk = walks[name]
    cache = walk.cache
    assert kdcache.verify(cache.path, full=True) == []
    assert spot_check(cache.path, 3).findings == []

    root = copy_of(cache, tmp_path)
    whole = files_of(root)
    for number, array in enumerate(["logits", "hidden", "plan", "tokens"]):
        shards = sorted(p for p in (root / array).rglob("*") if p.is_file() and "c" in p.parts)
        flip(shards[0], 777 + number)
    assert kdcache.verify(root, full=True)
    assert repair(root, corpus=walk.corpus).left == ()
    assert files_of(root) == whole

    more = kdcache.build(
        walk.corpus, teacher=walk.teacher, task=name, out=tmp_path / "more",
        signals=["first=hidden:layers=1,positions=cls"], max_length=32, part_tokens=256,
    )  # fmt: skip
    kdcache.merge([cache.path, more.path], tmp_path / "both")
    both = kdcache.open_cache(tmp_path / "both")
    assert set(both.signals) == {"logits", "hidden", "first"}

    files = kdcache.export(cache, tmp_path / "out", form="parquet").files
    tables = [pyarrow.parquet.read_table(tmp_path / "out" / file) for file in files]
    assert sum(table.num_rows for table in tables) == cache.plan.documents
    if walk.task.selects:
        lists = [row for table in tables for row in table["masked_label"].to_pylist()]
        assert sum(map(len, lists)) == cache.plan.selected


@long_way
def test_a_student_is_trained_chosen_scored_and_described(
    name: str, walks: dict[str, Walk]
) -> None:
    walk = walks[name]
    told_of = walk.student["metrics"]
    dev, scores = told_of["dev"], told_of["evaluation"]
    assert dev["points"]
    assert np.isfinite(dev["best"]["value"])
    assert scores["task"] == name
    for score, _ in walk.task.told:
        assert 0 <= scores[score] <= 1
        assert 0 <= scores["teacher"][score] <= 1
    card = (walk.folder / "student" / "README.md").read_text("utf-8")
    assert f"pipeline_tag: {walk.task.pipeline}" in card
    assert walk.task.call in card
    for _, called in walk.task.told:
        assert f"| {called} |" in card

    again = told("evaluate", walk.folder / "student", walk.held_out, "--cache", walk.cache.path)
    assert again["cross_entropy"] == pytest.approx(scores["cross_entropy"])
    kind = transformers.AutoConfig.from_pretrained(walk.folder / "student").architectures[0]
    assert kind.endswith(walk.task.heads)


def of_folder(walk: Walk) -> str:
    """The task that a folder's architecture tells: the first of those that have it."""
    return next(name for name, task in TASKS.items() if task.heads == walk.task.heads)


@every
def test_predictions_are_written_or_refused(
    name: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk = walks[name]
    command = ("evaluate", walk.teacher, walk.held_out, "--predictions", tmp_path / "out.jsonl")
    if not walk.task.predicted:
        assert f"not {of_folder(walk)}" in refused(*command)
        return
    scores = told(*command, "--by", "length")
    corpus = [json.loads(line) for line in walk.held_out.read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert np.mean([row["label"] == row["prediction"] for row in rows]) == pytest.approx(
        scores["accuracy"]
    )
    bands = {row["slice"] for row in scores["slices"]["length"]["rows"]}
    assert {row["slice: length"] for row in rows} == bands
    for row in rows:
        source = corpus[row["document"]]
        words = source[walk.task.words[0]] if walk.task.words else [source["text"]]
        assert row["text"] == words[row.get("row", 0)]
        chances = [row[f"probability: {one}"] for one in NAMES]
        assert sum(chances) == pytest.approx(1)
        assert max(chances) == row["confidence"] == chances[NAMES.index(row["prediction"])]


@every
def test_what_a_command_does_not_serve_is_refused_in_a_line(
    name: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk, out = walks[name], tmp_path / "out"
    if not walk.task.shipped:
        assert f"a model for {of_folder(walk)}" in refused("ship", walk.teacher, out)
    if not walk.task.taught:
        assert name in refused("teach", walk.teacher, walk.corpus, "--task", name, "--out", out)
    assert not out.exists()
    asked = ("evaluate", walk.teacher, walk.held_out, "--cache")
    others = [other for other in walks.values() if other.task.heads != walk.task.heads]
    assert f"the cache is for {others[0].name}" in refused(*asked, others[0].cache.path) or (
        "the cache" in refused(*asked, others[0].cache.path)
    )


@every
def test_slices_have_the_scores_of_their_documents(
    name: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    """`common` has 16 documents, `rare` 6, and of the other 2 nobody says what they are."""
    walk, rows = walks[name], []
    for number, line in enumerate(walk.corpus.read_text("utf-8").splitlines()):
        domain = "common" if number < 16 else "rare" if number < DOCS - 2 else None
        rows.append({**json.loads(line), "domain": domain})
    path = tmp_path / "sliced.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    asked = ("evaluate", walk.teacher, path, "--by", "domain", "--by", "length", *SMALL[:2])
    found = told(*asked, "--teacher", walk.teacher)
    by = found["slices"]
    assert [*by] == ["domain", "length"]
    assert [row["slice"] for row in by["domain"]["rows"]] == ["common", "rare", None]
    for of in by.values():
        metric, whole = of["metric"], of["all"]
        assert whole["value"] == pytest.approx(found[metric], abs=1e-6)
        assert sum(row["documents"] for row in of["rows"]) == DOCS == whole["documents"]
        for row in of["rows"]:
            if row["value"] is None:
                continue
            assert row["value"] == pytest.approx(row["scores"][metric], abs=1e-6)
            low, high = row["interval"]
            assert low <= row["value"] + 1e-9
            assert high is None or row["value"] - 1e-9 <= high
            assert row["teacher"]["value"] == row["value"]
            assert row["drop"]["value"] == 0
    common, rare, _ = by["domain"]["rows"]
    assert common["drop"]["interval"] == [0, 0]
    assert rare["drop"]["interval"] != [0, 0]  # of 6 documents it tells nothing
    assert by["domain"]["worst"]["slice"] in ("common", "rare", None)


MODULE = '''
"""Every second token of a text, predicted from what surrounds it: a task of somebody's own."""

from dataclasses import replace

import numpy as np

from kdcache.tasks import TASKS
from kdcache.tasks.base import encode_texts


def encode_every_second(batch, first, tokenizer, config):
    whole, truncated = encode_texts(batch, first, tokenizer, config, windows=True)
    return (every_second(entry, tokenizer) for entry in whole), truncated


def every_second(entry, tokenizer):
    places = np.arange(1, len(entry.tokens) - 1, 2)
    tokens = entry.tokens.copy()
    tokens[places] = tokenizer.mask_id
    return entry._replace(tokens=tokens, positions=places, labels=entry.tokens[places])


TASKS["every-second"] = replace(
    TASKS["masked-lm"], name="every-second", options=(), encode=encode_every_second,
    selected="every second token",
)
'''


@pytest.fixture
def module(tmp_path: Path) -> Iterator[str]:
    """The module, imported; the table is what it was afterwards."""
    before = dict(TASKS)
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield "every-second"
    TASKS.clear()
    TASKS.update(before)


def test_a_task_of_ones_own_is_a_line_of_the_table(
    module: str, tokenizer: Path, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk = Walk(module, tmp_path, tokenizer, walks["masked-lm"].texts)
    own = {module: walk}
    test_a_plan_says_to_the_byte_what_a_build_makes(module, own)
    test_rows_are_what_the_model_says_at_them(module, own)
    folder = tmp_path / "ways"
    folder.mkdir()
    test_a_cache_is_checked_repaired_merged_and_exported(module, own, folder)
    command = ("train", walk.cache.path, "--recipe", "mlm-kd", "--init-from-teacher", "2-4")
    trained = told(*command, *QUICK, "--out", tmp_path / "student", "--dev-split", "0.25")
    assert trained["metrics"]["dev"]["metric"] == "cross_entropy"
    lens = walk.cache.plan.per_document["doc_len"][walk.cache.plan.docs]
    assert walk.cache.plan.selected == ((lens - 1) // 2).sum()


def test_first_tokens_of_words_are_selected_and_labelled(walks: dict[str, Walk]) -> None:
    """The oracle is the tokenizer itself, asked for one word at a time."""
    walk = walks["token-classification"]
    plain = transformers.AutoTokenizer.from_pretrained(walk.teacher)
    rows = [json.loads(line) for line in walk.corpus.read_text("utf-8").splitlines()]
    plan = walk.cache.plan
    for doc in plan.docs:
        row = rows[plan.per_document["doc_id"][doc]]
        pieces = [plain.encode(word, add_special_tokens=False) for word in row["tokens"]]
        starts = 1 + np.cumsum([0, *map(len, pieces)])[:-1]
        there = starts < 31  # the last of 32 tokens ends the text
        batch = walk.cache.batch(np.asarray([doc]))
        assert batch["selected"].tolist() == starts[there].tolist()
        wanted = [NAMES.index(tag) for tag, kept in zip(row["tags"], there, strict=True) if kept]
        assert batch["labels"].tolist() == wanted
        assert batch.labelled == len(wanted)


def test_selected_positions_are_those_that_manifests_call_masked() -> None:
    assert parse("hidden:layers=1,positions=selected") == parse("hidden:layers=1,positions=masked")
    assert HiddenMSE(positions="selected") == HiddenMSE(positions="masked")


def test_tokens_of_no_word_are_passed_over() -> None:
    positions, words = first_of_words([None, 0, 0, 2, 3, 3, None])
    assert positions.tolist() == [1, 3, 4]
    assert words.tolist() == [0, 2, 3]
    assert [found.tolist() for found in first_of_words([None, None])] == [[], []]


def test_entities_are_counted_whole() -> None:
    """By hand: of 3 entities one is found whole, and 2 are told; a row without a label is none."""
    right = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    found = [["B-PER", "I-PER", "O", "O"], ["O", "B-PER"]]
    labels, predicted = (
        np.asarray([NAMES.index(tag) for tags in side for tag in tags]) for side in (right, found)
    )
    scores = entity_scores(predicted, labels, np.asarray([4, 2]), NAMES)
    assert scores["entity_precision"] == 1 / 2
    assert scores["entity_recall"] == 1 / 3
    assert scores["entity_f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    blind = np.where(np.arange(6) == 5, -100, labels)
    assert entity_scores(predicted, blind, np.asarray([4, 2]), NAMES)["entity_precision"] == 1
    assert entity_scores(predicted, labels, np.asarray([4, 2]), ["NOUN", "VERB", "X", "Y"]) == {}


WITHIN = {
    "IOBES": (IOBES, {1: ["S"], 2: ["B", "E"], 3: ["B", "I", "E"]}),
    "BILOU": (BILOU, {1: ["U"], 2: ["B", "L"], 3: ["B", "I", "L"]}),
}
"""seqeval's scheme, and the places of the words of an entity of one, two and three."""


@pytest.mark.parametrize("name", WITHIN)
def test_entities_of_other_schemes_are_scored_as_seqeval_scores_them_strictly(name: str) -> None:
    scheme, places = WITHIN[name]
    rng = np.random.default_rng(3)

    def sentence() -> list[str]:
        """12 words: entities of one, two and three of them, with words of none between."""
        tags: list[str] = []
        for words in rng.permutation([1, 2, 3, 1]):
            kind = rng.choice(["PER", "LOC"])
            tags += [*(f"{place}-{kind}" for place in places[words]), "O"]
        return [*tags, "O"]

    right, found = ([sentence() for _ in range(40)] for _ in range(2))
    names = sorted({tag for tags in right for tag in tags})
    labels, predicted = (
        np.asarray([names.index(tag) for tags in side for tag in tags]) for side in (right, found)
    )
    assert scheme_of(names) == name
    assert TASKS["token-classification"].metric(names) == "entity_f1"
    scores = entity_scores(predicted, labels, np.full(40, 12), names)
    report = classification_report(
        right, found, mode="strict", scheme=scheme, output_dict=True, zero_division=0
    )["micro avg"]
    assert 0 < report["f1-score"] < 1
    assert scores["entity_f1"] == pytest.approx(report["f1-score"])
    assert scores["entity_recall"] == pytest.approx(report["recall"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["O", "B-PER", "I-PER"], "entities, tagged in IOB"),
        (["O", "B-PER", "L-PER", "U-PER"], "entities, tagged in BILOU"),
        (["O", "B-PER", "I-PER", "X"], "words, for the class 'X' is no tag of an entity"),
        (["NOUN", "VERB"], "words, for the classes are no tags of entities"),
    ],
)
def test_a_report_tells_whether_entities_or_words_are_scored_and_why(
    names: list[str], words: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk, model = walks["token-classification"], tmp_path / "model"
    torch.manual_seed(1)
    config = transformers.BertConfig.from_pretrained(
        walk.teacher, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    save_teacher(model, walk.tokenizer, auto_class(walk.task).from_config(config))
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": names, "tags": names}))
    report = told("evaluate", model, tmp_path / "a.jsonl")
    assert report["scored"] == words
    assert ("entity_f1" in report) == words.startswith("entities")


def test_tags_of_two_schemes_are_refused_before_anything_loads(
    walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk = walks["token-classification"]
    config = json.loads((walk.teacher / "config.json").read_text("utf-8"))
    config["id2label"] = dict(enumerate(["O", "B-PER", "L-PER", "S-PER"]))
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = refused("evaluate", tmp_path, walk.held_out)
    assert "the classes mix schemes of tags (B- L- S-)" in line
    assert "IOB (B- I-), IOBES (B- I- E- S-), BILOU (B- I- L- U-)" in line


def test_entity_f1_of_a_model_is_seqevals(walks: dict[str, Walk], tmp_path: Path) -> None:
    walk = walks["token-classification"]
    out = tmp_path / "out.csv"
    scores = told("evaluate", walk.teacher, walk.held_out, "--predictions", out)
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    documents = dict.fromkeys(row["document"] for row in rows)
    sides = [
        [[row[side] for row in rows if row["document"] == doc] for doc in documents]
        for side in ("label", "prediction")
    ]
    report = classification_report(*sides, output_dict=True, zero_division=0)["micro avg"]
    assert scores["entity_f1"] == pytest.approx(report["f1-score"])
    assert scores["entity_precision"] == pytest.approx(report["precision"])
    assert scores["entity_recall"] == pytest.approx(report["recall"])


def test_what_scores_entities_is_asked_for_before_anything_loads(
    walks: dict[str, Walk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = walks["token-classification"]
    bare = tmp_path / "model"
    bare.mkdir()
    (bare / "config.json").write_bytes((walk.teacher / "config.json").read_bytes())
    monkeypatch.setitem(sys.modules, "seqeval", None)
    assert "pip install 'kdcache[ner]'" in refused("evaluate", bare, walk.held_out)


def test_a_conll_file_gives_the_plan_of_the_same_lists(
    walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk = walks["token-classification"]
    rows = [json.loads(line) for line in walk.corpus.read_text("utf-8").splitlines()]
    sentences = [
        "\n".join(map("\tNN\t".join, zip(r["tokens"], r["tags"], strict=True))) for r in rows
    ]
    text = "-DOCSTART-\tO\n\n# sent_id = 1\n" + "\n\n".join(sentences) + "\n"
    for name in ("tagged.conll", "tagged.txt"):
        (tmp_path / name).write_text(text, "utf-8")
        plan = kdcache.plan(
            tmp_path / name, tokenizer=walk.teacher, task=walk.name, out=tmp_path / f"{name}.plan",
            max_length=32, part_tokens=256,
        )  # fmt: skip
        for column in ("tokens", "masked_position", "masked_label"):
            size = plan.parts * plan.rows["token" if column == "tokens" else "selected"]
            ours, theirs = plan.columns[column][0:size], walk.cache.plan.columns[column][0:size]
            assert np.array_equal(ours, theirs)


def test_numbers_of_tags_are_called_what_their_data_set_calls_them(
    walks: dict[str, Walk], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        words=datasets.Sequence(datasets.Value("string")),
        ner_tags=datasets.Sequence(datasets.ClassLabel(names=NAMES[::-1])),
    )
    made = datasets.Dataset.from_dict(
        {"words": [["the", "parser"], ["a", "module"]], "ner_tags": [[3, 0], [2, 3]]}, features
    )
    made.to_parquet(tmp_path / "tagged.parquet")
    walk = walks["token-classification"]
    for number, corpus in enumerate((made, tmp_path / "tagged.parquet")):
        out = tmp_path / f"{number}.plan"
        plan = kdcache.plan(corpus, tokenizer=walk.teacher, task=walk.name, out=out)
        labels = {
            int(plan.per_document["doc_id"][doc]): plan.labels(np.asarray([doc]))
            for doc in plan.docs
        }
        assert labels[0].tolist() == [0, 3]
        assert labels[1].tolist() == [1, 0]


def test_documents_without_any_tag_are_not_labelled(walks: dict[str, Walk], tmp_path: Path) -> None:
    walk = walks["token-classification"]
    words = [["a", "word"], ["the", "parser"], ["b"]]
    tags = [[None, NAMES[1]], [None, None], [NAMES[0]]]
    lines = [json.dumps({"tokens": w, "tags": t}) for w, t in zip(words, tags, strict=True)]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    plan = kdcache.plan(
        tmp_path / "some.jsonl", tokenizer=walk.teacher, task=walk.name, out=tmp_path / "plan"
    )
    assert sorted(plan.per_document["doc_id"][plan.labelled_docs].tolist()) == [0, 2]
    assert plan.labelled == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "1 tags in column 'tags' for 2 words"),
        ('{"tokens": ["a"], "tags": "O"}', "must hold a list with a tag for each word; got str"),
        ('{"tokens": "a b", "tags": ["O"]}', "must hold lists of words; got str"),
        ('{"tokens": ["a", ""], "tags": ["O", "O"]}', "words, which are texts of one line; got ''"),
        (r'{"tokens": ["a", "b\n"], "tags": ["O", "O"]}', "texts of one line; got 'b\\n'"),
        (
            '{"tokens": ["a"], "tags": ["B-ORG"]}',
            ":1: label 'B-ORG' is not one of the 4 known classes",
        ),
        ('{"text": "a b", "tags": ["O"]}', "no column holds lists of words (tokens or words)"),
    ],
)
def test_documents_that_are_no_tagged_words_are_refused_before_a_teacher_is_loaded(
    row: str, message: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk, unloadable = walks["token-classification"], tmp_path / "teacher"
    unloadable.mkdir()
    for file in walk.teacher.iterdir():
        if file.suffix != ".safetensors":
            (unloadable / file.name).write_bytes(file.read_bytes())
    (tmp_path / "bad.jsonl").write_text(row)
    command = ("build", tmp_path / "bad.jsonl", "--teacher", unloadable, "--task", walk.name)
    assert message in refused(*command, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_line_of_a_conll_file_without_a_tag_is_named(
    walks: dict[str, Walk], tmp_path: Path
) -> None:
    (tmp_path / "bad.conll").write_text("a\tO\nb\n")
    walk = walks["token-classification"]
    command = ("plan", tmp_path / "bad.conll", "--tokenizer", walk.teacher, "--task", walk.name)
    assert "bad.conll:2: malformed: expected a word and a tag" in refused(
        *command, "--out", tmp_path / "out"
    )


CONLL = {"text_columns": ["tokens"], "words": ["tokens"], "tags": ["tags"]}


def test_a_boundary_ends_a_document_and_other_spaces_than_blanks_are_part_of_a_word(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Anna B-PER\n-DOCSTART- O\n1\u00a0000 CD  O\r\nmen O\n", "utf-8")
    found = [(one.words, one.label) for one in open_corpus(path, **CONLL)]
    assert found == [(["Anna"], ["B-PER"]), (["1\u00a0000", "men"], ["O", "O"])]


def test_a_conll_file_whose_first_column_numbers_words_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("# text = a\n1\tAnna\tB-PER\n2\tgeht\tO\n")
    with pytest.raises(CorpusError, match=r"a.conll:2: the first column numbers the words"):
        list(open_corpus(path, **CONLL))
    path.write_text("1\tCD\tO\n\nEU\tNN\tO\nand\tNN\tO\n\n1\tCD\tO\n2\tCD\tO\n")
    assert [one.words for one in open_corpus(path, **CONLL)] == [["1"], ["EU", "and"], ["1", "2"]]


def test_comments_of_a_conll_file_are_no_words(tmp_path: Path) -> None:
    """Whatever they say; a word that is # has the columns of words."""
    path, words = tmp_path / "a.conll", [(["Anna", "#", "#go"], ["B-PER", "O", "O"])]
    comments = "# a text of five words\n#\n# sent_id = 3\n# newdoc\n# Anna O B-PER\n"
    for between in ("\t", " "):
        lines = "".join(f"{word}{between}{tag}\n" for word, tag in zip(*words[0], strict=True))
        path.write_text(
            f"{comments}\n{comments}{lines}# said at last by her\n\n{comments}", "utf-8"
        )
        assert [(one.words, one.label) for one in open_corpus(path, **CONLL)] == words
    path.write_text("# text O\nAnna\tB-PER\n#\tO\n", "utf-8")
    assert [one.words for one in open_corpus(path, **CONLL)] == [["Anna", "#"]]


_opened: list[str] = []
sys.addaudithook(lambda event, given: _opened.append(str(given[0])) if event == "open" else None)


def test_a_build_reads_a_corpus_as_often_as_its_plan(
    walks: dict[str, Walk], tmp_path: Path
) -> None:
    walk, times, corpus = walks["token-classification"], [], tmp_path / "corpus.jsonl"
    corpus.write_bytes(walk.corpus.read_bytes())
    options: Any = {"task": walk.name, "max_length": 32, "part_tokens": 256}
    for make, told_by in ((kdcache.plan, "tokenizer"), (kdcache.build, "teacher")):
        _opened.clear()
        make(corpus, out=tmp_path / told_by, **{told_by: walk.teacher}, **options)
        times.append(_opened.count(str(corpus)))
    assert times[0] == times[1] > 0


@pytest.mark.parametrize("tag", [len(NAMES), 2**31 - 1, -7])
def test_a_tag_that_is_no_class_of_the_teacher_is_refused_when_a_cache_is_opened(
    tag: int, walks: dict[str, Walk], tmp_path: Path
) -> None:
    cache = walks["token-classification"].cache
    plan, columns = cache.plan, dict[str, Any]()
    for name, reader in plan.columns.items():
        columns[name] = reader[0 : plan.parts * plan.rows[column_space(name)]].copy()
    doc = plan.docs[5]
    columns["masked_label"][plan.per_document["masked_start"][doc] + 1] = tag
    forged = dataclasses.replace(plan, columns=columns)
    record = {n: v for n, v in cache.manifest.items() if n != "contents"} | plan_record(forged)
    create(tmp_path / "c", {**record, "kind": "cache"}, forged)
    with pytest.raises(DamageError, match=rf"plan/masked_label is damaged: row {doc}, of part"):
        kdcache.open_cache(tmp_path / "c")


def test_a_word_that_is_cut_in_two_on_the_left_has_no_row(tokenizer: Path) -> None:
    words = [["the", "unparenthesizable", "parser"]]
    loaded = load_tokenizer(tokenizer)
    ids, numbers, cut = loaded.encode_words(words, 64)[0]
    assert not cut
    assert numbers.count(1) > 1
    loaded.plain.truncation_side = "left"
    _, numbers, cut = loaded.encode_words(words, len(ids) - 2)[0]
    assert cut
    assert first_of_words(numbers)[1].tolist() == [2]


@pytest.mark.parametrize("part", ["", ",fraction=0.5"])
def test_the_teachers_score_of_words_is_that_of_words_with_a_label(
    part: str, walks: dict[str, Walk], tmp_path: Path
) -> None:
    """From the cache what the teacher itself scores; unknown for entities of which rows are left
    out.
    """
    walk = walks["token-classification"]
    rows = [json.loads(line) for line in walk.corpus.read_text("utf-8").splitlines()]
    for row in rows:
        row["tags"] = [tag if i % 2 else None for i, tag in enumerate(row["tags"])]
    (tmp_path / "half.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    cache = kdcache.build(
        tmp_path / "half.jsonl", teacher=walk.teacher, task=walk.name, out=tmp_path / "cache",
        signals=[f"logits:dense{part}"], max_length=32, part_tokens=256,
    )  # fmt: skip
    plan, docs = cache.plan, cache.plan.docs
    dev = DevSet(
        plan=plan, docs=docs, metric="accuracy", source="", left_out=docs, same=0,
        texts=frozenset(),
    )  # fmt: skip
    found = _correct(plan, cache, docs, docs)
    sampled = cache.sampled_rows("logits", docs)
    soft, labels = cache.soft_labels(docs), plan.labels(docs)[sampled]
    right = soft.logprobs.argmax(-1).numpy() == labels
    assert found[0].mean() == pytest.approx(right[labels >= 0].mean())
    assert len(found[0]) == (labels >= 0).sum() < len(labels)
    assert found[1] == (not part)
    assert _lacks_rows(dev, cache, docs) == bool(part)


def test_a_task_says_of_itself_what_the_suite_needs() -> None:
    for name, task in TASKS.items():
        assert isinstance(task, Task)
        assert task.name == name
        assert hasattr(transformers, task.auto)
        assert task.rows in task.spaces
        assert bool(task.selected) == task.selects
