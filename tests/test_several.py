"""Documents of several classes or values: from their labels to a student that says them."""

from __future__ import annotations

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn import metrics as sk

import kdcache
from kdcache.building.builder import estimate
from kdcache.errors import ConfigError, CorpusError, ModelError
from kdcache.evaluation.evaluator import evaluate
from kdcache.labels import LABEL_KINDS, Cells, LabelReader, Labels, kind_of, resolve
from kdcache.labels.multi_label import bernoulli_kl, binary_cross_entropy
from kdcache.labels.several_metrics import several_classes, several_values
from kdcache.losses import Hard, Mutual, SoftKL
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.models import load_teacher
from kdcache.models import run as run_model
from kdcache.models.teacher import model_sizes
from kdcache.signals import LOGITS
from kdcache.store import Cache
from kdcache.tasks import Task
from kdcache.training.objective import Objective
from kdcache.training.specs import cache_spec
from tests.conftest import bert_config, save_teacher, write_csv

NAMES = ["joy", "fear", "anger"]
NONE = -100
TASK: Task = "text-classification"
SETS = [["joy"], ["fear", "joy"], [], None, ["anger"]] * 8
VALUES = [[0.5, 1, 2], [1, 0.25, 3], None, [2, 2, -1.5]] * 8
PROBLEMS = {"multi-label": "multi_label_classification", "vectors": "regression"}


def labels(raw: list[Any], **options: Any) -> Labels:
    reader = LabelReader()
    for index, label in enumerate(raw):
        reader.add(label, f"file.jsonl:{index + 1}")
    return resolve(reader, **options)


def multi(raw: list[Any], **options: Any) -> Labels:
    return labels(
        raw, **{"kind": LABEL_KINDS["multi-label"], "known": NAMES, "count": 3, **options}
    )


def vectors(raw: list[Any], **options: Any) -> Labels:
    return labels(raw, **{"kind": LABEL_KINDS["vectors"], "count": 3, **options})


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        ([["anger", "joy"], [], None, ["fear"]], [[1, 0, 1], [0, 0, 0], [NONE] * 3, [0, 1, 0]]),
        ([[2, 0], [1]], [[1, 0, 1], [0, 1, 0]]),
        ([np.array([2]), ("1",)], [[0, 0, 1], [0, 1, 0]]),
        ([["Joy"], ["FEAR"]], [[1, 0, 0], [0, 1, 0]]),
        (["joy", "", "anger"], [[1, 0, 0], [NONE] * 3, [0, 0, 1]]),
        ([[], None], [[0, 0, 0], [NONE] * 3]),
        ([None], [[NONE] * 3]),
    ],
)
def test_lists_name_the_teachers_classes(raw: list[Any], rows: list[list[int]]) -> None:
    made = multi(raw)
    assert (made.kind, made.classes, made.rows.tolist()) == ("multi-label", NAMES, rows)
    assert made.labelled == sum(row[0] != NONE for row in rows)


def test_columns_of_flags_are_put_into_the_teachers_order() -> None:
    cells = [Cells(row) for row in (["1", "0", "0"], [True, False, True], ["", None, " "])]
    made = multi(cells, columns=["anger", "joy", "Fear"])
    assert made.rows.tolist() == [[0, 0, 1], [0, 1, 1], [NONE] * 3]
    unnamed = multi(cells, known=None, columns=["a", "b", "c"])
    assert (unnamed.classes, unnamed.rows[0].tolist()) == (["a", "b", "c"], [1, 0, 0])
    assert "have no names" in unnamed.notes[0]


def test_labels_that_nobody_says_anything_of_are_what_they_look_like() -> None:
    for raw, problem, classes in (
        ([["b"], ["a", "b"], []], "multi-label", ["a", "b"]),
        ([[0, 3], [1]], "multi-label", ["0", "1", "2", "3"]),
        ([[0.5, 3], [1, 2]], "vectors", ["0", "1"]),
        ([0.5, 1], "regression", None),
        (["a", "b"], "classes", ["a", "b"]),
    ):
        made = labels(raw)
        assert (made.kind, made.classes) == (problem, classes)
    flags = labels([Cells((1, 0)), Cells((0, 0))], columns=["a", "b"])
    assert (flags.kind, flags.rows.tolist()) == ("multi-label", [[1, 0], [0, 0]])
    assert labels([Cells((1, 0.5))], columns=["a", "b"]).kind == "vectors"


