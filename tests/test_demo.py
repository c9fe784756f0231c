"""The demo, small: a tiny encoder and an archive of the corpus's form."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from typer.main import get_command

import kdcache_cli.demo
from kdcache.corpora.standard_library import Docstring
from kdcache.demo.law import Costs
from kdcache.demo.run import run
from kdcache.demo.settings import Settings
from kdcache.errors import ConfigError
from kdcache.manifest import Json
from kdcache.shipping.run import ship, ship_both
from kdcache_cli.app import app
from tests.conftest import Lines, bert_config, save_teacher
from tests.rated import source_distribution

DOMAINS = ["movies", "products", "tweets", "news"]
SIZES = {"train": 60, "labels": 30, "dev": 20, "home": 40, "away": 20}


@pytest.fixture(scope="module")
def given(
    folder: Path,
    tokenizer: Path,
    sentences: list[Docstring],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Settings, Path]:
    """Settings of a small demo, and its archive."""
    torch.manual_seed(5)
    config = bert_config(tokenizer, num_hidden_layers=2)
    encoder = save_teacher(folder / "encoder", tokenizer, transformers.BertModel(config))
    archive = tmp_path_factory.mktemp("rated") / "archive.tar.gz"
    archive.write_bytes(source_distribution([s.text for s in sentences]))
    settings = Settings(
        encoder=str(encoder),
        **SIZES,
        teacher_epochs=1,
        students=((2,),),
        baseline=(2,),
        epochs=1,
        batch=32,
    )
    return settings, archive


@pytest.fixture(scope="module")
def report(given: tuple[Settings, Path], tmp_path_factory: pytest.TempPathFactory) -> Json:
    return run(
        tmp_path_factory.mktemp("demo") / "out", settings=given[0], archive=given[1], progress=False
    )


@pytest.fixture
def printed(report: Json, capsys: pytest.CaptureFixture[str]) -> list[str]:
    kdcache_cli.demo._print(report)
    return capsys.readouterr().out.splitlines()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_student_is_a_smaller_model_of_the_cache(report: Json) -> None:
    out = Path(report["folder"])
    for name, layers in (("teacher", 2), ("student-1", 1), ("student-from-labels", 1)):
        config = transformers.AutoConfig.from_pretrained(out / name)
        assert config.num_hidden_layers == layers
        assert sorted(config.label2id) == ["negative", "positive"]
    size = {name: model["bytes"] for name, model in report["models"].items()}
    assert size["teacher-fp32"] > size["teacher"] > size["student-1"]
    steps = report["steps"]
    assert steps["student-1"]["steps"] == steps["student-from-labels"]["steps"] == 2
    for name in ("student-1", "student-from-labels"):
        dev = json.loads((out / name / "metrics.json").read_text())["dev"]
        assert (dev["documents"], dev["left_out"]) == (20, 20)
        assert dev["teacher"]["source"] == "the cache's soft labels"


@pytest.mark.slow
def test_scores_and_gains_are_those_of_the_predictions(report: Json) -> None:
    predictions = Path(report["folder"]) / "predictions"
    right = {}
    for name, model in report["models"].items():
        predicted = rows(predictions / f"{name}.csv")
        assert list(model["scores"]) == DOMAINS
        right[name] = [row["label"] == row["prediction"] for row in predicted]
        for domain, score in model["scores"].items():
            own = [
                r for r, row in zip(right[name], predicted, strict=True) if row["domain"] == domain
            ]
            assert score["sentences"] == len(own) == (40 if domain == "movies" else 20)
            assert score["accuracy"] == pytest.approx(sum(own) / len(own))
            assert score["interval"][0] <= score["accuracy"] <= score["interval"][1]
    apart = [a - b for a, b in zip(right["student-1"], right["student-from-labels"], strict=True)]
    for where, own in (("home", apart[:40]), ("away", apart[40:])):
        gain = report["gains"][where]
        assert gain["gain"] == pytest.approx(sum(own) / len(own))
        assert gain["interval"][0] <= gain["gain"] <= gain["interval"][1]


@pytest.mark.slow
def test_the_law_is_that_of_the_steps(report: Json) -> None:
    steps, costs = report["steps"], report["costs"]
    assert costs["build"] == steps["cache.zarr"]["seconds"]
    assert costs["student"] == steps["student-1"]["seconds"]
    assert costs["teacher"] == pytest.approx(2 * steps["loop"]["teacher_step_seconds"])
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")


def test_both_ways_cost_the_same_at_the_crossing_and_the_step_in_the_end() -> None:
    costs = Costs(build=30.0, teacher=20.0, student=10.0, epochs=2)
    assert costs.crossing == 1.5
    assert costs.cached(1.5) == costs.in_the_loop(1.5) == 45
    assert costs.saving == 3
    assert costs.in_the_loop(1e6) / costs.cached(1e6) == pytest.approx(3, rel=1e-4)


@pytest.mark.slow
def test_a_second_run_keeps_what_is_done(report: Json, given: tuple[Settings, Path]) -> None:
    lines = Lines()
    again = run(report["folder"], settings=given[0], archive=given[1], progress=lines)
    assert again == report
    kept = [line for line in lines.messages if "kept from the earlier run" in line]
    assert len(kept) == len(report["steps"]) == 7
    assert kept[2].startswith("student 1 of 1, from the cache: 1 layer (2 of the teacher)")


@pytest.mark.slow
def test_other_settings_and_other_folders_are_refused(
    report: Json, given: tuple[Settings, Path], tmp_path: Path
) -> None:
    settings, archive = given
    with pytest.raises(ConfigError, match="made with other settings"):
        run(report["folder"], settings=replace(settings, labels=31), archive=archive)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        run(tmp_path, settings=settings, archive=archive)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.slow
def test_the_printed_pipeline_call_says_what_is_printed(printed: list[str]) -> None:
    code = [line.partition(">>> ")[2] for line in printed if ">>> " in line]
    names: dict[str, object] = {}
    exec("\n".join(code[:-1]), names)
    predicted = eval(code[-1], names)
    assert f"  {predicted!r}" == printed[printed.index(f"  >>> {code[-1]}") + 1]


@pytest.mark.slow
def test_the_last_line_is_one_command_and_it_works(printed: list[str]) -> None:
    assert printed[-2] == "Now you. Give it a sentence of your own:"
    ran = subprocess.run(shlex.split(printed[-1]), capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["label"] in ("negative", "positive")


@pytest.mark.slow
def test_the_commands_for_own_data_are_calls_of_the_program(printed: list[str]) -> None:
    start = next(i for i, line in enumerate(printed) if line.startswith("Your own data"))
    for name, line in zip(("teach", "build", "train", "ship"), printed[start + 1 :], strict=False):
        words = shlex.split(line)
        words = words[words.index(name) :]
        command = get_command(app).commands[name]
        assert command.make_context(name, words[1:]).params["out"]


@pytest.mark.slow
def test_two_runs_with_several_students_give_the_same_digits(
    given: tuple[Settings, Path], tmp_path: Path
) -> None:
    several = replace(given[0], students=((1, 2), (2,)))
    one, other = (
        run(tmp_path / name, settings=several, archive=given[1], progress=False)
        for name in ("one", "other")
    )
    assert one["models"]["student-2"]["bytes"] > one["models"]["student-1"]["bytes"]
    seconds = [one["steps"][name]["seconds"] for name in ("student-2", "student-1")]
    assert one["costs"]["student"] == pytest.approx(sum(seconds) / 2)
    for name, model in one["models"].items():
        again = other["models"][name]
        assert (again["scores"], again["bytes"]) == (model["scores"], model["bytes"])
    assert other["gains"] == one["gains"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_ship_end_with_the_one_that_started_them(
    number: int, classifier: Path, tmp_path: Path
) -> None:
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from kdcache.demo.shippers import Job, ship_all; from kdcache.progress import quiet\n"
        "source, out = map(Path, sys.argv[1:])\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job ignores it\n"
        "    ship_all([Job(source, out / str(i), None) for i in range(50)], quiet)\n"
    )
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(tmp_path / "main.py"), str(classifier), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            while not any((tmp_path / "out").iterdir()):
                assert child.poll() is None
                time.sleep(0.05)
            child.send_signal(number)
            child.communicate(timeout=60)  # ends when all have let go of standard output
            assert child.returncode
        finally:
            child.kill()


@pytest.mark.slow
def test_a_model_shipped_in_both_kinds_is_what_it_is_shipped_in_each(
    classifier: Path, tmp_path: Path
) -> None:
    folders = {kind: tmp_path / "both" / kind for kind in ("fp32", "int8")}
    reports = ship_both(classifier, **folders, progress=False)
    for kind, folder in folders.items():
        alone = tmp_path / "alone" / kind
        assert ship(classifier, alone, int8=kind == "int8", progress=False) == {
            **reports[kind],
            "folder": str(alone),
        }
        for file in alone.iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes(), file
