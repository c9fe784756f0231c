"""Every mistake gets one line that names the thing and the way out, and leaves nothing behind."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers

import kdcache
from kdcache import errors
from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import (
    CacheError,
    ConfigError,
    CorpusError,
    IncompleteError,
    KdcacheError,
    MismatchError,
    ModelError,
    one_of,
)
from kdcache.store import Cache, open_cache
from tests.conftest import bert_config, save_teacher, write_csv

TASK: Any = "text-classification"
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, Exception)
}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(\w+Error)\b", errors.__doc__ or "")
    assert sorted(drawn) == sorted(CLASSES)
    assert all(issubclass(kind, KdcacheError) and kind.__doc__ for kind in CLASSES.values())
    below = {name for name, kind in CLASSES.items() if issubclass(kind, CacheError)}
    assert below == {"CacheError", "MismatchError", "IncompleteError", "DamageError"}


@pytest.mark.parametrize(
    ("value", "hint"),
    [("logit", "; did you mean 'logits'?"), ("hiden", "; did you mean 'hidden'?"), ("xyz", "")],
)
def test_a_name_is_corrected_only_where_one_is_near(value: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one_of("signal", value, ["logits", "hidden"])
    assert str(caught.value) == f"unknown signal {value!r}{hint} (known: logits, hidden)"


def test_a_known_name_passes() -> None:
    assert one_of("signal", "hidden", iter(["logits", "hidden"])) == "hidden"


class Case:
    """What a mistake is made with: inputs that are right, and a folder for those that are not."""

    def __init__(self, folder: Path, **given: Path) -> None:
        self.folder = folder
        self.given = given

    def copy(self, name: str, without: str = "") -> Path:
        """A copy of a model folder, without one of its files."""
        path = Path(shutil.copytree(self.given[name], self.folder / "model"))
        if without:
            (path / without).unlink()
        return path

    def configured(self, **fields: object) -> Path:
        """A copy of the classifier whose configuration says something else."""
        path = self.copy("classifier")
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, **fields}))
        return path

    def file(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def bare(self) -> Path:
        """A model without a head for any task."""
        model = transformers.BertModel(bert_config(self.given["tokenizer"]))
        return save_teacher(self.folder / "model", self.given["tokenizer"], model)

    def wider(self) -> Path:
        """A teacher whose vocabulary has fewer tokens than the tokenizer."""
        model = transformers.BertForSequenceClassification(
            bert_config(self.given["tokenizer"], vocab_size=500, num_labels=3)
        )
        return save_teacher(self.folder / "model", self.given["tokenizer"], model)

    def lowercase(self) -> Path:
        """A tokenizer of the same size that gives other tokens."""
        path = self.copy("classifier")
        text = (path / "tokenizer.json").read_text()
        (path / "tokenizer.json").write_text(
            text.replace('"lowercase": true', '"lowercase": false', 1)
        )
        return path


Mistake = Callable[[Case], dict[str, Any]]
MISTAKES: dict[str, tuple[Mistake, type[KdcacheError], str]] = {
    "corpus missing": (
        lambda c: {"corpus": c.folder / "no.csv"},
        CorpusError,
        r"no such corpus: .*no\.csv",
    ),
    "corpus empty": (
        lambda c: {"corpus": c.file("empty.csv", "")},
        CorpusError,
        r"empty\.csv holds no documents",
    ),
    "corpus malformed": (
        lambda c: {"corpus": c.file("bad.csv", "text,label\nx,0\ny\n")},
        CorpusError,
        r"bad\.csv:3: malformed: expected 2 columns, found 1",
    ),
    "column unknown": (
        lambda c: {"text_columns": ["body"]},
        ConfigError,
        r"sentences\.csv:2 has no column 'body'; its columns are text, label",
    ),
    "label unknown": (
        lambda c: {"corpus": c.file("c.csv", "text,label\nx,email\ny,xml\n")},
        CorpusError,
        r"c\.csv:3: label 'xml' is not one of the 3 known classes \(asyncio, email, tkinter\)",
    ),
    "label outside": (
        lambda c: {"corpus": c.file("c.csv", "text,label\nx,0\ny,3\n")},
        CorpusError,
        r"c\.csv:3: label 3 is outside the teacher's 3 classes \(0 to 2\)",
    ),
    "labels are numbers": (
        lambda c: {"label_type": "float", "corpus": c.file("c.csv", "text,label\nx,0.5\n")},
        ModelError,
        r"the teacher is a classifier \(3 outputs\), and the plan's labels are for a regressor",
    ),
    "labels are classes": (
        lambda c: {"label_type": "class", "label_column": "", "teacher": c.given["regressor"]},
        ModelError,
        r"the teacher is a regressor \(1 outputs\), and the plan's labels are for a classifier",
    ),
    "teacher missing": (
        lambda c: {"teacher": c.folder / "no model"},
        ModelError,
        "no model configuration '.*no model': there is no such folder",
    ),
    "teacher without configuration": (
        lambda c: {"teacher": c.copy("classifier", "config.json")},
        ModelError,
        r"model is no model folder: it has no config\.json",
    ),
    "teacher without weights": (
        lambda c: {"teacher": c.copy("classifier", "model.safetensors")},
        ModelError,
        r"cannot load the teacher in .*model: .*no file named model\.safetensors",
    ),
    "teacher without a head": (
        lambda c: {"teacher": c.bare()},
        ModelError,
        r"has no trained weights for classifier\..* it is no teacher for text-classification",
    ),
    "teacher of nonsense": (
        lambda c: {"teacher": c.configured(hidden_size="wide")},
        ModelError,
        "cannot load the model configuration .*'hidden_size'",
    ),
    "teacher of another width": (
        lambda c: {"teacher": c.configured(intermediate_size=65)},
        ModelError,
        r"is \[64\] in the weights and \[65\] by the configuration",
    ),
    "teacher of another kind": (
        lambda c: {"task": "causal-lm"},
        ModelError,
        "is a bert that reads in both directions: it does not fit causal-lm",
    ),
    "teacher too short": (
        lambda c: {"max_length": 500, "corpus": c.file("c.txt", "many words " * 200)},
        ModelError,
        "the teacher takes 128 tokens, not 500; plan with --max-length 128",
    ),
    "tokenizer missing": (
        lambda c: {"tokenizer": c.folder},
        ModelError,
        r"holds no tokenizer \(no tokenizer\.json\)",
    ),
    "token beyond the teacher's": (
        lambda c: {"teacher": c.wider()},
        ModelError,
        r"row \d+ of the corpus .* holds token 5\d\d, and the teacher model has 500 tokens: plan",
    ),
    "task": (
        lambda c: {"task": "classification"},
        ConfigError,
        "unknown task 'classification'; did you mean 'text-classification'?",
    ),
    "signal": (
        lambda c: {"signals": ["logit:dense"]},
        ConfigError,
        "unknown signal 'logit'; did you mean 'logits'?",
    ),
    "dtype": (
        lambda c: {"dtype": "float16"},
        ConfigError,
        r"unknown dtype 'float16'; did you mean 'fp16'\?",
    ),
    "device": (lambda c: {"device": "gpu"}, ConfigError, "unknown device 'gpu'; use auto, cpu"),
    "k beyond the classes": (
        lambda c: {"signals": ["logits:topk,k=4"]},
        ConfigError,
        "k=4: the teacher has 3 outputs; use k=3 or less, or logits:dense",
    ),
    "layer out of range": (
        lambda c: {"signals": ["hidden:layers=1-5"]},
        ConfigError,
        r"layer 5 is out of range; the teacher has layers 0 \(embedding output\) to 4",
    ),
    "no tokens in a forward": (
        lambda c: {"batch_tokens": 0},
        ConfigError,
        "batch_tokens must be 1 or more; got 0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_one_line_and_leaves_nothing_behind(
    tmp_path: Path,
    corpus: Path,
    classifier: Path,
    regressor: Path,
    tokenizer: Path,
    name: str,
) -> None:
    mistake, error, message = MISTAKES[name]
    (tmp_path / "inputs").mkdir()
    case = Case(
        tmp_path / "inputs",
        classifier=classifier,
        regressor=regressor,
        tokenizer=tokenizer,
    )
    out = tmp_path / "outputs" / "c"
    out.parent.mkdir()
    right: dict[str, Any] = {"corpus": corpus, "teacher": classifier, "task": TASK}
    with pytest.raises(KdcacheError, match=message) as caught:
        build(**{**right, **mistake(case)}, out=out)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_a_plan_made_with_another_tokenizer_is_refused(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    case = Case(tmp_path, classifier=classifier)
    plan(corpus, tokenizer=case.lowercase(), task=TASK, out=tmp_path / "plan", limit=9)
    with pytest.raises(ModelError, match=r"their SHA-256 differ\): plan with the teacher's own"):
        build(tmp_path / "plan", teacher=classifier, task=TASK, out=tmp_path / "c")


def test_a_plan_that_numbers_its_classes_otherwise_is_refused(
    tmp_path: Path, classifier: Path, tokenizer: Path
) -> None:
    corpus = write_csv(tmp_path / "c.csv", [("x", "tkinter"), ("y", "email")])
    plan(corpus, tokenizer=tokenizer, task=TASK, out=tmp_path / "plan")
    with pytest.raises(
        ModelError, match=r"numbers its classes email, tkinter, .* and the teacher a"
    ):
        build(tmp_path / "plan", teacher=classifier, task=TASK, out=tmp_path / "c")


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "length": ({"max_length": 40}, "plan.config.max_length is 48 there and 40 now"),
    "part": ({"part_tokens": 1024}, "plan.config.part_tokens is 2048 there and 1024 now"),
    "seed": ({"seed": 5}, "plan.config.seed is 0 there and 5 now"),
    "labels": ({"label_column": ""}, "plan.config.corpus.label_column is label there and null now"),
    "documents": ({"limit": 30}, "plan.config.corpus.documents"),
    "dtype": ({"dtype": "bf16"}, "teacher.dtype is fp32 there and bf16 now"),
    "codec": ({"signals": ["logits:topk,k=2"]}, "signals.logits.codec is dense there and topk now"),
    "signal": ({"signals": ["logits:dense", "hidden:layers=1"]}, "signals.hidden"),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path) -> Cache:
    """A cache in the place where another one is wanted."""
    out = tmp_path_factory.mktemp("held") / "c"
    return build(
        corpus, teacher=classifier, task=TASK, out=out, max_length=48, part_tokens=2048, limit=60
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_with_another_cache_is_refused_by_field(
    corpus: Path, classifier: Path, held: Cache, name: str
) -> None:
    change, message = CHANGES[name]
    same = {"teacher": classifier, "task": TASK, "max_length": 48, "part_tokens": 2048}
    with pytest.raises(MismatchError, match=re.escape(message)) as caught:
        build(corpus, out=held.path, **{**same, "limit": 60, **change})
    assert "choose another output folder, or repeat the command that made it" in str(caught.value)
    assert kdcache.verify(held.path) == []


def test_another_teacher_in_the_same_place_is_refused(
    tmp_path: Path, corpus: Path, classifier: Path, held: Cache
) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    model.classifier.bias.data[0] += 1
    other = Path(shutil.copytree(classifier, tmp_path / "classifier"))
    model.save_pretrained(other)
    sizes: dict[str, Any] = {"max_length": 48, "part_tokens": 2048, "limit": 60}
    with pytest.raises(MismatchError, match=r"teacher\.weights_sha256 is \w{57}\.\.\. there and"):
        build(corpus, teacher=other, task=TASK, out=held.path, **sizes)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: a disk that fails in earnest."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fails_in_the_middle_costs_one_part(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    given: dict[str, Any] = {
        "teacher": classifier,
        "task": TASK,
        "signals": ["hidden:layers=0-1-2,positions=all,dtype=fp32"],
        "part_tokens": 2048,
        "limit": 100,
    }
    whole = build(corpus, out=tmp_path / "whole", **given)
    with (
        file_limit(100_000),
        pytest.raises(CacheError, match=r"cannot write .*broken: files may not grow .*ulimit -f"),
    ):
        build(corpus, out=tmp_path / "broken", **given)
    broken = open_cache(tmp_path / "broken")
    assert broken.committed == []
    assert not broken.complete
    with pytest.raises(IncompleteError, match="0 of 2 parts are committed; run the same"):
        broken.require_complete()
    build(corpus, out=tmp_path / "broken", **given)
    files = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (whole.path, broken.path)
    ]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


def test_a_disk_that_fails_at_the_start_leaves_nothing_behind(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    with file_limit(4096), pytest.raises(CacheError, match=r"cannot write .*files may not grow"):
        build(corpus, teacher=classifier, task=TASK, out=tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_cache_is_not_trained_on(tmp_path: Path, cache: Cache) -> None:
    half = Path(shutil.copytree(cache.path, tmp_path / "half"))
    shutil.rmtree(half / "complete")
    shutil.rmtree(half / "commits" / "000002")
    parts = cache.plan.parts
    message = f"{parts - 1} of {parts} parts are committed; run the same `kdcache build` again"
    with pytest.raises(IncompleteError, match=message):
        kdcache.train(half, recipe="kd", init_from_teacher=[1], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
