"""Labels mean what the teacher means by them, or the line that does not fit is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kdcache.errors import ConfigError, CorpusError
from kdcache.labels import MAX_CLASSES, LabelReader, Labels, resolve

NAMES = ["negative", "neutral", "positive"]
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
        ([np.int64(1), np.int32(0)], {}, ["0", "1"], [1, 0]),
        ([1.0, 0.0], {"label_type": "class"}, ["0", "1"], [1, 0]),
        (["None", "some"], {}, ["None", "some"], [0, 1]),
    ],
)
def test_classes_are_numbered_as_the_teacher_does(
    raw: list[Any], options: dict[str, Any], classes: list[str], ids: list[int]
) -> None:
    made = labels(raw, **options)
    assert (made.problem, made.classes, made.ids.tolist()) == ("classes", classes, ids)
    assert np.isnan(made.values).all()


@pytest.mark.parametrize("nothing", [None, "", "  ", -1, "-1", -100, "-100", math.nan, "nan"])
def test_documents_without_a_label_stay_unlabelled(nothing: object) -> None:
    made = labels(["positive", nothing, "negative"], known=NAMES, count=3)
    assert made.ids.tolist() == [2, NONE, 0]
    assert np.isnan(labels([0.5, nothing, 1.5]).values).tolist() == [False, True, False]


def test_a_corpus_without_labels_has_no_classes_but_the_teachers() -> None:
    assert labels([None, None]).classes is None
    assert labels([None, None], known=NAMES, count=3).classes == NAMES
    assert labels([None], count=1).problem == "regression"


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
    assert (made.problem, made.classes) == ("regression", None)
    np.testing.assert_array_equal(made.values, np.array(raw, np.float32))
    assert (made.ids == NONE).all()


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
        ([0.5], {"label_type": "class"}, "label 0.5 is no class: whole numbers from 0 to 65,535"),
        ([10**18], {}, "is no class: whole numbers .* pass --label-type float"),
        (["a", "b", "c"], {"count": 2}, "the corpus has 3 classes; the teacher has 2"),
        ([[1, 0]], {}, "file.csv:2: a label is a text or a number; got list"),
        ([{"a": 1}], {}, "file.csv:2: a label is a text or a number; got dict"),
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