@pytest.mark.parametrize(
    ("read", "raw", "said"),
    [
        (multi, [["joy"], ["envy"]], "jsonl:2: label 'envy' is not one of the 3 known classes"),
        (multi, [["joy"], [3]], "jsonl:1: label 'joy'|jsonl:2: label"),
        (multi, [[0], [3]], "jsonl:2: label 3 is outside the teacher's 3 classes"),
        (multi, [["joy"], "fear"], "jsonl:2: the label is one of single labels; .*:1 is .* lists"),
        (multi, [["joy", None]], "jsonl:1: a list of labels holds None"),
        (multi, [["joy", ["fear"]]], "jsonl:1: a label is a text or a number, or a list.*got list"),
        (multi, [["joy", "joy"]], "jsonl:1: a list of classes holds the same class twice"),
        (multi, [[0, 1, 1]], "a 0 or 1 of every class name a column for each"),
        (multi, [[0.5]], "jsonl:1: a list of classes holds a number with a fraction"),
        (multi, [["joy"], ["-1"]], "jsonl:2: a list of classes holds -1, which is no class"),
        (vectors, [[1, 2, 3], [1, 2]], "jsonl:2: a list of 2 values; that of file.jsonl:1 has 3"),
        (vectors, [[1, 2]], "jsonl:1: a list of 2 values; the teacher gives 3"),
        (vectors, [[]], "jsonl:1: a list of 0 values"),
        (vectors, [[1, "x", 3]], "jsonl:1: label 'x' is not a number"),
        (vectors, [[1, 1e39, 3.5]], "beyond what float32 holds"),
        (vectors, [[1, float("nan"), 3]], "a list of labels holds nan"),
        (vectors, [1.5], "jsonl:1: a label is a single value, where a list of 3 is wanted"),
    ],
)
def test_lists_that_do_not_fit_are_named(read: Any, raw: list[Any], said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        read(raw)


def test_lists_are_refused_where_one_label_is_wanted() -> None:
    for options in ({"known": NAMES, "count": 3}, {"count": 1}, {"label_type": "class"}):
        with pytest.raises(CorpusError, match=r"jsonl:1: .* list of labels, where one is wanted"):
            labels([["joy"]], **options)


@pytest.mark.parametrize(
    ("cells", "columns", "said"),
    [
        ((1, 0, 2), NAMES, "'2' in a column of a class is neither 0 nor 1"),
        ((1, 0, 0.5), NAMES, "a number with a fraction"),
        ((1, None, 0), NAMES, "1 of the 3 label columns are empty"),
        ((1, 0), NAMES[:2], "label columns are joy, fear, and the teacher's outputs joy, fear, an"),
        ((1, 0, 1), ["joy", "fear", "envy"], "name a column for each"),
    ],
)
def test_columns_that_do_not_fit_are_named(cells: Any, columns: list[str], said: str) -> None:
    with pytest.raises(CorpusError, match=said):
        multi([Cells(cells)], columns=columns)


def test_problem_type_and_outputs_tell_the_kind() -> None:
    for problem, outputs, kind in (
        (None, 1, "regression"),
        ("regression", 1, "regression"),
        ("regression", 4, "vectors"),
        (None, 4, "classes"),
        ("multi_label_classification", 1, "multi-label"),
        ("multi_label_classification", 4, "multi-label"),
    ):
        found = kind_of(problem, outputs)
        assert found is not None
        assert found.name == kind
    assert kind_of("single_label_classification", 1) is None


def bernoulli(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    """The divergence of every class, by its formula, in float64."""
    p, q = (1 / (1 + np.exp(-x.astype(np.float64) / temperature)) for x in (teacher, student))
    return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_bernoulli_divergence_is_its_formula_and_its_gradient_that_of_differences(
    temperature: float,
) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 7, 5))
    mine = torch.tensor(student, requires_grad=True)
    theirs = torch.tensor(teacher)
    rows = bernoulli_kl(mine, theirs, temperature)
    np.testing.assert_allclose(rows.detach(), bernoulli(student, teacher, temperature), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: bernoulli_kl(x, theirs, temperature), (mine,))
    (gradient,) = torch.autograd.grad(rows.sum(), mine)
    expected = (
        torch.sigmoid(mine / temperature) - torch.sigmoid(theirs / temperature)
    ) / temperature
    torch.testing.assert_close(gradient, expected.detach())
    assert (bernoulli_kl(theirs, theirs, temperature) == 0).all()
    huge = torch.tensor([[90.0, -90.0]])
    assert torch.isfinite(bernoulli_kl(huge, -huge)).all()


