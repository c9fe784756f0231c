"""Corpora of every format are read as written, and what cannot be read is named to the line."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcache.corpora.documents import PEEK, Document, open_corpus
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
    """A folder of files of one kind, one of them in a folder below, and of one that is none."""
    (tmp_path / "sub").mkdir()
    jsonl(tmp_path / "a.jsonl", [{"text": "from a"}])
    jsonl(tmp_path / "b.ndjson", [{"text": "from b"}])
    jsonl(tmp_path / "sub" / "c.JSONL", [{"text": "from c"}])
    (tmp_path / "README.md").write_text("no corpus")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_its_paths(many: Path) -> None:
    assert texts(many) == ["from a", "from b", "from c"]
    assert texts(str(many)) == texts(many)


def test_a_glob_and_a_list_are_read_alike(many: Path) -> None:
    assert texts(f"{many}/*.[jn]*") == ["from a", "from b"]
    assert texts(f"{many}/**/*.JSONL") == ["from c"]
    assert texts([many / "sub", f"{many}/a*"]) == ["from c", "from a"]
    (many / "README.md").unlink()
    for pattern in ("*", "**"):
        assert sorted(texts(f"{many}/{pattern}")) == texts(many)


def test_what_is_hidden_in_a_folder_is_left_out(many: Path) -> None:
    (many / "README.md").unlink()
    for hidden in (".ipynb_checkpoints/a-checkpoint.jsonl", "sub/.git/x.jsonl", "._a.jsonl"):
        path = many / hidden
        path.parent.mkdir(exist_ok=True)
        jsonl(path, [{"text": "hidden"}])
    assert texts(many) == ["from a", "from b", "from c"]
    for pattern in ("*", "**", "**/*"):
        assert sorted(texts(f"{many}/{pattern}")) == texts(many)
    assert texts(many / ".ipynb_checkpoints") == texts(f"{many}/.ipynb*/*") == ["hidden"]


@pytest.mark.parametrize("pattern", ["", "*", "**"])
def test_files_of_several_kinds_are_named(many: Path, pattern: str) -> None:
    (many / "README.md").unlink()
    (many / "README.txt").write_text("about the corpus")
    with pytest.raises(CorpusError, match=r"several kinds, such as \S+README.txt and \S+a\.jsonl"):
        open_corpus(f"{many}/{pattern}")
    assert texts([many / "README.txt", many / "a.jsonl"]) == ["about the corpus", "from a"]


def test_a_compressed_file_in_a_folder_is_not_passed_over(many: Path) -> None:
    (many / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "from d"}\n'))
    assert texts(many) == ["from a", "from b", "from d", "from c"]
    (many / "e.jsonl.zip").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"e\.jsonl\.zip is compressed: unpack it"):
        open_corpus(many)


def test_a_file_named_twice_is_refused(many: Path) -> None:
    with pytest.raises(CorpusError, match=r"a\.jsonl is in the corpus 2 times: name it once"):
        open_corpus([many, many / "sub" / ".." / "a.jsonl"])


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
    assert texts(many, limit=2) == ["from a", "from b"]
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
    "utf16.txt": ("hello".encode("utf-16"), r"utf16\.txt:1: not UTF-8 but UTF-16: convert"),
    "utf16.csv": ("text\nx".encode("utf-16"), r"utf16\.csv:1: not UTF-8 but UTF-16: convert"),
    "gzip.jsonl": (
        gzip.compress(b'{"text": "a"}\n'),
        r"not UTF-8 but compressed with gzip: add .gz to its name",
    ),
    "bzip2.csv": (bz2.compress(b"text\na\n"), "not UTF-8 but compressed with bzip2: add .bz2"),
    "xz.txt": (lzma.compress(b"a\n"), "not UTF-8 but compressed with xz: add .xz"),
    "semicolon.csv": (b"text;label\na;1\n", r"csv:1: the only .* 'text;label': .* by semicolons"),
    "tab.csv": (b"text\tlabel\na\t1\n", r"tab\.csv:1: .* by commas, this one seems to by tabs"),
    "bar.csv": (b"text|label\na|1\n", r"bar\.csv:1: .* by bars: save it with commas"),
    "comma.tsv": (b"text,label\na,1\n", r"comma\.tsv:1: .* seems to by commas: save it with tabs"),
    "packed.jsonl.zip": (b"", r"cannot read \.zip; .*unpack it first"),
    "packed.parquet.gz": (b"", r"cannot read \.gz; .* but Parquet compressed to .*unpack it first"),
    "packed.gz": (b"", r"cannot read \.gz; a corpus is one of \.csv, \.tsv"),
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
        (b"", "named by a path; got an empty one"),
        ([], "an empty list holds no documents"),
        (["a.txt", "nothing.txt"], "no such corpus: .*nothing.txt"),
        (5, "a corpus is a path, a pandas.DataFrame, a .*; got int"),
    ],
)
def test_nothing_to_read_is_an_error(tmp_path: Path, source: Any, message: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "empty").mkdir()
    if isinstance(source, bytes):
        source = source.decode()
    elif isinstance(source, str):
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


def test_files_whose_columns_differ_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,1\n")
    (tmp_path / "b.csv").write_text("label,more,text\n1,-,y\n")
    with pytest.raises(
        CorpusError, match=r"b.csv has the columns label, more, text; \S+a.csv has te"
    ):
        open_corpus(tmp_path)
    assert read(tmp_path, ignore_columns=["more"]) == [("x", "1"), ("y", "1")]
    assert read(tmp_path, text_columns="text", label_column="") == [("x", None), ("y", None)]
    (tmp_path / "b.csv").write_text("")
    assert read(tmp_path) == [("x", "1")]
    (tmp_path / "b.csv").write_text("txt,label\ny,1\n")
    with pytest.raises(KdcacheError, match=r"b\.csv:2: no column 'text'; it has label"):
        list(open_corpus(tmp_path, text_columns="text", label_column="label"))


def test_files_of_several_suffixes_that_differ_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.csv").write_text("text,label\ny,1\n")
    with pytest.raises(CorpusError, match=r"b.csv has the columns text, label; \S+a.txt has text:"):
        open_corpus([tmp_path / "a.txt", tmp_path / "b.csv"])


LATE = [{"text": "x"}] * PEEK


@pytest.mark.parametrize("column", ["label", "Score", "sentence", "text_pair", "hypothesis"])
def test_a_column_that_counts_is_never_too_late(tmp_path: Path, column: str) -> None:
    path = jsonl(tmp_path / "l.jsonl", [*LATE, {"text": "y", column: "z"}])
    with pytest.raises(
        CorpusError, match=rf"l\.jsonl:1001: column '{column}' comes up here, after"
    ):
        list(open_corpus(path))
    assert len(texts(path, ignore_columns=[column])) == PEEK + 1
    assert len(texts(path, text_columns=["text"], label_column="")) == PEEK + 1


def test_a_late_column_that_does_not_count_is_noted(tmp_path: Path) -> None:
    corpus = open_corpus(jsonl(tmp_path / "l.jsonl", [*LATE, {"text": "y", "id": 1}]))
    assert len(list(corpus)) == PEEK + 1
    assert (corpus.unused, list(corpus.late)) == ((), ["id"])


def test_the_first_row_decides_nothing_by_itself(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "l.jsonl", [{"text": "x"}, {"text": "y", "label": 1}])
    with pytest.raises(
        CorpusError, match=r"l\.jsonl:1: no column 'label'; it has text; write null"
    ):
        list(open_corpus(path))
    jsonl(path, [{"text": "x", "label": None}, {"text": "y", "label": 1}])
    assert read(path) == [("x", None), ("y", 1)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text, label", "column ' label' has blanks around its name"),
        ("text ,label", "column 'text ' has blanks"),
        ("text,label\u200b", r"column 'label\\u200b' has .* characters that do not print"),
        ("\ufefftext,label", r"column '\\ufefftext' has"),
    ],
)
def test_an_odd_header_is_refused(tmp_path: Path, header: str, message: str) -> None:
    for path in (tmp_path / "o.csv", tmp_path / "o.jsonl"):
        row = dict.fromkeys(header.split(","), "x")
        text = f"{header}\nx,x\n" if path.suffix == ".csv" else json.dumps(row) + "\n"
        path.write_text(text, encoding="utf-8-sig")
        with pytest.raises(ConfigError, match=message):
            open_corpus(path)


def test_a_file_without_a_header_is_no_column_of_text(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text("this is the first of many documents\nand a second\n")
    with pytest.raises(ConfigError, match=r"cannot tell which .* a table's first line must name"):
        open_corpus(path)


PAIRS = [
    *[("query", other) for other in ("passage", "document", "positive", "text")],
    *[("question", other) for other in ("context", "answer", "passage", "sentence")],
    *[("premise", "hypothesis"), ("text", "text_pair"), ("text1", "text2"), ("text_a", "text_b")],
    *[("sentence1", "sentence2"), ("sentence_A", "sentence_B"), ("question1", "question2")],
    *[("s1", "s2"), ("claim", "evidence"), ("context", "response"), ("anchor", "positive")],
]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_both_halves_of_a_pair_are_read(tmp_path: Path, pair: tuple[str, str]) -> None:
    row = {"id": 1, pair[1]: "second", "label": 0, pair[0]: "first"}
    corpus = open_corpus(jsonl(tmp_path / "p.jsonl", [row]))
    assert next(iter(corpus))[:3] == ("first", "second", 0)
    assert corpus.unused == ("id",)


LEFT: list[tuple[dict[str, Any], str]] = [
    ({"question": "q", "context": "c", "answer": "a"}, "'answer' makes a pair with question and"),
    ({"query": "q", "passage": "p", "positive": "r"}, "'positive' makes a pair with query and"),
    ({"text": "t", "title": "of three words"}, r"'title' holds text, too \(3 words a value\)"),
    ({"sentence": "t", "translation": "a b c d e"}, "'translation' holds text, too"),
    ({"text": "t", "note": ["list"], "more": "one two three"}, "'more' holds text"),
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "dataset"])
@pytest.mark.parametrize(("row", "message"), LEFT, ids=lambda value: str(value)[:20])
def test_half_the_input_is_never_dropped(
    tmp_path: Path, row: dict[str, Any], message: str, kind: str
) -> None:
    source = written(tmp_path, [row, dict.fromkeys(row, "") | {"note": []}], kind, list(row))
    column = message.split("'")[1]
    with pytest.raises(ConfigError, match=f"{message}.*--text-column.*--ignore-columns {column}"):
        open_corpus(source)
    rest = tuple(name for name in row if name in ("note",))
    assert open_corpus(source, ignore_columns=[column]).unused == rest
    chosen = open_corpus(source, text_columns=list(row)[:1])
    assert chosen.unused == tuple(row)[1:]


def test_a_list_of_second_texts_is_not_dropped_but_one_beside_a_pair_is(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "l.jsonl", [{"query": "q", "passages": {"passage_text": ["p", "r"]}}])
    message = r"'passages' holds what makes pairs with query: .*--text-column"
    with pytest.raises(ConfigError, match=message):
        open_corpus(path)
    assert texts(path, ignore_columns=["passages"]) == ["q"]
    row = {"id": "a", "title": "t", "context": "c", "question": "q", "answers": {"text": ["c"]}}
    squad = open_corpus(jsonl(path, [row]))
    assert (squad.text_columns, squad.unused) == (
        ("question", "context"),
        ("id", "title", "answers"),
    )


def written(folder: Path, rows: list[dict[str, Any]], kind: str, columns: list[str]) -> Any:
    """The rows as a file or data set of some kind."""
    rows = [{column: row[column] for column in columns} for row in rows]
    path = folder / f"w.{kind}"
    if kind == "jsonl":
        return jsonl(path, rows)
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        return path
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, path)
        return path
    return datasets.Dataset(table)


def test_labels_that_a_task_does_not_use_are_columns_like_others(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"text": "x", "target": "an answer of many words"}])
    assert open_corpus(path).label_column == "target"
    with pytest.raises(ConfigError, match="'target' holds text, too"):
        open_corpus(path, labelled=False)
    path = jsonl(tmp_path / "t.jsonl", [{"text": "x", "label": 1}, {"text": "y"}])
    assert open_corpus(path, labelled=False).unused == ("label",)
    assert texts(path, labelled=False) == ["x", "y"]
    late = open_corpus(jsonl(path, [*LATE, {"text": "y", "score": 1}]), labelled=False)
    assert len(list(late)) == PEEK + 1
    assert list(late.late) == ["score"]


def test_all_columns_of_text_that_would_be_left_are_named_at_once(tmp_path: Path) -> None:
    row = {"text": "x", "instruction": "write me one", "id": 1, "output": "here it is"}
    path = jsonl(tmp_path / "t.jsonl", [row])
    with pytest.raises(ConfigError, match=r"'instruction' .*--ignore-columns instruction,output$"):
        open_corpus(path)
    assert texts(path, ignore_columns=["instruction", "output"]) == ["x"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_columns": ["text", "text"]}, "column 'text' is named twice"),
        ({"text_columns": ["text"], "label_column": "text"}, "column 'text' is named twice"),
        ({"ignore_columns": ["text"]}, "cannot tell which column holds the text"),
    ],
)
def test_a_column_is_one_text_or_the_labels(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "c.csv").write_text("text,label\na,1\n")
    with pytest.raises(ConfigError, match=message):
        open_corpus(tmp_path / "c.csv", **options)


def test_a_pattern_passes_over_what_is_no_corpus_as_a_folder_does(tmp_path: Path) -> None:
    for name, text in (("a.txt", "x"), ("b.txt", "y"), ("README.md", "-"), ("_SUCCESS", "")):
        (tmp_path / name).write_text(text)
    assert texts(tmp_path) == texts(str(tmp_path / "*")) == ["x", "y"]
    with pytest.raises(CorpusError, match=r"cannot read \.md; a corpus is one of"):
        open_corpus(str(tmp_path / "*.md"))
    (tmp_path / "c.txt.zip").write_bytes(b"")
    for source in (tmp_path, tmp_path / "*"):
        with pytest.raises(CorpusError, match=r"c\.txt\.zip is compressed: unpack it"):
            open_corpus(str(source))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_columns": ["nothing"]}, "has no column 'nothing'; its columns are text, label"),
        ({"ignore_columns": ["text"], "text_columns": "text"}, "'text' is named and to be ignored"),
        ({"ignore_columns": ["label"], "label_column": "label"}, "'label' is named and to be ign"),
    ],
)
def test_columns_that_cannot_be_ignored_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text,label\na,1\n")
    with pytest.raises(ConfigError, match=message):
        open_corpus(path, **options)
    assert read(path, ignore_columns="label") == [("a", None)]


def test_parquet_reads_the_wanted_columns_only(tmp_path: Path) -> None:
    """The pages of another column may be anything: they are not looked at."""
    path = tmp_path / "p.parquet"
    values = [[float(i)] * 64 for i in range(300)]
    table = pa.table({"text": ["x"] * 300, "embedding": values, "label": [1] * 300})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    assert column.path_in_schema.startswith("embedding")
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"?" * column.total_compressed_size
    path.write_bytes(content)
    corpus = open_corpus(path)
    assert [document.label for document in corpus] == [1] * 300
    assert corpus.unused == ("embedding",)


CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
)


@pytest.mark.parametrize("kind", ["memory", "folder", "stream", "parquet"])
def test_the_names_of_classes_come_along(tmp_path: Path, kind: str) -> None:
    made = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=CLASSES)
    source: Any = {"memory": made, "stream": made.to_iterable_dataset()}.get(kind, tmp_path / "s")
    if kind == "folder":
        made.save_to_disk(source)
    if kind == "parquet":
        source = tmp_path / "s.parquet"
        made.to_parquet(source)
    corpus = open_corpus(source)
    assert corpus.class_names == ("no", "yes")
    assert [document.label for document in corpus] == [1, 0]
    assert open_corpus(source, label_column="").class_names is None


def test_files_that_name_their_classes_differently_are_refused(tmp_path: Path) -> None:
    other = datasets.ClassLabel(names=["yes", "no"])
    for name, classes in (("a", CLASSES["label"]), ("b", other)):
        features = datasets.Features({"text": datasets.Value("string"), "label": classes})
        made = datasets.Dataset.from_dict({"text": ["x"], "label": [1]}, features=features)
        made.to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(CorpusError, match="other names for the numbers in column 'label': no, yes"):
        open_corpus(tmp_path)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_dataset_of_arrays_is_read_as_plain_values(kind: str) -> None:
    made = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}).with_format(kind)
    assert read(made) == [("x", 1), ("y", 0)]
