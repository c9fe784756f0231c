"""A plan holds every document once, as its tokenizer gives it, and is the same every time."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from kdcache.building.planner import plan
from kdcache.corpora.standard_library import Docstring, prose
from kdcache.errors import ConfigError, CorpusError, MismatchError, ModelError
from kdcache.models import load_tokenizer
from kdcache.plans import Plan
from kdcache.plans.batch import collate
from kdcache.store import open_plan
from kdcache.tasks.masking import mask
from tests.conftest import Lines, write_csv

Doc = tuple[int, ...]


def auto(tokenizer: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tokenizer)


def tokens_of(made: Plan) -> list[Doc]:
    """Tokens of every document, in the plan's order."""
    starts, counts = made.spans(made.docs, "token")
    column = made.columns["tokens"]
    return [tuple(column[a : a + n].tolist()) for a, n in zip(starts, counts, strict=True)]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def windows(ids: list[int], size: int) -> list[Doc]:
    """[CLS] and [SEP] around runs of `size` - 2 tokens."""
    inner = size - 2
    return [(2, *ids[i : i + inner], 3) for i in range(0, max(1, len(ids)), inner)]


def test_documents_are_there_once_with_the_tokenizers_tokens(
    tmp_path: Path, corpus: Path, sentences: list[Docstring], tokenizer: Path
) -> None:
    task, size = "text-classification", 24
    made = plan(
        corpus, tokenizer=tokenizer, task=task, out=tmp_path / "p", max_length=size, part_tokens=512
    )
    encoded = auto(tokenizer)([s.text for s in sentences], truncation=True, max_length=size)
    ids = made.per_document["doc_id"][made.docs]
    assert sorted(ids) == list(range(len(sentences)))
    assert list(ids) != sorted(ids)
    assert tokens_of(made) == [tuple(encoded["input_ids"][i]) for i in ids]
    names = sorted({s.package for s in sentences})
    assert made.config.classes == names
    assert made.per_document["label"][made.docs].tolist() == [
        names.index(sentences[i].package) for i in ids
    ]
    whole = auto(tokenizer)([s.text for s in sentences])["input_ids"]
    assert made.config.corpus["truncated"] == sum(len(t) > size for t in whole) > 0
    assert (made.documents, made.tokens) == (len(sentences), sum(map(len, encoded["input_ids"])))


@pytest.mark.parametrize("task", ["masked-lm", "causal-lm"])
def test_windows_cover_long_documents(
    tmp_path: Path, prose_file: Path, tokenizer: Path, task: Any
) -> None:
    made = plan(
        prose_file, tokenizer=tokenizer, task=task, out=tmp_path / "p", max_length=20, views=2
    )
    found: dict[int, Counter[Doc]] = {}
    views = 2 if task == "masked-lm" else 1
    for doc, ids in zip(made.docs, tokens_of(made), strict=True):
        whole = np.array(ids)
        if task == "masked-lm":
            positions, labels = masked_of(made, doc)
            whole[positions] = labels
        number = int(made.per_document["doc_id"][doc])
        found.setdefault(number, Counter())[tuple(whole.tolist())] += 1
    lines = prose_file.read_text().splitlines()
    plain = auto(tokenizer)(lines, add_special_tokens=False)["input_ids"]
    for number, ids in enumerate(plain):
        assert found[number] == Counter(windows(ids, 20) * views)
    assert made.config.corpus["truncated"] == 0
    assert made.documents > len(lines) * views


def masked_of(made: Plan, doc: int) -> tuple[Any, Any]:
    """Masked positions and their tokens, read from the raw arrays."""
    start, count = made.per_document["masked_start"][doc], made.per_document["masked_len"][doc]
    rows = slice(int(start), int(start + count))
    return made.columns["masked_position"][rows], made.columns["masked_label"][rows]


def test_masks_leave_special_tokens_alone_and_views_differ(
    tmp_path: Path, prose_file: Path, tokenizer: Path
) -> None:
    task, views = "masked-lm", 4
    made = plan(prose_file, tokenizer=tokenizer, task=task, out=tmp_path / "p", views=views)
    special = set(auto(tokenizer).all_special_ids)
    chosen: dict[Doc, set[Doc]] = {}
    for doc, ids in zip(made.docs, tokens_of(made), strict=True):
        positions, labels = masked_of(made, doc)
        assert not special & set(labels.tolist())
        whole = np.array(ids)
        whole[positions] = labels
        maskable = len(ids) - np.isin(whole, list(special)).sum()  # [UNK] is special too
        assert len(positions) == max(1, round(0.15 * maskable))
        chosen.setdefault(tuple(whole.tolist()), set()).add(tuple(positions.tolist()))
    long = [masks for ids, masks in chosen.items() if len(ids) > 40]
    assert len(long) > 20
    assert all(len(masks) == views for masks in long)
    assert Counter(made.per_document["view"][made.docs].tolist()) == dict.fromkeys(
        range(views), made.documents // views
    )