def test_binary_cross_entropy_adds_up_the_classes_and_skips_documents_without_a_label() -> None:
    outputs = torch.tensor([[0.3, -1.2, 2.0], [9.0, 9.0, 9.0]], dtype=torch.float64)
    found = binary_cross_entropy(outputs, torch.tensor([[1, 0, 1], [NONE] * 3]))
    chance = 1 / (1 + np.exp(-outputs[0].numpy()))
    by_hand = -(np.log(chance[0]) + np.log(1 - chance[1]) + np.log(chance[2]))
    np.testing.assert_allclose(found, [by_hand, 0.0], rtol=1e-12)


def test_scores_of_several_classes_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random((53, 3)) < [0.5, 0.3, 0.0]).astype(np.int8)
    logits = (rng.normal(0, 1, (53, 3)) + truth).astype(np.float32)
    found, said = several_classes(logits, truth, NAMES), logits > 0
    for average in ("micro", "macro"):
        expected = sk.f1_score(truth, said, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(expected)
    ranked = [sk.average_precision_score(truth[:, i], logits[:, i]) for i in (0, 1)]
    assert found["average_precision"] == pytest.approx(np.mean(ranked))
    assert found["exact_match"] == sk.accuracy_score(truth, said)
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(truth, said))
    nats = [
        sk.log_loss(truth[:, i], 1 / (1 + np.exp(-logits[:, i])), labels=[0, 1]) for i in range(3)
    ]
    assert found["cross_entropy"] == pytest.approx(sum(nats), rel=1e-5)
    assert list(found["classes"]) == NAMES
    assert found["classes"]["joy"]["f1"] == pytest.approx(sk.f1_score(truth[:, 0], said[:, 0]))
    assert found["classes"]["anger"]["average_precision"] is None, "no document has it"
    assert found["classes"]["fear"]["documents"] == truth[:, 1].sum()


def test_scores_of_several_values_are_those_of_each() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(0, 1, (31, 2))
    said = truth + rng.normal(0, 1, (31, 2))
    found = several_values(said, truth, ["warm", "loud"])
    assert found["mse"] == pytest.approx(sk.mean_squared_error(truth, said))
    each = [np.corrcoef(said[:, i], truth[:, i])[0, 1] for i in range(2)]
    assert found["pearson"] == pytest.approx(np.mean(each))
    assert found["values"]["loud"]["pearson"] == pytest.approx(each[1])


