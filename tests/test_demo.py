"""The comparison behind the demo, small, with the real encoder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import transformers

from kdcache.demo.comparison import Settings, compare, paired_gain
from kdcache.demo.comparison_plot import draw_comparison
from kdcache.demo.sentences import Sentence
from kdcache.demo_corpus import Docstring
from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.progress import quiet

SETTINGS = Settings(labels=45, teacher_epochs=1, hard_epochs=1, soft_epochs=1)


class Listener:
    """Collects what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bar = quiet.bar

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def sets(sentences: list[Docstring]) -> tuple[list[Sentence], list[Sentence]]:
    found = [Sentence(d.text, d.package) for d in sentences]
    return found[::2], found[1::2]


@pytest.fixture(scope="module")
def report(
    sets: tuple[list[Sentence], list[Sentence]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Json]:
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, compare(out, *sets, SETTINGS, quiet)


def test_teacher_and_students_are_models_and_see_the_same_labels(
    report: tuple[Path, Json], sets: tuple[list[Sentence], list[Sentence]]
) -> None:
    out, _ = report
    for name, layers in (("teacher", 6), ("labels", 2), ("distilled", 2)):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(out / name)
        assert model.config.num_hidden_layers == layers
        assert sorted(model.config.label2id) == ["asyncio", "email", "tkinter"]
    with (out / "train.csv").open(encoding="utf-8") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert sum(label != "" for label in labels) == 45
    assert all(label in ("", s.label) for label, s in zip(labels, sets[0], strict=True))


def test_the_gain_is_that_of_the_predictions(report: tuple[Path, Json]) -> None:
    out, figures = report
    right = {}
    for name in ("labels", "distilled"):
        with (out / "scores" / f"{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        right[name] = [row["label"] == row["prediction"] for row in rows]
        assert sum(right[name]) / len(rows) == pytest.approx(figures["models"][name]["accuracy"])
    gain = figures["gain"]
    share = (sum(right["distilled"]) - sum(right["labels"])) / len(right["labels"])
    assert gain["accuracy"] == pytest.approx(share)
    assert gain["interval"][0] <= share <= gain["interval"][1]


def test_the_same_predictions_gain_nothing(report: tuple[Path, Json]) -> None:
    path = report[0] / "scores" / "labels.csv"
    assert paired_gain(path, path)["interval"] == [0.0, 0.0]


def test_a_second_run_keeps_what_is_done(
    report: tuple[Path, Json], sets: tuple[list[Sentence], list[Sentence]]
) -> None:
    out, figures = report
    listener = Listener()
    assert compare(out, *sets, SETTINGS, listener) == figures
    assert len(listener.lines) == len(figures["phases"]) == 5


def test_other_settings_are_refused(
    report: tuple[Path, Json], sets: tuple[list[Sentence], list[Sentence]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="made with other settings"):
        compare(report[0], *sets, Settings(labels=46), quiet)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        compare(tmp_path, *sets, SETTINGS, quiet)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_plot_is_an_image(report: tuple[Path, Json], tmp_path: Path) -> None:
    draw_comparison(tmp_path / "demo.png", report[1])
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