def test_masked_tokens_are_80_10_10() -> None:
    vocab, tokens = 5000, np.arange(100, 4100)
    kinds, total = Counter[str](), 0
    for key in range(40):
        made = mask(
            tokens,
            np.arange(4000) % 2 == 0,
            probability=0.15,
            mask_id=4,
            vocab_size=vocab,
            key=(7, key),
        )
        assert len(made.positions) == 300
        assert (made.positions % 2 == 0).all()
        np.testing.assert_array_equal(made.labels, tokens[made.positions])
        new = made.tokens[made.positions]
        kinds += Counter(mask=int((new == 4).sum()), kept=int((new == made.labels).sum()))
        total += len(new)
        untouched = np.delete(made.tokens, made.positions)
        np.testing.assert_array_equal(untouched, np.delete(tokens, made.positions))
        assert new.min() >= 0
        assert new.max() < vocab
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.015)
    assert kinds["kept"] / total == pytest.approx(0.1, abs=0.012)


@pytest.mark.parametrize("task", ["text-classification", "masked-lm"])
def test_equal_inputs_give_equal_bytes_wherever_they_lie(
    tmp_path: Path, corpus: Path, tokenizer: Path, task: Any
) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(corpus, tmp_path / "elsewhere" / "copy.csv")
    made = [
        plan(source, tokenizer=tokenizer, task=task, out=tmp_path / f"{i}", part_tokens=1024)
        for i, source in enumerate((corpus, copy))
    ]
    assert made[0].sha256 == made[1].sha256
    assert made[0].parts > 2
    assert files_of(tmp_path / "0") == files_of(tmp_path / "1")
    again = open_plan(tmp_path / "0")
    assert again.sha256 == made[0].sha256
    assert repr(again) == repr(made[0])


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"max_length": 32}, {"limit": 200}, {"part_tokens": 4096}]
)
def test_another_setting_is_another_plan_and_is_refused_by_name(
    tmp_path: Path, corpus: Path, tokenizer: Path, change: dict[str, Any]
) -> None:
    given: dict[str, Any] = {"tokenizer": tokenizer, "task": "text-classification"}
    sizes = {"max_length": 48, "part_tokens": 2048}
    first = plan(corpus, **given, out=tmp_path / "p", **sizes)
    other = plan(corpus, **given, out=tmp_path / "q", **{**sizes, **change})
    assert first.sha256 != other.sha256
    if "seed" in change:
        order = [p.per_document["doc_id"][p.docs].tolist() for p in (first, other)]
        assert order[0] != order[1]
        assert sorted(order[0]) == sorted(order[1])
    name = next(iter(change))
    with pytest.raises(MismatchError, match="documents" if name == "limit" else name):
        plan(corpus, **given, out=tmp_path / "p", **{**sizes, **change})
    before = files_of(tmp_path / "p")
    plan(corpus, **given, out=tmp_path / "p", **sizes)
    assert files_of(tmp_path / "p") == before


