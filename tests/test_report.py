"""A report tells what folders hold, on one page that needs nothing beside it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import kdcache
from kdcache.errors import CacheError, ConfigError
from kdcache.manifest import Json
from kdcache.rendering import Picture, Points, Section, Table, Text
from kdcache.reporting.collect import unique_names
from kdcache.reporting.run import Report, report
from kdcache.shipping.folder import REPORT, SETTINGS
from kdcache.store import Cache
from kdcache.sweeping.front import on_front
from kdcache.sweeping.record import (
    RECORD,
    Mean,
    Record,
    Row,
    Student,
    Worst,
    read_record,
    write_record,
)
from kdcache.sweeping.result import SweepResult
from kdcache.training.result import TrainResult
from kdcache.training.train import train

QUICK = ("training.max_steps=4", "training.logging_steps=1", "training.learning_rate=1e-3")
HOSTILE = '<script>alert("x")</script> | [a](javascript:b)'


class Parsed(HTMLParser):
    """A page taken apart.

    Attributes:
        tags: how often each comes.
        attributes: tag, name and value of all.
        texts: every text, in order; those of styles too.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def of(self, tag: str, name: str) -> list[str]:
        """The values of an attribute of a tag."""
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def require_portable(page: str) -> Parsed:
    """Hold a page against what is asked of every report."""
    parsed = Parsed(page)
    assert parsed.open == []
    sources = [v for _, name, v in parsed.attributes if name in ("src", "href", "srcset", "action")]
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert parsed.tags.keys().isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert not any(name.startswith("on") for _, name, _ in parsed.attributes)
    assert "://" not in page
    for source in parsed.of("img", "src"):
        head, _, data = source.partition(";base64,")
        assert head == "data:image/svg+xml"
        svg = base64.b64decode(data).decode()
        addresses = set(re.findall(r'(?:https?:)?//[^"\s<>]+', svg))
        assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert "<script" not in svg
    assert all(parsed.of("img", "alt"))
    assert len(parsed.of("img", "alt")) == parsed.tags.get("img", 0)
    (viewport,) = [
        v for t, n, v in parsed.attributes if t == "meta" and v.startswith("width=device-width")
    ]
    assert viewport == "width=device-width, initial-scale=1"
    styles = "".join(parsed.texts) + " ".join(v for _, n, v in parsed.attributes if n == "style")
    wide = re.findall(r"(?:^|[;{\s])(?:min-)?width:\s*(\d+(?:\.\d+)?)(px|rem|em|pt)", styles)
    assert all(float(number) * {"px": 1, "pt": 4 / 3}.get(unit, 16) <= 360 for number, unit in wide)
    anchors = {value for _, name, value in parsed.attributes if name == "id"}
    assert {source[1:] for source in sources if source.startswith("#")} <= anchors
    return parsed


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def result(place: Path, cache: Cache, classifier: Path, corpus: Path) -> TrainResult:
    """A student that was chosen on a dev set and scored beside its teacher."""
    return train(
        cache,
        recipe="kd",
        out=place / "scored",
        init_from_teacher=(2, 4),
        dev_split=0.2,
        eval_file=corpus,
        eval_teacher=classifier,
        overrides=QUICK,
    )


@pytest.fixture(scope="module")
def plain(place: Path, cache: Cache) -> TrainResult:
    """A student that nothing is known of but that it was trained."""
    return train(cache, recipe="kd", out=place / "plain", init_from_teacher=(4,), overrides=QUICK)


def shipped_folder(folder: Path) -> Path:
    """What `ship` leaves of a measured model, without the model."""
    folder.mkdir()
    scores = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "agreement": 1.0}
    row = {"bytes": 2_000_000, "p50_ms": 1.5, "p95_ms": 2.5, "peak_bytes": 9e7, **scores}
    teacher = {
        **row,
        "bytes": 9_000_000,
        "p50_ms": 7.25,
        "accuracy": 0.75,
        "accuracy_interval": [0.7, 0.8],
    }
    models = {"fp32": {**row, "bytes": 8e6}, "int8": row, "teacher_int8": teacher}
    about = {"file": "test.csv", "documents": 96, "threads": 1, "calls": 200, "timed": "one by one"}
    (folder / SETTINGS).write_text(json.dumps({"max_length": 48}))
    (folder / REPORT).write_text(json.dumps({"int8": True, **about, "models": models}))
    return folder


