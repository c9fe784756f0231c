"""The study of kinds, maps and weights: it runs from one cache, and goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kdcache.corpora.standard_library import Docstring
from kdcache.demo.sentences import Corpus, Sentence
from kdcache.losses import CacheSpec
from kdcache.signals import ModelSizes, parse_all
from kdcache.tasks import TASKS
from kdcache.training.recipe import load_recipe
from kdcache.training.requirements import unserved
from kdcache.training.wanted_signals import cut, signals_for
from tests.scripts import script_of


@pytest.fixture(scope="module")
def script() -> Any:
    return script_of("loss_map_weight")


@pytest.fixture
def study(
    script: Any,
    sentences: list[Docstring],
    masked_lm: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """Of a student of two layers, two steps and one map."""
    trials = script_of("trial")
    texts = [Sentence(s.text, s.package) for s in sentences]
    tests = {"movies": texts[1::8], "away": texts[5::8]}
    whole = Corpus(name="tiny", train=texts[2::4], dev=texts[::4], tests=tests, source="")
    cut = script_of("gain_corpora").Cut(
        read=lambda folder: whole, train=48, labels=48, teacher_epochs=1
    )
    monkeypatch.setitem(trials.CUTS, "sst2", cut)
    monkeypatch.setattr(trials, "encoder_folder", lambda: masked_lm)
    trial = trials.Trial(out=tmp_path / "study", layers=(2, 4), steps=2)
    made = script.Study(trial=trial, maps=("last",), weights=(0.5, 2.0), rates=(1e-3,), seeds=1)
    made.prepare(tmp_path)
    return made


def made_up(script: Any) -> dict[str, Any]:
    """Figures as a study of two maps would have them."""
    weights = [0.1, 1.0]
    gain = {"difference": 0.01, "both": [-0.01, 0.03], "documents": [-0.01, 0.03]}
    spread = {"mean": 0.7, "sd": 0.0, "min": 0.7, "max": 0.7}
    rows = [
        {
            **asdict(cell),
            "rate": 1e-4,
            "dev_by_weights": [
                {"w_hidden": h, "w_attention": a, "dev": 0.6 + 0.1 * h - 0.1 * a}
                for h in weights
                for a in weights
            ],
            **dict.fromkeys(("dev", "home", "away"), spread),
            **dict.fromkeys(("home_gain", "away_gain"), gain),
        }
        for cell in script.groups(script.MAPS)
    ]
    plain = {"rate": 1e-4, **dict.fromkeys(("dev", "home", "away"), spread)}
    return {"weights": weights, "kd": plain, "rows": rows}


def test_one_cache_serves_every_cell_and_recipes_read_back_equal(script: Any) -> None:
    cells = list(script.groups(script.MAPS))
    assert len({str(cell) for cell in cells}) == len(cells) == 16
    heads = dict.fromkeys(("heads", "key_heads"), 12)
    sizes = ModelSizes(outputs=2, hidden=384, layers=6, head_width=32, **heads)
    task = TASKS["text-classification"]
    texts = signals_for([cell.recipe for cell in cells], task, cut(sizes, 3), sizes)
    spec = CacheSpec(
        task=task, label_kind="classes", signals=parse_all(texts), shape=sizes, labelled=1
    )
    for cell in cells:
        assert unserved(cell.recipe, spec, cut(sizes, 3)) == ""
        assert load_recipe(cell.recipe) == cell.recipe


def test_the_picture_is_as_wide_as_a_page_and_the_table_has_a_row_a_cell(
    script: Any, tmp_path: Path
) -> None:
    figures = made_up(script)
    assert len(script.table(figures).splitlines()) == 2 + 1 + 16
    script.draw(tmp_path / "picture.png", figures)
    width = int.from_bytes((tmp_path / "picture.png").read_bytes()[16:20], "big")
    assert width == 830


@pytest.mark.slow
def test_weights_are_chosen_on_dev_and_scored_with_other_seeds_and_a_run_goes_on(
    study: Any,
) -> None:
    figures = study.run()
    rows = figures["rows"]
    assert len(rows) == 4
    for row in rows:
        dev = {(at["w_hidden"], at["w_attention"]): at["dev"] for at in row["dev_by_weights"]}
        assert len(dev) == 4
        assert dev[row["w_hidden"], row["w_attention"]] == max(dev.values())
        assert row["home"]["mean"] - figures["kd"]["home"]["mean"] == pytest.approx(
            row["home_gain"]["difference"]
        )
    json.dumps(figures, allow_nan=False)
    notes = {path: path.stat().st_mtime_ns for path in study.notes.iterdir()}
    gone = next(iter(notes))
    gone.unlink()
    assert study.run() == figures
    assert [path for path in notes if path.stat().st_mtime_ns != notes[path]] == [gone]
    study.prepare(study.trial.out.parent)
    train = study.trial.out / "train.csv"
    train.write_text(train.read_text("utf-8") + "more,email\n", "utf-8")
    with pytest.raises(SystemExit, match="was made of other data than"):
        study.prepare(study.trial.out.parent)