@pytest.mark.parametrize("part_tokens", [128, 256, 1024])
def test_parts_hold_whole_documents_and_waste_little(
    tmp_path: Path, corpus: Path, tokenizer: Path, part_tokens: int
) -> None:
    made = plan(
        corpus,
        tokenizer=tokenizer,
        task="text-classification",
        out=tmp_path / "p",
        max_length=64,
        part_tokens=part_tokens,
        limit=120,
    )
    assert made.rows["token"] <= part_tokens
    assert made.rows["token"] % 128 == made.rows["document"] % 128 == 0
    docs = [made.part_docs(part) for part in range(made.parts)]
    np.testing.assert_array_equal(np.concatenate(docs), made.docs)
    for part, members in enumerate(docs):
        starts, counts = made.spans(members, "token")
        ends = starts + counts
        assert starts[0] == part * made.rows["token"]
        assert ends[-1] <= starts[0] + part_tokens
        np.testing.assert_array_equal(starts[1:], ends[:-1])
    assert made.parts <= -(-made.tokens // (part_tokens - 64))


def test_pairs_have_the_tokenizers_type_ids(
    tmp_path: Path, tokenizer: Path, sentences: list[Docstring]
) -> None:
    rows = [(sentences[i].text, sentences[i + 7].text, i % 2) for i in range(40)]
    path = write_csv(tmp_path / "pairs.csv", rows, ("sentence1", "sentence2", "label"))
    made = plan(
        path, tokenizer=tokenizer, task="text-classification", out=tmp_path / "p", max_length=40
    )
    batch = collate(made, made.docs, {})
    order = made.per_document["doc_id"][made.docs]
    first, second = ([rows[i][side] for i in order] for side in (0, 1))
    wanted = auto(tokenizer)(
        first, second, truncation=True, max_length=40, padding=True, return_tensors="pt"
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[name], wanted[name])
    assert batch["labels"].tolist() == [rows[i][2] for i in order]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_pairs_are_cut_as_the_tokenizer_cuts_them(
    tmp_path: Path, tokenizer: Path, side: str
) -> None:
    own = Path(shutil.copytree(tokenizer, tmp_path / "t"))
    settings = json.loads((own / "tokenizer_config.json").read_text())
    settings["truncation_side"] = side
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    text = " ".join(prose()[:30])
    lengths = [(3000, 3000), (3000, 40), (40, 3000), (120, 3000), (30, 30), (700, 90)]
    rows = [(text[i : i + a], text[-b - i : -i or None], i) for i, (a, b) in enumerate(lengths)]
    path = write_csv(tmp_path / "pairs.csv", rows, ("text_a", "text_b", "label"))
    made = plan(path, tokenizer=own, task="text-classification", out=tmp_path / "p", max_length=32)
    first, second = [row[0] for row in rows], [row[1] for row in rows]
    wanted = auto(own)(first, second, truncation=True, max_length=32)["input_ids"]
    found = dict(zip(made.per_document["doc_id"][made.docs].tolist(), tokens_of(made), strict=True))
    assert [found[i] for i in range(len(rows))] == [tuple(ids) for ids in wanted]
    assert made.config.corpus["truncated"] == 5


def test_large_vocabularies_keep_their_ids(tmp_path: Path) -> None:
    vocab = {f"w{i}": i for i in range(70_000)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="w0").save_pretrained(
        tmp_path / "t"
    )
    (tmp_path / "c.txt").write_text("w69999 w1 w65536\nw65535\n\nw3 w70000")
    found = plan(tmp_path / "c.txt", tokenizer=tmp_path / "t", task="causal-lm", out=tmp_path / "p")
    assert found.columns["tokens"].dtype == np.uint32
    assert sorted(tokens_of(found)) == [(3, 0), (65535,), (69999, 1, 65536)]


def test_documents_without_a_token_are_left_out_and_counted(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "t")
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ["a", "", "a a"]))
    given: dict[str, Any] = {"tokenizer": tmp_path / "t", "task": "causal-lm"}
    found = plan(path, **given, out=tmp_path / "p")
    assert sorted(tokens_of(found)) == [(0,), (0, 0)]
    assert (found.documents, found.config.corpus["documents"]) == (2, 3)
    path.write_text('{"text": ""}\n')
    with pytest.raises(CorpusError, match="no document of the corpus has a token"):
        plan(path, **given, out=tmp_path / "q")


def test_labels_that_a_task_does_not_use_may_be_anything(tmp_path: Path, tokenizer: Path) -> None:
    rows = ['{"text": "of lists", "labels": [0, 1]}', '{"text": "and of none"}']
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    made = plan(tmp_path / "c.jsonl", tokenizer=tokenizer, task="causal-lm", out=tmp_path / "p")
    assert made.documents == 2