def jsonl(path: Path, raw: list[Any]) -> Path:
    rows = [
        {"text": f"the text number {i} is {'a long ' * (i % 3)}one", "labels": label}
        for i, label in enumerate(raw)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def teacher(path: Path, tokenizer: Path, problem: str, **more: Any) -> Path:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    sizes = {"num_hidden_layers": 2, "initializer_range": 0.2}
    config = bert_config(tokenizer, problem_type=problem, **{**sizes, **names, **more})
    return save_teacher(path, tokenizer, transformers.BertForSequenceClassification(config))


class Made:
    """A corpus, a teacher and a cache of a kind, and a student trained from it."""

    def __init__(self, kind: str, folder: Path, tokenizer: Path) -> None:
        self.folder, self.kind = folder, kind
        self.corpus = jsonl(folder / "corpus.jsonl", SETS if kind == "multi-label" else VALUES)
        self.teacher = teacher(folder / "teacher", tokenizer, PROBLEMS[kind])
        self.cache: Cache = kdcache.build(
            self.corpus,
            teacher=self.teacher,
            task=TASK,
            out=folder / "cache.zarr",
            max_length=32,
        )
        self.trained = kdcache.train(
            self.cache,
            recipe="kd" if kind == "multi-label" else "kd-mse",
            out=folder / "student",
            init_from_teacher=[1],
            epochs=2,
            batch_size=8,
            dev_split=0.3,
            eval_file=self.corpus,
            eval_teacher=self.teacher,
            device="cpu",
        )


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> dict[str, Made]:
    return {k: Made(k, tmp_path_factory.mktemp(k), tokenizer) for k in PROBLEMS}


@pytest.fixture(params=PROBLEMS)
def made(request: pytest.FixtureRequest, several: dict[str, Made]) -> Made:
    return several[request.param]


def outputs_of(made: Made) -> torch.Tensor:
    """What the teacher says of all documents, one at a time."""
    loaded = load_teacher(made.teacher, task=TASK, device="cpu")
    rows = []
    with torch.inference_mode():
        for doc in made.cache.plan.docs:
            batch = made.cache.batch(np.asarray([doc]), [])
            rows.append(run_model(loaded.model, batch, [LOGITS], task=TASK)[LOGITS])
    return torch.cat(rows)


def test_a_cache_holds_the_outputs_as_they_left_the_teacher(made: Made) -> None:
    cache, plan = made.cache, made.cache.plan
    stored = cache.stored(plan.docs, LOGITS).values
    torch.testing.assert_close(stored, outputs_of(made), atol=1e-5, rtol=1e-5)
    column = plan.label_kind.column
    order = plan.per_document["doc_id"][plan.docs]
    raw = SETS if made.kind == "multi-label" else VALUES
    for row, label in zip(
        plan.per_document[column][plan.docs], [raw[i] for i in order], strict=True
    ):
        if made.kind == "multi-label":
            assert row.tolist() == ([NONE] * 3 if label is None else [n in label for n in NAMES])
        else:
            np.testing.assert_array_equal(row, [np.nan] * 3 if label is None else label)
    assert plan.labelled == sum(label is not None for label in raw)
    assert list(cache.columns(plan.docs, "logits")) == ["values"], "no softmax is exported"
    assert "top1_agreement" not in cache.fidelity["logits"]
    with pytest.raises(ConfigError, match="gives no probabilities that sum to one"):
        cache.soft_labels(plan.docs)
    assert kdcache.verify(cache.path) == []
    assert spot_check(cache.path, 4).findings == []


def test_a_student_says_what_its_outputs_are_and_is_scored_by_them(made: Made) -> None:
    config = json.loads((made.trained.folder / "config.json").read_text())
    assert config["problem_type"] == PROBLEMS[made.kind]
    assert list(config["id2label"].values()) == NAMES
    metrics, metric = made.trained.metrics, "average_precision"
    each = "classes"
    if made.kind == "vectors":
        metric, each = "pearson", "values"
    assert metrics["dev"]["metric"] == metric
    assert metrics["dev"]["teacher"]["value"] is not None
    assert list(metrics["evaluation"][each]) == NAMES
    assert "| joy |" in (made.trained.folder / "README.md").read_text()
    assert metrics["evaluation"]["teacher_rows"]["documents"] == made.cache.plan.documents


def test_predictions_and_agreement_are_of_every_output(made: Made, tmp_path: Path) -> None:
    said_to = tmp_path / "said.csv"
    report = evaluate(
        made.teacher,
        made.corpus,
        cache=made.cache,
        predictions=said_to,
        by="length",
        teacher=made.teacher,
        device="cpu",
    )
    told = report["slices"]["length"]
    assert told["metric"] == {"multi-label": "micro_f1", "vectors": "pearson"}[made.kind]
    assert told["all"]["value"] == pytest.approx(report[told["metric"]])
    for one in told["rows"]:
        assert one["value"] == pytest.approx(one["scores"][told["metric"]], abs=1e-6)
        assert one["drop"]["value"] == 0
    assert report["teacher_rows"]["divergence"] == pytest.approx(0, abs=1e-9)
    assert report["teacher_rows"]["agreement"] == (1 if made.kind == "multi-label" else None)
    with (tmp_path / "said.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    said = outputs_of(made)[made.cache.plan.per_document["doc_id"][made.cache.plan.docs].argsort()]
    if made.kind == "multi-label":
        assert [json.loads(row["prediction"]) for row in rows] == [
            [name for name, logit in zip(NAMES, row, strict=True) if logit > 0] for row in said
        ]
        assert float(rows[0]["probability: joy"]) == pytest.approx(
            float(said[0, 0].sigmoid()), abs=1e-4
        )
        assert json.loads(rows[1]["labels"]) == ["joy", "fear"]
    else:
        assert float(rows[0]["prediction: fear"]) == pytest.approx(float(said[0, 1]), rel=1e-4)


@pytest.mark.parametrize("reduction", ["row", "element"])
def test_the_loss_kl_is_the_bernoulli_form_beside_hard_labels(
    several: dict[str, Made], reduction: str
) -> None:
    """What kd lowers on a cache of several classes is never a softmax."""
    cache = several["multi-label"].cache
    kl = SoftKL(weight=0.7, temperature=2.0, reduction=reduction)
    loaded = load_teacher(several["multi-label"].trained.folder, task=TASK, device="cpu")
    sizes = model_sizes(loaded.model.config, TASK)
    objective = Objective(
        {"kl": kl, "hard": Hard(weight=0.3)}, cache_spec(cache, cache.plan.labelled), sizes
    )
    batch = cache.batch(cache.plan.docs)
    said = run_model(loaded.model, batch, [LOGITS], task=TASK)
    loss, terms = objective(said, batch)
    student, theirs = said[LOGITS].numpy(), batch["logits/values"].numpy()
    divergence = 4 * bernoulli(student, theirs, 2.0).mean() / (3 if reduction == "element" else 1)
    truth = batch["labels"].numpy()
    there = truth[:, 0] != NONE
    chance = 1 / (1 + np.exp(-student.astype(np.float64)))
    hard = -np.log(np.where(truth == 1, chance, 1 - chance))[there].sum(1).mean()
    assert float(terms["kl"]) == pytest.approx(divergence, rel=1e-5)
    assert float(terms["hard"]) == pytest.approx(hard, rel=1e-5)
    assert float(loss) == pytest.approx(0.7 * divergence + 0.3 * hard, rel=1e-5)


def test_students_of_several_classes_learn_from_each_other_class_by_class(
    several: dict[str, Made],
) -> None:
    cache = several["multi-label"].cache
    loaded = load_teacher(several["multi-label"].trained.folder, task=TASK, device="cpu")
    sizes = replace(model_sizes(loaded.model.config, TASK), peers=1)
    objective = Objective(
        {"mutual": Mutual(weight=1.0, temperature=2.0)},
        cache_spec(cache, cache.plan.labelled),
        sizes,
    )
    batch = cache.batch(cache.plan.docs)
    one = run_model(loaded.model, batch, [LOGITS], task=TASK)
    other = replace(one, values={LOGITS: batch["logits/values"]})
    mine, peers = one[LOGITS].numpy(), other[LOGITS].numpy()
    loss, _ = objective(replace(one, peers=(other,)), batch)
    assert float(loss) == pytest.approx(4 * bernoulli(mine, peers, 2.0).mean(), rel=1e-5)


def test_students_that_give_values_have_no_probabilities_to_compare(
    several: dict[str, Made],
) -> None:
    made = several["vectors"]
    loaded = load_teacher(made.trained.folder, task=TASK, device="cpu")
    sizes = replace(model_sizes(loaded.model.config, TASK), peers=1)
    with pytest.raises(ConfigError, match=r"losses.mutual compares probabilities of students"):
        Objective({"mutual": Mutual()}, cache_spec(made.cache, made.cache.plan.labelled), sizes)


@pytest.mark.slow
def test_a_shipped_student_says_every_class_or_value(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = kdcache.ship(made.trained.folder, tmp_path / "out", measure=made.corpus)
    spec = importlib.util.spec_from_file_location("infer", tmp_path / "out" / "infer.py")
    assert spec is not None
    assert spec.loader is not None
    infer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infer)
    said = infer.Model(tmp_path / "out", threads=1).predict(["the text number 1 is one"])[0]
    row = report["models"]["fp32"]
    if made.kind == "multi-label":
        assert set(said["probabilities"]) == set(NAMES)
        assert said["labels"] == [n for n, chance in said["probabilities"].items() if chance > 0.5]
        assert row["agreement"] == 1
        assert "classifier of several classes" in (tmp_path / "out" / "README.md").read_text()
    else:
        assert list(said["values"]) == NAMES
        assert "agreement" not in row
    expected = made.trained.metrics["evaluation"]
    headline = LABEL_KINDS[made.kind].headline
    assert row[headline] == pytest.approx(expected[headline], abs=1e-4)


def test_a_teacher_of_several_is_taught(made: Made, tokenizer: Path, tmp_path: Path) -> None:
    """From an encoder without a head to a teacher that `build` takes."""
    encoder = transformers.BertModel.from_pretrained(made.teacher)
    save_teacher(tmp_path / "encoder", tokenizer, encoder)
    raw: list[Any] = SETS if made.kind == "multi-label" else VALUES
    corpus = jsonl(tmp_path / "labelled.jsonl", [label for label in raw if label is not None])
    result = kdcache.teach(
        tmp_path / "encoder",
        corpus,
        out=tmp_path / "taught",
        epochs=2,
        learning_rates=1e-3,
        batch_size=8,
        max_length=32,
        dev_split=0.25,
        device="cpu",
    )
    config = json.loads((tmp_path / "taught" / "config.json").read_text())
    assert config["problem_type"] == PROBLEMS[made.kind]
    names = ["anger", "fear", "joy"] if made.kind == "multi-label" else ["0", "1", "2"]
    assert list(config["id2label"].values()) == names
    by = "average_precision" if made.kind == "multi-label" else "mse"
    assert result.metrics["chosen_by"] == by
    assert result.metrics["start"]["pooler"] in ("own", "refitted")
    assert result.metrics["dev"][by] is not None
    assert f"| {names[0]} |" in (tmp_path / "taught" / "README.md").read_text()
    estimated = estimate(corpus, teacher=tmp_path / "taught", task=TASK)
    assert estimated.plan.config.classes == names


def test_what_keeps_probabilities_of_one_class_is_refused(made: Made, tmp_path: Path) -> None:
    for signal in ("logits:topk,k=2", "logits:topk-small,k=2", "logits:sampled,n=5"):
        with pytest.raises(ConfigError, match=r"sum to one over the outputs.* take logits:dense"):
            kdcache.build(
                made.corpus,
                teacher=made.teacher,
                task=TASK,
                out=tmp_path / "out.zarr",
                signals=[signal],
            )
    assert not (tmp_path / "out.zarr").exists()


def test_kl_is_refused_for_values(several: dict[str, Made], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gives values, not probabilities; use .* logit_mse"):
        kdcache.train(
            several["vectors"].cache, recipe="kd", out=tmp_path / "out", init_from_teacher=[1]
        )


def test_a_plan_for_one_class_is_refused_by_a_teacher_of_several(
    several: dict[str, Made], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plan.zarr"
    kdcache.plan(corpus, tokenizer=tokenizer, task=TASK, out=out, limit=8)
    for made in several.values():
        with pytest.raises(ModelError, match=r"plan's labels are for a classifier: plan with"):
            kdcache.build(str(out), teacher=made.teacher, task=TASK, out=tmp_path / "x.zarr")


def test_columns_of_labels_make_the_plan_of_lists(
    several: dict[str, Made], tmp_path: Path, tokenizer: Path
) -> None:
    """A column for each class, and again made from the corpus by `--repair`."""
    rows = [(f"text {i}", i % 2, 1 - i % 2, int(i == 3)) for i in range(9)]
    file = write_csv(tmp_path / "flags.csv", rows, ("text", "fear", "joy", "anger"))
    cache = kdcache.build(
        file,
        teacher=several["multi-label"].teacher,
        task=TASK,
        out=tmp_path / "flags.zarr",
        label_column=["fear", "joy", "anger"],
        max_length=16,
    )
    config = cache.plan.config
    assert (config.label_kind, config.classes) == ("multi-label", NAMES)
    assert config.corpus["label_column"] == ["fear", "joy", "anger"]
    doc = cache.plan.docs[list(cache.plan.per_document["doc_id"][cache.plan.docs]).index(3)]
    assert cache.plan.per_document["labels"][doc].tolist() == [0, 1, 1]
    shard = next((cache.path / "plan" / "labels").rglob("c/*/*"))
    shard.write_bytes(shard.read_bytes()[::-1])
    assert kdcache.verify(cache.path)
    found = repair(cache.path, corpus=file)
    assert (len(found.repaired), found.left, kdcache.verify(cache.path)) == (1, (), [])
