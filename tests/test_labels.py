"""Labels mean what the teacher means by them, or the line that does not fit is named."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from kdcache.errors import ConfigError, CorpusError
from kdcache.labels import LabelReader, Labels, resolve
from kdcache.labels.base import MAX_CLASSES

NAMES = ["negative", "neutral", "positive"]
STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
NONE = -100


def labels(raw: list[Any], **options: Any) -> Labels:
    reader = LabelReader()
    for index, label in enumerate(raw):
        reader.add(label, f"file.csv:{index + 2}")
    return resolve(reader, **options)


@pytest.mark.parametrize(
    ("raw", "options", "classes", "ids"),
    [
        (["positive", "negative"], {"known": NAMES, "count": 3}, NAMES, [2, 0]),
        ([" positive ", "neutral"], {"known": NAMES, "count": 3}, NAMES, [2, 1]),
        ([2, 0], {"known": NAMES, "count": 3}, NAMES, [2, 0]),
        (["2", "0"], {"known": NAMES, "count": 3}, NAMES, [2, 0]),
        (["2.0", 1.0, ""], {"known": NAMES, "count": 3}, NAMES, [2, 1, NONE]),
        (["4", "1"], {"known": ["1", "2", "3", "4"], "count": 4}, ["1", "2", "3", "4"], [3, 0]),
        (["0", "3"], {"known": ["1", "2", "3", "4"], "count": 4}, ["1", "2", "3", "4"], [0, 3]),
        ([1, 0], {"count": 3}, ["0", "1", "2"], [1, 0]),
        ([1, 3], {}, ["0", "1", "2", "3"], [1, 3]),
        (["b", "a", "b"], {}, ["a", "b"], [1, 0, 1]),
        (["b", "a"], {"count": 2}, ["a", "b"], [1, 0]),
        ([True, False], {}, ["0", "1"], [1, 0]),
        ([True, False], {"known": ["True", "False"], "count": 2}, ["True", "False"], [0, 1]),
        ([True, False], {"known": ["true", "false"], "count": 2}, ["true", "false"], [0, 1]),
        ([np.int64(1), np.int32(0)], {}, ["0", "1"], [1, 0]),
        ([1.0, 0.0], {"label_type": "class"}, ["0", "1"], [1, 0]),
        (["None", "some"], {}, ["None", "some"], [0, 1]),
        (["POSITIVE", "Neutral"], {"known": NAMES, "count": 3}, NAMES, [2, 1]),
        (["yes", "Yes"], {"known": ["Yes", "yes"], "count": 2}, ["Yes", "yes"], [1, 0]),
        ([1, 5, "2.0", " 4"], {"known": STARS, "count": 5}, STARS, [0, 4, 1, 3]),
        (["3 stars"], {"known": STARS, "count": 5}, STARS, [2]),
        ([0, 4], {"known": STARS, "count": 5}, STARS, [0, 4]),
        ([1, "2.0", "03"], {"known": ["3", "2", "1"], "count": 3}, ["3", "2", "1"], [2, 1, 0]),
        ([-1, 0, 1], {"known": ["-1", "0", "1"], "count": 3}, ["-1", "0", "1"], [0, 1, 2]),
        (["01", "2.0", " 0", "1"], {"count": 3}, ["0", "1", "2"], [1, 2, 0, 1]),
        (["LABEL_1", "label_0"], {"known": NAMES, "count": 3}, NAMES, [1, 0]),
        (["LABEL_1", "LABEL_0"], {"known": ["LABEL_1", "LABEL_0"]}, ["LABEL_1", "LABEL_0"], [0, 1]),
    ],
)
def test_classes_are_numbered_as_the_teacher_does(
    raw: list[Any], options: dict[str, Any], classes: list[str], ids: list[int]
) -> None:
    made = labels(raw, **options)
    assert (made.kind, made.classes, made.rows.tolist()) == ("classes", classes, ids)


@pytest.mark.parametrize("nothing", [None, "", "  ", -100, "-100", math.nan, "nan"])
def test_documents_without_a_label_stay_unlabelled(nothing: object) -> None:
    made = labels(["positive", nothing, "negative"], known=NAMES, count=3)
    assert made.rows.tolist() == [2, NONE, 0]
    assert np.isnan(labels([0.5, nothing, 1.5]).rows).tolist() == [False, True, False]


def test_label_n_is_class_n_however_many_there_are() -> None:
    many = [f"LABEL_{i}" for i in range(12)]
    made = labels(many[::-1], count=12)
    assert (made.classes, made.rows.tolist()) == (many, [*range(12)][::-1])
    assert labels(["LABEL_10", "LABEL_2"]).rows.tolist() == [10, 2]
    with pytest.raises(CorpusError, match="label LABEL_12 is outside the teacher's 12 classes"):
        labels(["LABEL_12"], count=12)


def test_minus_one_is_a_value_in_regression() -> None:
    raw = [-2, -1, 0, 1, "-1.0"]
    for options in ({"count": 1}, {"label_type": "float"}):
        made = labels(raw, **options)
        assert (made.rows.tolist(), made.notes) == ([-2, -1, 0, 1, -1], ())
    assert labels([-101, -100, -99], count=1).rows.tolist() == [-101, -100, -99]


@pytest.mark.parametrize(
    ("raw", "options", "ids"),
    [
        (["positive", -1, "negative"], {"known": NAMES, "count": 3}, [2, NONE, 0]),
        ([-1, 0, 1], {"count": 2}, [NONE, 0, 1]),
        (["0", "-1.0", "2"], {"known": NAMES, "count": 3}, [0, NONE, 2]),
        ([1, -1], {"known": STARS, "count": 5}, [0, NONE]),
        (["b", "-1", "a"], {}, [1, NONE, 0]),
        ([-1, -1], {"count": 2}, [NONE, NONE]),
        ([-1, 1], {"corpus_names": ["no", "yes"]}, [NONE, 1]),
    ],
)
def test_minus_one_is_no_label_where_it_can_be_no_class_and_that_is_told(
    raw: list[Any], options: dict[str, Any], ids: list[int]
) -> None:
    made = labels(raw, **options)
    assert made.rows.tolist() == ids
    assert any(
        note.endswith("which is taken as no label")
        and note.startswith(f"{ids.count(NONE)} documents are labelled -1")
        for note in made.notes
    )


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        ([-1, 0, 1], {"count": 3}),
        ([-1, 0, 1], {"known": NAMES, "count": 3}),
        ([-1, 0, 1], {}),
        ([-1, 1], {"count": 2}),
        (["-1.0", "1"], {"label_type": "class"}),
    ],
)
def test_minus_one_that_may_be_a_class_is_refused(raw: list[Any], options: Any) -> None:
    with pytest.raises(CorpusError, match=r"file.csv:2: label -1.* is a class or means no label"):
        labels(raw, **options)


@pytest.mark.parametrize(
    ("raw", "options", "note"),
    [
        (["b", "a"], {"count": 2}, r"numbered alphabetically \(0 a, 1 b\).*id2label"),
        (["b", "a"], {}, "numbered alphabetically"),
        ([0, 1], {"corpus_names": ["b", "a"], "count": 2}, r"as the corpus does \(0 b, 1 a\)"),
        ([0, 2], {"known": NAMES}, "taken as numbers .*: 0 is class 0, negative; 2 is class 2, po"),
        ([0, 4], {"known": STARS}, "taken as numbers of the teacher's classes: 0 is class 0, 1 st"),
        ([1, 4], {"known": STARS}, "as names, not numbers, .*: 1 is class 0, 1 star; 4 is class 3"),
        ([1, 2], {"known": ["1", "2", "3"]}, "as names, not numbers, .*: 1 is class 0, 1; 2 is"),
        (["Positive"], {"known": NAMES}, "whatever their case, .*: Positive is class 2, positive"),
        ([0, 1, 3], {}, "whole numbers: taken as numbers of classes .*--label-type float"),
        (["0.0", "1.0"], {}, "with a point: taken as regression values .*--label-type class"),
        (["a", -100, -100], {"known": ["a"]}, "^2 documents are labelled -100, which is taken as"),
        ([0.5, -100], {"count": 1}, "^1 documents are labelled -100, which is taken as no label"),
    ],
)
def test_every_guess_is_told(raw: list[Any], options: dict[str, Any], note: str) -> None:
    (told,) = labels(raw, **options).notes
    assert re.search(note, told)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        (["positive", "negative"], {"known": NAMES, "count": 3}),
        ([0, 2], {"count": 3}),
        (["LABEL_2"], {"count": 3}),
        (["3", "1"], {"known": ["0", "1", "2", "3"]}),
        ([5, "1.0"], {"known": ["1", "2", "3", "4", "5"]}),
        ([2, 0.5, None], {"count": 1}),
        ([None], {}),
    ],
)
def test_nothing_is_told_where_nothing_is_guessed(raw: list[Any], options: Any) -> None:
    assert labels(raw, **options).notes == ()


@pytest.mark.parametrize(
    ("names", "known", "classes"),
    [
        (["negative", "positive"], ["positive", "negative"], ["positive", "negative"]),
        (["NEGATIVE", "positive"], ["positive", "negative"], ["positive", "negative"]),
        (["1", "2"], ["2", "1"], ["2", "1"]),
        (["0", "1"], NAMES, NAMES),
        (["2", "1"], None, ["2", "1"]),
        (["LABEL_1", "LABEL_0"], None, ["LABEL_0", "LABEL_1"]),
    ],
)
def test_what_the_corpus_calls_its_numbers_counts(
    names: list[str], known: list[str] | None, classes: list[str]
) -> None:
    made = labels([0, 1], known=known, count=3, corpus_names=names)
    assert made.classes is not None
    if names != ["0", "1"]:
        assert [made.classes[i].lower() for i in made.rows] == [name.lower() for name in names]
    assert made.classes[: len(classes)] == classes


@pytest.mark.parametrize(
    ("raw", "names", "options", "message"),
    [
        ([0, 2], ["a", "b"], {}, r"file.csv:3: label 2 is outside the 2 classes .* \(a, b\)"),
        ([0], ["neg", "pos"], {"known": NAMES}, "label 'neg' .* the corpus calls its classes neg"),
        ([0], ["1", "2"], {"known": NAMES}, "label '1' is not one of the 3 known classes"),
        ([0], ["a", "b", "c"], {"count": 2}, "the corpus has 3 classes; the teacher has 2"),
        ([0], ["low", "high"], {"count": 1}, "label 'low' is not a number"),
    ],
)
def test_names_of_the_corpus_that_do_not_fit_are_refused(
    raw: list[Any], names: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        labels(raw, corpus_names=names, **options)


def test_numbers_that_the_corpus_names_are_values_by_their_names() -> None:
    made = labels([0, 1, -1], count=1, corpus_names=["0.5", "2"])
    np.testing.assert_array_equal(made.rows, [0.5, 2, np.nan])


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(CorpusError, match="the teacher has 2 classes called 'other'"):
        labels(["other"], known=["other", "a", "other"])


def test_a_corpus_without_labels_has_no_classes_but_the_teachers() -> None:
    assert labels([None, None]).classes is None
    assert labels([None, None], known=NAMES, count=3).classes == NAMES
    assert labels([None], count=1).kind == "regression"


@pytest.mark.parametrize(
    ("raw", "options"),
    [
        ([0.5, 2.0, -3.25], {}),
        (["0.5", "2", "-3.25"], {}),
        ([0, 2, 5], {"count": 1}),
        ([0, 2, 5], {"label_type": "float"}),
        (["1e-3", "2"], {}),
    ],
)
def test_numbers_with_a_point_and_teachers_of_one_value_mean_regression(
    raw: list[Any], options: dict[str, Any]
) -> None:
    made = labels(raw, **options)
    assert (made.kind, made.classes) == ("regression", None)
    np.testing.assert_array_equal(made.rows, np.array(raw, np.float32))


@pytest.mark.parametrize(
    ("raw", "options", "message"),
    [
        ([0, 3], {"known": NAMES, "count": 3}, r"file.csv:3: label 3 .* 3 classes \(0 to 2\)"),
        ([0, 7], {"count": 2}, r"file.csv:3: label 7 is outside the teacher's 2 classes"),
        ([0, -2], {"count": 2}, "file.csv:3: label -2 is outside"),
        (["1.5"], {"known": NAMES, "count": 3}, "file.csv:2: label 1.5 is outside"),
        (["good"], {"known": NAMES, "count": 3}, r"file.csv:2: label 'good' .* \(negative, neu"),
        ([0.5, "x"], {"label_type": "float"}, "file.csv:3: label 'x' is not a number"),
        (["x"], {"count": 1}, "file.csv:2: label 'x' is not a number"),
        (["inf"], {"label_type": "float"}, "label 'inf' is not a number"),
        ([0.5, 1e39], {"count": 1}, r"file.csv:3: label '1e\+39' is beyond what float32 holds"),
        ([["a"]], {"count": 3}, "a list of labels, where one is wanted.*--label-column"),
        ([0.5], {"label_type": "class"}, "label 0.5 is no class: whole numbers from 0 to 65,535"),
        ([10**18], {}, "is no class: whole numbers .* pass --label-type float"),
        (["a", "b", "c"], {"count": 2}, "the corpus has 3 classes; the teacher has 2"),
        ([[1, 0]], {"label_type": "float"}, "file.csv:2: .* a list of labels, where one is"),
        ([{"a": 1}], {}, "file.csv:2: a label is a text or a number, .*; got dict"),
    ],
)
def test_a_label_that_does_not_fit_is_named_to_the_line(
    raw: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        labels(raw, **options)


def test_a_column_of_texts_is_not_taken_for_labels() -> None:
    most = [f"text {i}" for i in range(MAX_CLASSES)]
    assert len(labels(most).classes or []) == MAX_CLASSES
    with pytest.raises(CorpusError, match=r"file\.csv:65538: more than 65,536 distinct labels"):
        labels([*most, "one more"])


def test_an_unknown_label_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown label type 'flaot'; did you mean 'float'"):
        labels([1], label_type="flaot")
