"""Compressed files, JSON lists and pandas frames are read as the plain files of the same rows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numcodecs import zstd

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.corpora import json_arrays
from kdcache.corpora.documents import open_corpus
from kdcache.corpora.packed import PACKED
from kdcache.corpora.readers import OPENERS
from kdcache.errors import ConfigError, CorpusError
from kdcache.maintenance.repair import repair
from kdcache.training.train import train
from tests.damage import flip

PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(zstd.compress(data, 3)),
}
ROWS = [{"text": f"text {i}: ümläut 漢字", "label": i % 3} for i in range(3000)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
HALF, REST = slice(1500), slice(1500, None)
PLAIN = {
    ".jsonl": LINES,
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": b"text,label\n" + b"".join(f"{r['text']},{r['label']}\n".encode() for r in ROWS),
    ".tsv": b"text\tlabel\n" + b"".join(f"{r['text']}\t{r['label']}\n".encode() for r in ROWS),
    ".txt": b"".join(f"{r['text']}\n".encode() for r in ROWS),
}


def documents(source: Any) -> list[tuple[str, str]]:
    return [(d.text, str(d.label)) for d in open_corpus(source)]


def test_every_way_to_compress_and_every_kind_of_text_is_tried() -> None:
    assert PACK.keys() == PACKED.keys()
    assert len(PLAIN) == len(OPENERS.keys() - {"parquet", "file", "conll"})


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("kind", PLAIN)
def test_a_compressed_file_is_read_as_what_it_holds(tmp_path: Path, kind: str, suffix: str) -> None:
    (tmp_path / f"plain{kind}").write_bytes(PLAIN[kind])
    packed = tmp_path / f"corpus{kind}{suffix}"
    packed.write_bytes(PACK[suffix](PLAIN[kind][:99]) + PACK[suffix](PLAIN[kind][99:]))
    assert documents(packed) == documents(tmp_path / f"plain{kind}")
    where = [d.where for d in open_corpus(packed)][-1]
    plain = [d.where for d in open_corpus(tmp_path / f"plain{kind}")][-1]
    assert where == plain.replace(f"plain{kind}", packed.name)


def test_a_compressed_text_file_is_one_document_where_files_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert [d.text for d in open_corpus(tmp_path, unit="file")] == ["one\ntwo"]


@pytest.mark.parametrize("suffix", PACKED)
def test_a_damaged_compressed_file_is_named_to_the_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"c.jsonl{suffix}"
    first, second = (PACK[suffix](b"".join(LINES.splitlines(True)[s])) for s in (HALF, REST))
    for data, most in ((first + second[: len(second) // 2], 3000), (LINES, 1)):
        path.write_bytes(data)
        with pytest.raises(CorpusError, match=": damaged, or not compressed as") as caught:
            list(open_corpus(path))
        found = re.fullmatch(
            rf"{re.escape(str(path))}:(\d+): damaged.*; get the file anew", str(caught.value)
        )
        assert found is not None
        assert min(most, 1480) <= int(found[1]) <= most


def test_text_that_is_no_utf8_is_named_to_the_line_of_what_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv.zst"
    path.write_bytes(PACK[".zst"](b"text\n" + b"fine\n" * 5 + b"caf\xe9\n"))
    with pytest.raises(CorpusError, match=r"latin\.csv\.zst:7: not UTF-8 .*convert"):
        list(open_corpus(path))


def test_a_file_and_itself_compressed_are_not_read_both(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    for source in (tmp_path, f"{tmp_path}/*", [tmp_path / "a.jsonl.gz", tmp_path / "a.jsonl"]):
        with pytest.raises(CorpusError, match=r"a\.jsonl and .*a\.jsonl\.gz are one file by their"):
            open_corpus(source)


def test_a_list_is_read_object_by_object_wherever_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": 'a "b" \\ {[,]}', "deep": {"x": [1, {"y": None}]}}, {"text": "ü" * 40}] * 3
    path = tmp_path / "a.json"
    path.write_text(f" \n{json.dumps(rows, indent=2, ensure_ascii=False)}\n ", encoding="utf-8-sig")
    expected = [
        (f"{path}:{line}, object {i}", rows[i - 1])
        for i, line in enumerate((3, 14, 17, 28, 31, 42), 1)
    ]
    for chunk in (1, 2, 7, 64, 1 << 16):
        monkeypatch.setattr(json_arrays, "CHUNK", chunk)
        assert list(json_arrays.array_table(path).rows(None)) == expected
    path.write_text("[]")
    with pytest.raises(CorpusError, match="holds no documents"):
        open_corpus(path)


BAD_LISTS = {
    '{"text": "x"}': r"b\.json:1: malformed: expected \[ a list .*ends in \.jsonl; got '{'",
    "": r"b\.json:1: malformed: expected \[ .* got the end of the file",
    '[{"text": "x"}\n {"text": "y"}]': r"b\.json:2: malformed: expected , or \] after an object",
    '[{"text": "x"},\n]': r"b\.json:2: malformed: object 2 is none",
    '["x"]': r"b\.json:1: malformed: object 1 is none",
    '[{"text": "x"},\n{"text": "y"}': r"b\.json:2: .*expected \]|, or \] .* the end of the file",
    '[{"text": "x"},\n{"text":\n oops}]': r"b\.json:3: malformed: object 2 is not JSON: Expecting",
    '[{"text": "x"},\n{"text": "y': r"b\.json:2: malformed: object 2 is not JSON: Unterminated",
    '[{"text": "x"}]\n[]': r"b\.json:2: malformed: more text behind the list",
    '[{"text": ' + "[" * 10**5: r"b\.json:1: malformed: object 1 is not JSON",
    '[{"text": 3}]': r"b\.json:1, object 1: column 'text' must hold text; got int",
}


@pytest.mark.parametrize("content", BAD_LISTS, ids=lambda content: content[:30])
def test_a_malformed_list_is_named_to_the_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(CorpusError, match=BAD_LISTS[content]) as caught:
        list(open_corpus(tmp_path / "b.json"))
    assert "\n" not in str(caught.value)


def test_what_an_object_of_a_list_may_hold_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_arrays, "MOST", 100)
    monkeypatch.setattr(json_arrays, "CHUNK", 10)
    (tmp_path / "l.json").write_text('[{"text": "' + "x" * 500 + '"}]')
    with pytest.raises(CorpusError, match="object 1 is no JSON, or longer than 100 characters"):
        list(open_corpus(tmp_path / "l.json"))


def test_json_that_is_no_list_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "about.json").write_text('\n {"by": "us"}')
    assert len(documents(tmp_path)) == len(ROWS)
    (tmp_path / "b.json").write_text('[{"text": "x"}]')
    with pytest.raises(CorpusError, match="several kinds"):
        open_corpus(tmp_path)


def test_a_frame_is_read_as_its_rows_whatever_its_index_and_types() -> None:
    frame = pd.DataFrame(ROWS)
    assert documents(frame) == [(row["text"], str(row["label"])) for row in ROWS]
    odd = pd.DataFrame({"text": ["x", "y", "z"], "label": ["a", None, "b"]}, index=[7, 7, -1])
    for made in (odd, odd.convert_dtypes(), odd.astype({"label": "category"})):
        assert [d.label for d in open_corpus(made)] == ["a", None, "b"]
    arrays = pd.DataFrame({"text": ["x", "y"], "label": [np.array(["a", "b"]), None]})
    assert [d.label for d in open_corpus(arrays)] == [["a", "b"], None]
    numbers = pd.DataFrame({"text": ["x", "y"], "label": [1, None]})
    assert [d.label for d in open_corpus(numbers)] == [1.0, None]
    assert [d.where for d in open_corpus(odd)][-1] == "frame row 2"
    with pytest.raises(CorpusError, match="frame row 1: column 'text' must hold text; got None"):
        list(open_corpus(pd.DataFrame({"text": ["x", None]})))


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"text": []}), "DataFrame holds no documents"),
        (pd.DataFrame([["x", 1]]), r"columns of a frame are named by text; got 0: rename it"),
        (pd.DataFrame([["x", "y"]], columns=["text", "text"]), "two columns .* called 'text'"),
        ([pd.DataFrame({"text": ["x"]})], "a list names files; got DataFrame: make one of several"),
    ],
)
def test_a_frame_that_is_no_table_of_texts_is_refused(frame: Any, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        open_corpus(frame)


@pytest.mark.slow
def test_pandas_is_not_imported_where_nobody_has_it() -> None:
    program = "import sys, kdcache.corpora.documents; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_plan_is_that_of_its_documents_however_they_are_kept(
    tmp_path: Path, classifier: Path
) -> None:
    rows = [{"text": f"words of {i}", "label": i % 3} for i in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.zst").write_bytes(PACK[".zst"](lines))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    sources = [*(tmp_path / name for name in ("a.jsonl", "b.jsonl.zst", "c.json"))]
    made = [
        plan(s, tokenizer=classifier, task="text-classification", out=tmp_path / f"{i}.plan")
        for i, s in enumerate([*sources, pd.DataFrame(rows)])
    ]
    assert len({p.sha256 for p in made}) == 1


def test_a_cache_of_a_frame_is_built_repaired_and_trained_on(
    tmp_path: Path, classifier: Path
) -> None:
    frame = pd.DataFrame({"text": [f"words of {i}" for i in range(40)], "label": [0, 1] * 20})
    root = tmp_path / "frame.cache"
    build(frame, teacher=classifier, task="text-classification", out=root)
    before = (root / "tokens/c/0").read_bytes()
    flip(root / "tokens/c/0", 3)
    (left,) = repair(root).left
    assert "--corpus FILE" in left.problem
    assert "in memory has to be written to a file" in left.problem
    assert repair(root, corpus=frame).left == ()
    flip(root / "tokens/c/0", 3)
    (tmp_path / "frame.jsonl.gz").write_bytes(
        gzip.compress(frame.to_json(orient="records", lines=True).encode())
    )
    assert repair(root, corpus=tmp_path / "frame.jsonl.gz").left == ()
    assert (root / "tokens/c/0").read_bytes() == before
    wanted: dict[str, Any] = {"out": tmp_path / "student", "init_from_teacher": "1-2"}
    with pytest.raises(ConfigError, match="the dev file is named by its path, which the run keeps"):
        train(root, dev=frame, **wanted)  # type: ignore[arg-type]  # the claim
    told = train(root, eval_file=frame.head(10), epochs=0.1, **wanted)
    assert told.metrics["evaluation"]["file"] == "DataFrame"
    assert told.metrics["evaluation"]["documents"] == 10
