"""A shipped folder runs without torch and says what its torch model says."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kdcache.errors import ConfigError, CorpusError, KdcacheError, MissingExtraError, ModelError
from kdcache.shipping import ship
from kdcache.shipping.faithful import MOST, difference, require_faithful
from kdcache.shipping.infer import Model
from kdcache.shipping.quantise import quantise
from kdcache.shipping.source import load_source
from kdcache.shipping.verdict import notes, unmeasured
from kdcache_cli.main import main
from kdcache_cli.shipping import ROWS, print_report
from tests.conftest import SIZES, Lines, bert_config, save_teacher, write_csv

NEEDED = ("onnxruntime", "tokenizers", "numpy")
FILES = {
    "README.md",
    "config.json",
    "infer.py",
    "inference.json",
    "model.onnx",
    "report.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that holds onnxruntime, tokenizers and numpy, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    for name in NEEDED:
        spec = find_spec(name)
        assert spec is not None
        place = Path(str(spec.origin)).parent
        for path in (place, place.with_name(f"{name}.libs")):  # numpy's own libraries
            if path.exists():
                (folder / path.name).symlink_to(path)
    return folder


def run_bare(
    bare: Path, *arguments: object, stdin: str | bytes = "", env: Mapping[str, str] = {}
) -> subprocess.CompletedProcess[str]:
    """Run Python without site packages on the path `bare`."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bare), **env}
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-B", *words],
        env=environment,
        cwd=bare,  # python -c looks there, too
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=60,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@torch.no_grad()
def by_torch(folder: Path, texts: list[Any], length: int) -> np.ndarray[Any, Any]:
    """The logits of each text, alone, as transformers itself has them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        pair = [[part] for part in ([text] if isinstance(text, str) else text)]
        batch = tokenizer(*pair, truncation=True, max_length=length, return_tensors="pt")
        accepted = {k: v for k, v in batch.items() if k in signature(model.forward).parameters}
        rows.append(model(**accepted).logits[0].numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """A small classifier with a record of its training on pairs of up to 40 tokens."""
    torch.manual_seed(5)
    names = ["asyncio", "email", "tkinter"]
    config = bert_config(
        tokenizer,
        num_hidden_layers=1,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("student") / "model"
    save_teacher(folder, tokenizer, transformers.BertForSequenceClassification(config))
    corpus = {"text_columns": ["text", "context"], "label_column": "label"}
    note = {"plan_config": {"task": "text-classification", "max_length": 40, "corpus": corpus}}
    (folder / "cache.json").write_text(json.dumps(note))
    return folder


@pytest.fixture(scope="module")
def pairs(sentences: list[Any]) -> list[tuple[str, str]]:
    """Pairs of texts from one word to hundreds."""
    texts = [s.text for s in sentences[:20]]
    long = " ".join(s.text for s in sentences[:90])
    mixed = [*zip(texts, reversed(texts), strict=True), ("yes", "no"), (long, texts[0])]
    return [*mixed, (texts[1], long), (long, long[100:]), ("é ß 漢字", "")]


@pytest.fixture(scope="module")
def shipped(
    tmp_path_factory: pytest.TempPathFactory,
    student: Path,
    pairs: list[tuple[str, str]],
    sentences: list[Any],
) -> tuple[Path, dict[str, Any]]:
    """The student shipped in float32 and measured by the command line, and the report."""
    folder = tmp_path_factory.mktemp("shipped")
    rows = [(*pair, s.package) for pair, s in zip(pairs, sentences, strict=False)]
    file = write_csv(folder / "dev.csv", rows, ("text", "context", "label"))
    command = ["ship", student, folder / "out", "--measure", file, "--json", "--quiet"]
    with redirect_stdout(io.StringIO()) as told, redirect_stderr(io.StringIO()) as errors:
        assert main([str(word) for word in command]) == 0
    assert errors.getvalue() == ""
    return folder / "out", json.loads(told.getvalue())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, shipped: tuple[Path, dict[str, Any]]) -> Path:
    """The same in int8."""
    folder = tmp_path_factory.mktemp("small") / "out"
    shutil.copytree(shipped[0], folder)
    (folder / "model.onnx").unlink()
    quantise(shipped[0] / "model.onnx", folder / "model.onnx")
    return folder


def test_the_folder_holds_what_running_takes_and_nothing_else(
    shipped: tuple[Path, dict[str, Any]],
) -> None:
    folder, report = shipped
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*")} == FILES
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    about = sizes["README.md"] + sizes["report.json"]
    assert report["bytes"] == sum(sizes.values()) - about
    kept = json.loads((folder / "report.json").read_text("utf-8"))
    assert kept == {name: value for name, value in report.items() if name != "folder"}
    assert report["model_bytes"] == sizes["model.onnx"]
    assert report["folder"] == str(folder)
    assert sorted(os.listdir(folder.parent)) == ["dev.csv", "out"]
    graph = (folder / "model.onnx").read_bytes()
    assert b"site-packages" not in graph  # nor where on this machine a node comes from
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 40


def test_embeddings_are_in_8_bits_too(small: Path) -> None:
    import onnx

    graph = onnx.load(small / "model.onnx").graph
    table = [i for i in graph.initializer if list(i.dims) == [600, 32]]
    assert [i.data_type for i in table] == [onnx.TensorProto.UINT8]
    weights = [i for i in graph.initializer if len(i.dims) == 2]
    assert onnx.TensorProto.FLOAT not in {i.data_type for i in weights}
    for weight in weights:  # 7 bits: sums of two products fit the 16 bits of old processors
        if weight.data_type == onnx.TensorProto.INT8:
            assert np.abs(onnx.numpy_helper.to_array(weight).astype(int)).max() <= 64


def test_the_shipped_program_needs_no_torch_and_says_what_the_model_says(
    bare: Path,
    shipped: tuple[Path, dict[str, Any]],
    student: Path,
    pairs: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    assert shipped[1]["fidelity"]["relative"] < 1e-5
    wanted = by_torch(student, pairs, 40)
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([list(column) for column in zip(*pairs, strict=True)]))
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from infer import Model\n"
        "texts, pairs = json.load(open(sys.argv[2])); model = Model()\n"
        "said = [model.logits(texts, pairs, size).tolist() for size in (1, 4, 99)]\n"
        "print(json.dumps([said, model.predict(texts[:1], pairs[:1])]))"
    )
    done = run_bare(bare, "-c", code, shipped[0], texts)
    assert done.returncode == 0, done.stderr
    predicted, (first,) = json.loads(done.stdout)
    for logits in predicted:
        np.testing.assert_allclose(logits, wanted, atol=2e-5)
    chances = torch.from_numpy(wanted[0]).softmax(0).tolist()
    assert list(first["probabilities"]) == ["asyncio", "email", "tkinter"]
    assert list(first["probabilities"].values()) == pytest.approx(chances, abs=1e-5)
    assert first["label"] == ["asyncio", "email", "tkinter"][wanted[0].argmax()]
    for absent in ("torch", "transformers", "kdcache"):
        assert run_bare(bare, "-c", f"import {absent}").returncode == 1


def test_the_program_reads_its_command_line_and_standard_input(
    bare: Path, shipped: tuple[Path, dict[str, Any]]
) -> None:
    program = shipped[0] / "infer.py"
    one = run_bare(bare, program, "--pair", "a loop", "its events")
    two = run_bare(bare, program, stdin="a loop\tits events\n\nwindows\tand widgets\n")
    lines = [json.loads(line) for line in two.stdout.splitlines()]
    assert (one.stderr, two.stderr) == ("", "")
    assert one.stdout == two.stdout.splitlines(keepends=True)[0]
    assert len(lines) == 2
    assert set(lines[0]["probabilities"]) == {"asyncio", "email", "tkinter"}
    wanted = run_bare(bare, program, "--pair", "é \ufffd", "ß").stdout
    for locale in ("C", "C.UTF-8"):
        plain = {"env": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": locale}}
        broken = run_bare(bare, program, stdin=b"\xc3\xa9 \xff\t\xc3\x9f\n", **plain)
        given = run_bare(bare, program, "--pair", b"\xc3\xa9 \xff", b"\xc3\x9f", **plain)
        assert (broken.stdout, given.stdout) == (wanted, wanted), broken.stderr + given.stderr
    for arguments in (["--pair", "alone"], ["one text"]):
        wrong = run_bare(bare, program, *arguments)
        assert wrong.returncode == 2
        assert "two texts" in wrong.stderr or "2 text(s)" in wrong.stderr


def test_the_program_ends_quietly_where_nobody_reads_on(
    bare: Path, shipped: tuple[Path, dict[str, Any]]
) -> None:
    words = [sys.executable, "-S", "-s", "-B", str(shipped[0] / "infer.py"), "--pair", "a", "b"]
    reader, writer = os.pipe()
    os.close(reader)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bare)}
    ran = subprocess.run(words, env=env, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert ran.stderr == b""


@pytest.mark.parametrize(("columns", "texts"), [((), None), (("a",), 1), (("a", "b"), 2)])
def test_where_no_note_tells_named_columns_tell_whether_it_reads_pairs(
    student: Path, tmp_path: Path, columns: tuple[str, ...], texts: int | None
) -> None:
    hub = Path(shutil.copytree(student, tmp_path / "hub"))
    (hub / "cache.json").unlink()
    scratch, options = tmp_path / "scratch", {"text_columns": columns}
    scratch.mkdir()
    source = load_source(hub, None, options, scratch=scratch, progress=Lines())
    assert source.settings["texts"] == texts
    assert (source.documents.pairs is None) == (texts != 2)


def test_a_tab_is_refused_where_it_may_part_a_pair_or_not(
    bare: Path, shipped: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    hub = Path(shutil.copytree(shipped[0], tmp_path / "hub"))
    settings = json.loads((hub / "inference.json").read_text())
    (hub / "inference.json").write_text(json.dumps({**settings, "texts": None}))
    ran = run_bare(bare, hub / "infer.py", stdin="a loop and its events\na loop\tits events\n")
    assert ran.returncode == 2
    assert len(ran.stdout.splitlines()) == 1
    assert "a line has a tab" in ran.stderr
    assert "--text-column" in ran.stderr


def test_what_int8_costs_is_told_not_to_be_measured(
    shipped: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {name: value for name, value in shipped[1].items() if name != "models"}
    print_report({**plain, "int8": True, "notes": unmeasured("int8")})
    assert "What int8 costs was not measured: --measure FILE" in capsys.readouterr().out
    assert unmeasured("fp32") == []


def test_figures_are_those_of_the_files(
    shipped: tuple[Path, dict[str, Any]], small: Path, student: Path, pairs: list[tuple[str, str]]
) -> None:
    folder, report = shipped
    models = report["models"]
    assert list(models) == ["fp32", "int8"]
    assert models["fp32"]["agreement"] == 1
    assert models["fp32"]["bytes"] == report["bytes"] > models["int8"]["bytes"]
    assert models["int8"]["model_bytes"] == (small / "model.onnx").stat().st_size
    predicted = Model(small).logits(*map(list, zip(*pairs, strict=True)))
    wanted = by_torch(student, pairs, 40)
    agreement = (predicted.argmax(1) == wanted.argmax(1)).mean()
    assert models["int8"]["agreement"] == pytest.approx(agreement)
    apart = np.abs(predicted - wanted).mean()
    assert models["int8"]["logit_difference_mean"] == pytest.approx(apart, rel=1e-3)
    for row in models.values():
        assert 0 < row["tokenise_p50_ms"] < row["p50_ms"] <= row["p95_ms"]
        assert 20e6 < row["peak_bytes"] < 400e6  # torch alone would take as much
    assert any("int8 takes the student to" in note for note in report["notes"])
    assert any("--teacher FOLDER" in note for note in report["notes"])
    card = (folder / "README.md").read_text()
    assert all(f"{row['p50_ms']:.2f}" in card for row in models.values())


def test_a_person_reads_a_table_and_what_it_says(
    shipped: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, report = shipped
    row = {**report["models"]["int8"], "bytes": 1, "accuracy": 1.0}
    models = {**report["models"], "teacher_fp32": row, "teacher_int8": row}
    print_report({**report, "models": models})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) < 200
    table = out.partition("as torch\n")[2].splitlines()
    assert [line.strip().partition("  ")[0] for line in table[1:5]] == list(ROWS.values())
    assert "tokenisation included" in out
    assert f'python {folder}/infer.py "a text" "its pair" --pair' in out


def test_a_graph_that_says_something_else_is_not_written(
    small: Path, student: Path, tmp_path: Path
) -> None:
    (tmp_path / "texts").mkdir()
    source = load_source(student, None, {}, scratch=tmp_path / "texts", progress=Lines())
    assert difference(source, small)["relative"] > MOST  # int8 is no float32
    with pytest.raises(ModelError, match=r"as ONNX says something else .* serve it with transf"):
        require_faithful(source, small)


def test_what_goes_wrong_leaves_nothing_behind(
    classifier: Path, causal_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    unlabelled = write_csv(tmp_path / "texts.csv", [("a text",)], ("text",))
    calls: list[tuple[Any, dict[str, Any], type[KdcacheError], str]] = [
        (causal_lm, {}, ConfigError, "for causal-lm, and ship writes classifiers and regressors"),
        (classifier, {"measure": unlabelled}, CorpusError, "no labels to score against"),
        (classifier, {"teacher": classifier}, ConfigError, "--measure FILE"),
        (classifier, {"max_length": 500}, ModelError, "takes 128 tokens, not 500"),
        (tmp_path, {}, ModelError, "no config.json"),
    ]
    before = sorted(os.listdir(tmp_path))
    for model, options, error, message in calls:
        with pytest.raises(error, match=message):
            ship(model, tmp_path / "new" / "out", progress=False, **options)
        assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(ConfigError, match="is not an empty folder; choose another"):
        ship(classifier, tmp_path, progress=False)


def test_the_folder_a_person_is_in_is_not_replaced(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path):
        with pytest.raises(ConfigError, match="the folder you are in"):
            ship(student, out)


def test_without_the_extra_the_error_names_it(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kdcache\[onnx\]'"):
        ship(classifier, tmp_path / "out")


ROW = {"bytes": 10, "p50_ms": 2.0, "accuracy": 0.9}


@pytest.mark.parametrize(
    ("teacher", "shipped", "says"),
    [
        ({"bytes": 3, "p50_ms": 1.0, "accuracy": 0.9}, "int8", "distilling was not worth it here"),
        ({"bytes": 9, "p50_ms": 2.0, "accuracy": 0.9}, "fp32", "ship the student with --int8"),
        ({"bytes": 9, "p50_ms": 2.0, "accuracy": 0.9}, "int8", "would beat this student in fp32"),
        ({"bytes": 3, "p50_ms": 9.0, "accuracy": 0.9}, "int8", None),
        ({"bytes": 3, "p50_ms": 1.0, "accuracy": 0.8}, "int8", None),
    ],
)
def test_the_verdict_weighs_bytes_latency_and_score(
    teacher: dict[str, Any], shipped: str, says: str | None
) -> None:
    models = {"fp32": ROW, "int8": {**ROW, "bytes": 3, "p50_ms": 1.0}}
    models |= {"teacher_fp32": {**ROW, "bytes": 20}, "teacher_int8": teacher}
    found = notes(models, "accuracy", shipped)[2:]
    assert (found == []) if says is None else (says in found[0])


def roberta(vocab: int) -> transformers.PreTrainedModel:
    config = transformers.RobertaConfig(
        vocab_size=vocab, **{**SIZES, "max_position_embeddings": 130}, type_vocab_size=2
    )
    return transformers.RobertaForSequenceClassification(config)


def distilbert(vocab: int) -> transformers.PreTrainedModel:
    config = transformers.DistilBertConfig(
        vocab_size=vocab, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128
    )
    return transformers.DistilBertForSequenceClassification(config)


def electra(vocab: int) -> transformers.PreTrainedModel:
    config = transformers.ElectraConfig(vocab_size=vocab, embedding_size=16, **SIZES)
    return transformers.ElectraForSequenceClassification(config)


def modernbert(vocab: int) -> transformers.PreTrainedModel:
    config = transformers.ModernBertConfig(
        vocab_size=vocab,
        **SIZES,
        local_attention=16,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )
    return transformers.ModernBertForSequenceClassification(config)


def told_apart(model: transformers.PreTrainedModel, tokenizer: Path, folder: Path) -> Path:
    """Save a model whose weights are moved about, so that its logits tell texts apart."""
    torch.manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return save_teacher(folder, tokenizer, model)


@pytest.mark.slow
@pytest.mark.parametrize("make", [roberta, distilbert, electra, modernbert])
def test_families_say_in_onnx_what_they_say_in_torch(
    make: Any, tokenizer: Path, pairs: list[tuple[str, str]], tmp_path: Path, capfd: Any
) -> None:
    model, out = told_apart(make(600), tokenizer, tmp_path / "model"), tmp_path / "out"
    capfd.readouterr()
    report = ship(model, out)
    assert capfd.readouterr() == ("", "")
    assert (report["texts"], report["notes"]) == (None, [])
    assert report["fidelity"]["relative"] < 2e-5
    assert report["max_length"] == 128
    columns = list(map(list, zip(*pairs, strict=True)))
    predicted = Model(out).logits(*columns, batch_size=5)
    np.testing.assert_allclose(predicted, by_torch(model, pairs, 128), atol=1e-4)
    assert np.ptp(predicted[:, 0]) > 1e-2
    full = (out / "model.onnx").rename(tmp_path / "full.onnx")
    quantise(full, out / "model.onnx")
    assert np.abs(Model(out).logits(*columns) - predicted).mean() < 0.2 * np.abs(predicted).mean()


@pytest.mark.slow
def test_a_regressor_ships_beside_its_teacher(
    tokenizer: Path, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    config = transformers.BertConfig(vocab_size=600, **SIZES, num_labels=1)
    made = transformers.BertForSequenceClassification(config)
    model = told_apart(made, tokenizer, tmp_path / "model")
    rows = [(*pair, number / 7) for number, pair in enumerate(pairs)]
    file = write_csv(tmp_path / "dev.csv", rows, ("text1", "text2", "score"))
    given: dict[str, Any] = {"measure": file, "teacher": model, "progress": False}
    report = ship(model, tmp_path / "out", int8=True, **given)
    models = report["models"]
    assert list(models) == ["fp32", "int8", "teacher_fp32", "teacher_int8"]
    for figure in ("bytes", "pearson", "mse"):  # the teacher is the student here
        assert models["int8"][figure] == models["teacher_int8"][figure]
    assert report["bytes"] == models["int8"]["bytes"] < models["fp32"]["bytes"]
    assert "agreement" not in models["int8"]
    predicted = Model(tmp_path / "out").predict([pairs[0][0]], [pairs[0][1]])
    assert predicted[0]["value"] == pytest.approx(by_torch(model, pairs[:1], 128)[0, 0], abs=0.3)