def test_a_corpus_with_nothing_to_mask_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(CorpusError, match="has a row to learn from: masked"):
        plan(tmp_path / "c.jsonl", tokenizer=tokenizer, task="masked-lm", out=tmp_path / "p")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "task": ({"task": "mask-lm"}, "unknown task 'mask-lm'; did you mean 'masked-lm'"),
    "length": ({"max_length": 7}, "max_length must be 8 or more; got 7"),
    "part": ({"part_tokens": 1000}, "multiple of 128 .* got 1000"),
    "large part": ({"part_tokens": 16_384 + 128}, "of 1,024 beyond 16,384"),
    "small part": ({"max_length": 256, "part_tokens": 128}, r"from max_length \(256\) to 2,147"),
    "probability": ({"mask_probability": 1.0}, "must lie between 0 and 1; got 1.0"),
    "views": ({"views": 0}, r"views must lie in \[1, 32,767\]; got 0"),
    "seed": ({"seed": -1}, "seed must be 0 or more; got -1"),
    "limit": ({"limit": -1}, "limit must be 1 or more; got -1"),
    "pairs": ({"text_columns": ["text", "label"]}, "masked-lm takes one text column, not text and"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_cannot_work_leave_nothing_behind(
    tmp_path: Path, corpus: Path, tokenizer: Path, case: str
) -> None:
    options, message = BAD[case]
    given = {"task": "masked-lm", **options}
    with pytest.raises(ConfigError, match=message):
        plan(corpus, tokenizer=tokenizer, out=tmp_path / "p", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_line_late_in_the_corpus_leaves_nothing_behind(
    tmp_path: Path, tokenizer: Path
) -> None:
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *[("some text", 1)] * 600, ("alone",)])
    with pytest.raises(CorpusError, match=r"c\.csv:602: malformed"):
        plan(
            tmp_path / "c.csv",
            tokenizer=tokenizer,
            task="text-classification",
            out=tmp_path / "p",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


def test_masked_lm_needs_a_mask_token(tmp_path: Path, prose_file: Path) -> None:
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path / "t")
    with pytest.raises(ModelError, match="has no mask token; masked-lm needs it"):
        plan(prose_file, tokenizer=tmp_path / "t", task="masked-lm", out=tmp_path / "p")


def test_lengths_are_those_of_real_text(tmp_path: Path, tokenizer: Path) -> None:
    """The default plan of unbroken prose: one part, nothing lost to padding but its end."""
    (tmp_path / "c.txt").write_text("\n".join(prose()[:50]), encoding="utf-8")
    made = plan(tmp_path / "c.txt", tokenizer=tokenizer, task="causal-lm", out=tmp_path / "p")
    assert made.parts == 1
    assert made.rows["token"] - made.tokens < 1024


def test_a_long_text_beside_a_short_one_is_cut_as_the_tokenizer_cuts_it(tokenizer: Path) -> None:
    long, short = "alpha beta gamma delta " * 40, "a short second text"
    loaded, plain = load_tokenizer(tokenizer), auto(tokenizer)
    for first, second in ((long, short), (short, long), (long, long), (long, "")):
        encoded = loaded.encode([first], [second], 32, windows=False)
        wanted = plain([first], [second], truncation=True, max_length=32)
        assert encoded.windows[0].ids.tolist() == wanted["input_ids"][0]
        assert encoded.truncated == 1


def test_pairs_of_long_texts_take_no_more_than_their_tokens(tokenizer: Path) -> None:
    long = "alpha beta gamma delta " * 4000
    assert load_tokenizer(tokenizer).encode([long], [long], 32, windows=False).truncated == 1


def test_what_is_guessed_or_left_unused_is_told(tokenizer: Path, tmp_path: Path) -> None:
    row = {"id": 7, "query": "a question", "passage": "a text", "label": "b"}
    rows = [row, {**row, "label": "a"}, {**row, "label": -100}] + [row] * 1000
    rows += [{**row, "source": "web"}]
    path, lines = tmp_path / "c.jsonl", Lines()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = plan(
        path, tokenizer=tokenizer, task="text-classification", out=tmp_path / "p", progress=lines
    )
    assert made.config.corpus["text_columns"] == ["query", "passage"]
    assert made.labelled == 1003
    told = ["columns not read: id", "columns not read, which only later rows have: source"]
    assert lines.messages[:2] == told
    assert "1 documents are labelled -100" in lines.messages[2]
    assert "numbered alphabetically (0 a, 1 b)" in lines.messages[3]
    assert len(lines.messages) == 4


def test_a_dataset_of_swapped_names_keeps_its_meaning(classifier: Path, tmp_path: Path) -> None:
    names = ["tkinter", "email", "asyncio"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    columns = {"text": ["one", "two", "three"], "label": [0, 1, 2]}
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(tmp_path / "c.parquet")
    made.save_to_disk(tmp_path / "saved")
    for index, source in enumerate((made, tmp_path / "c.parquet", tmp_path / "saved")):
        found = plan(
            source, tokenizer=classifier, task="text-classification", out=tmp_path / f"{index}.plan"
        )
        assert found.config.classes == ["asyncio", "email", "tkinter"]
        order = np.argsort(found.per_document["doc_id"][found.docs])
        assert found.per_document["label"][found.docs][order].tolist() == [2, 1, 0]