@pytest.fixture(scope="module")
def shipped(place: Path) -> Path:
    return shipped_folder(place / "shipped")


@pytest.fixture(scope="module")
def made(
    place: Path, result: TrainResult, plain: TrainResult, cache: Cache, shipped: Path
) -> Report:
    folders = (result.folder, plain.folder, cache.path, shipped)
    return report(*folders, out=place / "out.html", markdown=place / "out.md")


def test_the_page_stands_alone_and_fits_a_phone(made: Report, place: Path) -> None:
    page = (place / "out.html").read_text("utf-8")
    assert page == made.page.html()
    parsed = require_portable(page)
    assert parsed.tags["img"] == len(list(made.page.pictures)) >= 6
    assert "prefers-color-scheme:dark" in page
    assert page.count('<div class="wide"><table') == page.count("<table")


def test_figures_on_the_page_are_those_of_the_folders(
    made: Report, result: TrainResult, cache: Cache
) -> None:
    texts = Parsed(made.page.html()).texts
    scores = result.metrics["evaluation"]
    for side in (scores, scores["teacher"]):
        low, high = side["accuracy_interval"]
        assert f"{side['accuracy']:.4g} ({low:.4g} to {high:.4g})" in texts
        assert f"{side['parameters']:,}" in texts
    dev = result.metrics["dev"]
    assert f"{dev['best']['value']:.4g}" in texts
    assert f"{dev['teacher']['value']:.4g}" in texts
    assert f"{sum(cache.bytes.values()):,} bytes)" in " ".join(texts)
    record = cache.manifest
    for sha256 in (
        record["plan"]["sha256"],
        record["teacher"]["weights_sha256"],
        record["plan"]["config"]["corpus"]["sha256"],
        cache.completion["contents"] if cache.completion else "",
        made.facts.students[0].weights["model.safetensors"]["sha256"],
    ):
        assert sha256 in texts
    assert {"1.50", "7.25", "0.5 (0.4 to 0.6)"} <= set(texts)


def test_markdown_says_what_the_page_says(made: Report, place: Path) -> None:
    text = (place / "out.md").read_text("utf-8")
    for section in made.page.sections:
        assert f"## {section.title}\n" in text
    cells = {
        c.strip(" `") for line in text.splitlines() if line[:1] == "|" for c in line.split("|")
    }
    parsed = Parsed(made.page.html())
    missing = [t for t in parsed.texts if t and t not in text and t not in cells]
    assert [t for t in missing if not t.startswith(":root")] == []
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (place / target).is_file()
    assert text.count("![") == parsed.tags["img"]


def test_what_is_not_known_is_said_with_the_way_to_it(made: Report) -> None:
    notes = list(made.facts.unknown())
    assert any(note.startswith("plain: no dev set") for note in notes)
    assert any(note.startswith("plain: not scored") and "--eval" in note for note in notes)
    assert not any(note.startswith("scored:") for note in notes)
    page = made.page.html()
    assert "Nothing is known of the classes and slices" in page
    assert made.to_json()["notes"] == notes


