"""Corpora of every format are read as written, and what cannot be read is named to the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.corpus import Document, open_corpus
from kdcache.errors import ConfigError, CorpusError, KdcacheError

ROWS = [
    ("plain", "a"),
    ('with "quotes", commas', "b"),
    ("two\nlines", "a"),
    ("ümläut 漢字 🎉", "c"),
]


def texts(source: Any, **options: Any) -> list[str]:
    return [document.text for document in open_corpus(source, **options)]


def read(source: Any, **options: Any) -> list[tuple[str, Any]]:
    return [(document.text, document.label) for document in open_corpus(source, **options)]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_csv_keeps_quotes_commas_and_newlines_inside_fields(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{label}' for text, label in ROWS]
    path.write_text("text,label\r\n" + "\r\n".join(quoted), encoding="utf-8", newline="")
    assert read(path) == ROWS


def test_lines_are_counted_across_newlines_inside_fields(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text('text,label\n"one\ntwo\nthree",a\n\nfour,b\n')
    assert [document.where for document in open_corpus(path)] == [f"{path}:2", f"{path}:6"]


def test_tsv_takes_bare_quotation_marks_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('sentence\tlabel\nsaid "no\t0\n"open\t1\n', encoding="utf-8-sig")
    assert read(path) == [('said "no', "0"), ('"open', "1")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, suffix: str) -> None:
    content = {".csv": "text\nhello\n", ".jsonl": '{"text": "hello"}\n', ".txt": "hello\n"}
    path = tmp_path / f"b{suffix}"
    path.write_text(content[suffix], encoding="utf-8-sig")
    assert texts(path) == ["hello"]


def test_jsonl_keeps_types_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"text": "x", "label": 2}\n\n  \n{"text": "y", "label": null}\n')
    assert read(path) == [("x", 2), ("y", None)]
    assert [document.where for document in open_corpus(path)] == [f"{path}:1", f"{path}:4"]


def test_parquet_is_read_in_order_beyond_one_batch(tmp_path: Path) -> None:
    many = [f"text {i}" for i in range(5000)]
    path = parquet(tmp_path / "p.parquet", text=many, label=[i % 7 for i in range(5000)])
    assert read(path) == [(text, i % 7) for i, text in enumerate(many)]


def test_plain_text_gives_a_document_a_line_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\n\n  two  \nthree", encoding="utf-8")
    assert texts(path) == ["one", "two", "three"]
    assert texts(path, unit="file") == ["one\n\n  two  \nthree"]


def test_files_without_text_hold_no_documents_but_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n")
    (tmp_path / "b.txt").write_text("b")
    assert texts(tmp_path) == texts(tmp_path, unit="file") == ["b"]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of several formats, one of them in a folder below."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("from txt")
    jsonl(tmp_path / "b.jsonl", [{"text": "from jsonl"}])
    (tmp_path / "sub" / "c.CSV").write_text("text\nfrom csv\n")
    (tmp_path / "README.md").write_text("no corpus")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_its_paths(many: Path) -> None:
    assert texts(many) == ["from txt", "from jsonl", "from csv"]
    assert texts(str(many)) == texts(many)


def test_a_glob_and_a_list_are_read_alike(many: Path) -> None:
    assert texts(f"{many}/*.[tj]*") == ["from txt", "from jsonl"]
    assert texts(f"{many}/**/*.CSV") == ["from csv"]
    assert texts([many / "sub", f"{many}/*.txt"]) == ["from csv", "from txt"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "part[1].txt"
    path.write_text("x")
    assert texts(path) == ["x"]


def test_a_dataset_is_read_from_memory_and_from_its_folder(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]})
    made.save_to_disk(tmp_path / "saved")
    assert read(made) == read(tmp_path / "saved") == [("x", 1), ("y", 0)]
    assert [document.where for document in open_corpus(made)] == ["dataset row 0", "dataset row 1"]


def test_limit_takes_the_first_documents(many: Path) -> None:
    assert texts(many, limit=2) == ["from txt", "from jsonl"]
    assert len(texts(many, limit=99)) == 3


def test_a_corpus_can_be_read_twice(many: Path) -> None:
    corpus = open_corpus(many)
    assert list(corpus) == list(corpus)


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (["id", "Sentence", "label"], ("Sentence",), "label"),
        (["premise", "hypothesis", "label"], ("premise", "hypothesis"), "label"),
        (["sentence2", "sentence1", "score"], ("sentence1", "sentence2"), "score"),
        (["question", "sentence", "Label"], ("question", "sentence"), "Label"),
        (["text", "category", "extra"], ("text",), "category"),
        (["anything"], ("anything",), None),
        (["text", "id"], ("text",), None),
    ],
)
def test_columns_are_guessed(
    tmp_path: Path, columns: list[str], text: tuple[str, ...], label: str | None
) -> None:
    corpus = open_corpus(jsonl(tmp_path / "g.jsonl", [dict.fromkeys(columns, "x")]))
    assert (corpus.text_columns, corpus.label_column) == (text, label)


def test_named_columns_win_over_guesses(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "n.jsonl", [{"text": "t", "other": "o", "label": 1, "y": 2}])
    chosen = open_corpus(path, text_columns=["other", "text"], label_column="y")
    assert list(chosen) == [Document("o", "t", 2, f"{path}:1")]
    assert read(path, text_columns="other", label_column="") == [("o", None)]


BAD_FILES = {
    "empty.csv": (b"", "empty.csv holds no documents"),
    "header.csv": (b"text,label\n", "holds no documents"),
    "blank.txt": (b"\n \n", "holds no documents"),
    "short.csv": (b"text,label\na,1\nb\n", r"short\.csv:3: malformed: expected 2 columns, found 1"),
    "long.tsv": (b"text\tlabel\na\t1\t2\n", r"long\.tsv:2: malformed: expected 2 .* found 3"),
    "open.csv": (b'text\nfine\n"never closed\nmore\n', r"open\.csv:3: malformed: unexpected end"),
    "twice.csv": (b"text,text\na,b\n", r"twice\.csv:1: two columns are called 'text'"),
    "bad.jsonl": (b'{"text": "a"}\n{"text": }\n', r"bad\.jsonl:2: malformed: not JSON"),
    "list.jsonl": (b'{"text": "a"}\n["a"]\n', r"list\.jsonl:2: .* expected an object, found list"),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 10**5, r"deep\.jsonl:2: malformed: not JSON"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', r"half\.jsonl:1: column 'text' is no text: surrog"),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}\n', r"null\.jsonl:2: .* text; got NoneType"),
    "gone.jsonl": (
        b'{"text": "a"}\n{"txt": "b"}\n',
        r"gone\.jsonl:2: no column 'text'; it has txt",
    ),
    "latin.csv": (b"text\n" + b"fine\n" * 5 + b"caf\xe9\n", r"latin\.csv:7: not UTF-8 .*convert"),
    "latin.txt": (b"fine\n" * 9000 + b"\xff\n", r"latin\.txt:9001: not UTF-8"),
    "utf16.txt": ("hello".encode("utf-16"), r"utf16\.txt:1: not UTF-8"),
    "broken.parquet": (b"PAR1 and nothing else", r"broken\.parquet: malformed: not a readable"),
    "sheet.xlsx": (b"PK", r"sheet\.xlsx: cannot read \.xlsx; a corpus is one of \.csv, \.tsv"),
    "noname": (b"text", "cannot read a file without a suffix"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_to_the_line(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        list(open_corpus(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_truncated_parquet_file_is_malformed(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", text=[f"text {i}" for i in range(999)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"p\.parquet: malformed"):
        list(open_corpus(path))


def test_text_that_is_no_text_is_named_to_the_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", text=[b"bytes"])
    with pytest.raises(CorpusError, match=r"p\.parquet:row 0: column 'text' .* got bytes"):
        list(open_corpus(path))
    with pytest.raises(CorpusError, match=r"dataset row 1: .* got NoneType"):
        list(open_corpus(datasets.Dataset.from_dict({"text": ["x", None]})))


def test_a_file_the_system_cannot_read_is_named(tmp_path: Path) -> None:
    unreadable = Path("/proc/self/mem")  # open succeeds, reading fails, for root too
    if not unreadable.exists():
        pytest.skip("this system has no /proc")
    (tmp_path / "x.txt").symlink_to(unreadable)
    with pytest.raises(CorpusError, match=r"x\.txt: cannot be read: "):
        open_corpus(tmp_path / "x.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.csv", "no such corpus: .*nothing.csv"),
        ("*.csv", "no such corpus: "),
        ("", "holds no corpus files"),
        ([], "an empty list holds no documents"),
        (["a.txt", "nothing.txt"], "no such corpus: .*nothing.txt"),
        (5, "a corpus is a path or a datasets.Dataset; got int"),
    ],
)
def test_nothing_to_read_is_an_error(tmp_path: Path, source: Any, message: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    if isinstance(source, str):
        source = tmp_path / source if source else tmp_path / "empty"
    elif isinstance(source, list):
        source = [tmp_path / item for item in source]
    with pytest.raises(CorpusError, match=message):
        open_corpus(source)


def test_a_dataset_with_splits_asks_for_one_of_them(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"text": ["x"]})
    both = datasets.DatasetDict(train=part, test=part)
    both.save_to_disk(tmp_path / "saved")
    for source in (both, tmp_path / "saved"):
        with pytest.raises(CorpusError, match="splits train, test; name one of them"):
            open_corpus(source)
    assert texts(tmp_path / "saved" / "train") == ["x"]


def test_a_damaged_dataset_folder_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(CorpusError, match="saved is not a readable `datasets` dataset"):
        open_corpus(tmp_path / "saved")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ["txt"]}, r"c\.csv:2 has no column 'txt'; its columns are a, b, label"),
        ({"text_columns": ["a"], "label_column": "y"}, "has no column 'y'"),
        ({"text_columns": ["a", "b", "label"]}, "one or two text columns, not 3"),
        ({}, "cannot tell which column holds the text; name it with --text-column"),
        ({"text_columns": ["a"], "limit": 0}, "limit must be 1 or more; got 0"),
        ({"text_columns": ["a"], "unit": "lines"}, "unknown unit 'lines'; did you mean 'line'"),
    ],
)
def test_options_that_cannot_work_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.csv"
    path.write_text("a,b,label\n1,2,3\n")
    with pytest.raises(ConfigError, match=message):
        open_corpus(path, **options)


def test_a_later_file_without_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "b.csv").write_text("txt,label\ny,1\n")
    with pytest.raises(KdcacheError, match=r"b\.csv:2: no column 'text'; it has txt, label"):
        list(open_corpus(tmp_path))