def test_a_student_alone_tells_what_it_noted_of_its_cache(
    plain: TrainResult, cache: Cache, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(plain.folder, moved)
    found = report(moved)
    (noted,) = found.facts.caches
    assert (noted.folder, noted.fidelity) == (None, cache.fidelity)
    page = require_portable(found.page.html())
    assert "Its bytes are not known: its folder is not among those named." in page.texts
    assert f"{cache.plan.tokens:,} tokens" in found.page.html()


def older(folder: Path) -> None:
    """What a version that noted less left behind."""
    record = json.loads((folder / "cache.json").read_text())
    kept = {"plan": record["plan"], "teacher": {"name": "t", "class": "BertModel"}}
    (folder / "cache.json").write_text(json.dumps(kept))
    (folder / "metrics.json").write_text(json.dumps({"steps": 4, "epochs": 1.0}))


def of_another_version(folder: Path) -> None:
    (folder / "recipe.toml").write_text('name = "r"\n[losses.unheard_of]\nweight = 1.0\n')


def unfinished(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    (folder / "training_log.json").unlink()


def damaged(folder: Path) -> None:
    for name in ("metrics.json", "training_log.json", "recipe.toml", "cache.json"):
        (folder / name).write_text("{ not")


def diverged(folder: Path) -> None:
    log = json.loads((folder / "training_log.json").read_text())
    (folder / "training_log.json").write_text(json.dumps([{**log[0], "loss": None}]))


@pytest.mark.parametrize(
    ("harm", "note"),
    [
        (older, "no dev set"),
        (of_another_version, "its recipe is another version's: unknown loss 'unheard_of'"),
        (unfinished, "training has not ended: no checkpoint is written"),
        (damaged, "cache.json is damaged"),
        (diverged, "no dev set"),
    ],
)
def test_a_folder_that_lacks_something_is_told_of_all_the_same(
    harm: Callable[[Path], None], note: str, plain: TrainResult, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(plain.folder, folder)
    harm(folder)
    found = report(folder)
    require_portable(found.page.html())
    assert any(one.startswith(f"student: {note}") for one in found.facts.unknown())


def test_whatever_names_hold_is_text_on_the_page(plain: TrainResult, tmp_path: Path) -> None:
    folder = tmp_path / "<b>student$x$ `"
    shutil.copytree(plain.folder, folder)
    record = json.loads((folder / "cache.json").read_text())
    record["plan_config"]["corpus"]["classes"] = [HOSTILE, "b"]
    record["teacher"]["name"] = HOSTILE
    (folder / "cache.json").write_text(json.dumps(record))
    each = {HOSTILE: {"f1": 0.5, "f1_interval": [0.25, 0.75], "documents": 3}}
    scores = {"task": "text-classification", "documents": 3, "file": HOSTILE, "micro_f1": 0.5}
    found = {**scores, "classes": each, "teacher": {"micro_f1": 0.75, "classes": each}}
    (folder / "evaluation.json").write_text(json.dumps(found))
    made = report(folder)
    parsed = require_portable(made.page.html())
    assert HOSTILE in parsed.texts
    assert "0.5 (0.25 to 0.75)" in parsed.texts
    text = made.page.markdown()
    for line in text.splitlines():
        outside = re.sub(r"`[^`]*`", "", line)
        assert "<script" not in outside
        assert "<b>" not in outside
        assert not re.search(r"(?<![!\\])\[a\]", outside)
    rows = [line for line in text.splitlines() if line.startswith("| &lt;script")]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_slices_have_a_row_each_with_what_is_lost_on_them(
    plain: TrainResult, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    shutil.copytree(plain.folder, folder)
    whole = {"documents": 9, "value": 0.5, "interval": [0.25, 0.75]}
    drop = {"value": 0.125, "interval": [0.0, 0.375]}
    rows = [
        {**whole, "slice": HOSTILE, "documents": 7, "teacher": whole, "drop": drop},
        {**whole, "slice": None, "documents": 2, "value": None, "teacher": whole, "drop": drop},
    ]
    told = {"metric": "accuracy", "all": {**whole, "teacher": whole, "drop": drop}, "rows": rows}
    scores = {"task": "text-classification", "documents": 9, "accuracy": 0.5}
    found = {**scores, "slices": {"domain": told}}
    (folder / "evaluation.json").write_text(json.dumps(found))
    texts = require_portable(report(folder).page.html()).texts
    assert {HOSTILE, "(none)", "lost", "0.5 (0.25 to 0.75)", "0.125 (0 to 0.375)"} <= set(texts)


def sweep(folder: Path) -> Path:
    """A sweep of two students, one of which failed."""
    dev, teacher = Mean(mean=0.5, sd=0.25, n=2), Mean(mean=0.75, sd=None, n=1)
    small = {"bytes": 2_000_000, "p50_ms": 1.5, "p95_ms": 2.0, "parameters": 1000}
    worst = Worst(
        student="a",
        where=f"domain={HOSTILE}",
        documents=41,
        drop=0.125,
        interval=(0.0, 0.375),
        metric="accuracy",
    )
    record = Record(
        cache="train.cache",
        teacher="teacher",
        metric="accuracy",
        higher_is_better=True,
        dev={"source": "dev.csv", "documents": 96},
        eval=None,
        measured=None,
        axes=("layers", "seed"),
        students=(
            Student(name="a", folder="a", settings={"seed": 0}, state="trained"),
            Student(name="b", folder="b", settings={"seed": 1}, state="failed", error="no memory"),
        ),
        rows=(
            Row(name="layers 2", who="student", kind="int8", settings={}, dev=dev, picked=True,
                front=("bytes", "ms"), worst=worst, **small),
            Row(name="teacher", who="teacher", kind="fp32", settings={}, dev=teacher,
                **{**small, "bytes": 9_000_000}),
            Row(name="teacher", who="teacher", kind="int8", settings={}, **small),
        ),
        pick="a",
        by=("domain",),
    )  # fmt: skip
    folder.mkdir()
    write_record(folder, record)
    return folder


def test_a_sweep_is_told_with_the_student_it_picked(plain: TrainResult, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep")
    shutil.copytree(plain.folder, folder / "a")
    made = report(folder)
    assert [one.name for one in made.facts.students] == ["sweep/a"]
    parsed = require_portable(made.page.html())
    assert {"0.5 ± 0.25 (of 2)", "layers 2 (picked)", "bytes, ms"} <= set(parsed.texts)
    assert {f"domain={HOSTILE} (41 documents)", "0.125 (0 to 0.375)"} <= set(parsed.texts)
    assert any(alt.startswith("accuracy against MB") for alt in parsed.of("img", "alt"))
    assert "sweep: b failed: no memory" in made.facts.unknown()
    assert json.dumps(made.to_json())
    (told,) = made.to_json()["sweeps"]
    assert told["record"]["pick"] == made.facts.sweeps[0].record.pick
    whole = made.facts.sweeps[0].record
    assert whole is not None
    write_record(folder, replace(whole, metric="entity_f1"))
    alts = require_portable(report(folder).page.html()).of("img", "alt")
    assert any(" against MB" in alt for alt in alts)
    (folder / RECORD).write_text("{")
    assert "damaged" in next(report(folder).facts.unknown())


def test_a_sweep_shows_its_table_in_a_notebook_and_keeps_whole_numbers_whole(
    tmp_path: Path,
) -> None:
    folder = sweep(tmp_path / "sweep")
    shown = SweepResult(folder, read_record(folder))
    assert "layers 2 (picked)" in Parsed(shown._repr_html_()).texts
    assert "<img" not in shown._repr_html_()
    shown.plot()
    (source,) = Parsed(shown._repr_html_()).of("img", "src")
    assert source.startswith("data:image/png;base64,")
    rows = shown.table().to_csv(index=False).splitlines()
    assert [row.split(",")[rows[0].split(",").index("dev_n")] for row in rows[1:]] == ["2", "1", ""]


def test_a_sweep_that_was_not_shipped_is_drawn_by_its_parameters(tmp_path: Path) -> None:
    record = read_record(sweep(tmp_path / "sweep"))
    costs: Json = {"bytes": None, "p50_ms": None, "p95_ms": None, "front": ()}
    rows = tuple(replace(row, **costs, parameters=99) for row in record.rows)
    unknown = tuple(replace(row, parameters=None) for row in rows)
    drawn = [
        SweepResult(tmp_path, replace(record, rows=some)).plot(tmp_path / "p.png").read_bytes()
        for some in (rows, unknown)
    ]
    assert drawn[0] != drawn[1]


def test_folders_of_nothing_a_report_tells_of_are_refused(
    place: Path, plain: TrainResult, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    with pytest.raises(ConfigError, match="not the folder of anything a report tells of: a sweep"):
        report(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="name one or more"):
        report()
    for given in ({"teacher": classifier}, {"by": "label"}):
        with pytest.raises(ConfigError, match="--eval"):
            report(plain.folder, **given)
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(ConfigError, match=r"mine\.html is there and is no report"):
        report(plain.folder, out=tmp_path / "mine.html")
    kdcache.plan(
        corpus, tokenizer=classifier, task="text-classification", out=tmp_path / "p", limit=4
    )
    with pytest.raises(CacheError, match="is a plan"):
        report(tmp_path / "p")


def test_documents_that_are_named_score_the_students(
    plain: TrainResult, corpus: Path, classifier: Path
) -> None:
    made = report(plain.folder, eval_file=corpus, teacher=classifier, by="label")
    (student,) = made.facts.students
    assert student.evaluation is not None
    assert (student.evaluation["file"], student.evaluation["documents"]) == ("sentences.csv", 240)
    assert student.evaluation["teacher"]["accuracy_interval"]
    assert "not scored" not in " ".join(made.facts.unknown())
    texts = Parsed(made.page.html()).texts
    for row in student.evaluation["slices"]["label"]["rows"]:
        low, high = row["interval"]
        assert row["slice"] in texts
        assert f"{row['value']:.4g} ({low:.4g} to {high:.4g})" in texts
    assert made._repr_html_().count("<img") == len(list(made.page.pictures))


def test_a_teacher_runs_once_for_students_that_read_alike(
    plain: TrainResult, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(plain.folder, tmp_path / "other"))
    made = report(plain.folder, other, eval_file=corpus, teacher=classifier)
    one, two = (student.to_json()["evaluation"] for student in made.facts.students)
    assert one["teacher"] == two["teacher"]  # to the time it took
    assert one["documents_per_s"] != two["documents_per_s"]


def test_the_command_line_writes_a_report_and_says_what_is_not_known(
    plain: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcache_cli.main import main

    given = ["report", str(plain.folder), "--out", str(tmp_path / "r.html"), "--quiet"]
    assert main(given) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{tmp_path / 'r.html'}  " in out
    assert "not known: plain: no dev set" in out
    assert main([*given, "--json"]) == 0  # over the report that is there
    told: Json = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["students"]] == ["plain"]
    assert main(["report", str(tmp_path), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {tmp_path} is not the folder of anything")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_a_browser_shows_the_page_without_a_network(made: Report, place: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no headless browser is installed ({', '.join(BROWSERS)})")
    narrow = place / "narrow.html"
    narrow.write_text('<iframe src="out.html" style="width:360px;height:3000px"></iframe>')
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    done = subprocess.run(
        [*command, "--allow-file-access-from-files", narrow.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out.html" in done.stdout


def test_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    assert unique_names(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "y"]
    assert unique_names(["a/x", "z/a/x"]) == ["a/x", "z/a/x"]
    assert unique_names(["x"]) == ["x"]
    assert unique_names(["s3://bucket/c", "c"]) == ["bucket/c", "c"]


def test_a_model_is_on_the_front_unless_another_is_better_for_no_more() -> None:
    models = [(0.9, 10.0), (0.8, 5.0), (0.8, 6.0), (0.7, 20.0), (0.8, 5.0)]
    assert on_front(models) == [True, True, False, False, True]
    assert on_front([(0.2, 1.0), (0.1, 2.0), (0.3, 3.0)], higher=False) == [True, True, False]


def test_parts_say_the_same_as_html_and_as_markdown() -> None:
    picture = Picture("p", "<svg/>", "a [b]")
    table = Table(("", "n"), (("a|b", "`c` <d>"),), figures=True)
    section = Section("S", (Text("t & `<u>`"), Points(("one",)), table, picture))
    assert section.markdown("files") == (
        "## S\n\nt & `<u>`\n\n- one\n\n"
        "|  | n |\n| --- | ---: |\n| a\\|b | `c` &lt;d> |\n\n![a (b)](files/p.svg)"
    )
    page = section.html()
    assert "<p>t &amp; <code>&lt;u&gt;</code></p>" in page
    assert '<th scope="row">a|b</th><td><code>c</code> &lt;d&gt;</td>' in page
    assert list(section.drawn()) == [picture]
    assert table.turned().rows == (("n", "`c` <d>"),)


def test_caches_and_plans_show_themselves_in_a_notebook(cache: Cache) -> None:
    for shown, words in (
        (cache._repr_html_(), ("teacher", f"{sum(cache.bytes.values()):,} bytes")),
        (cache.plan._repr_html_(), (cache.plan.sha256, f"{cache.plan.tokens:,}")),
    ):
        assert Parsed(shown).open == []
        for word in words:
            assert word in shown


def test_a_result_shows_its_curves_in_a_notebook(result: TrainResult) -> None:
    curves = result.curves()
    assert curves is not None
    best = result.metrics["dev"]["best"]["value"]
    assert f"the best {best:.4g} at step" in curves.alt
    assert "teacher" in curves.alt
    shown = result._repr_html_()
    assert curves.html() in shown
    assert f"{result.metrics['evaluation']['accuracy']:.4g}" in shown
