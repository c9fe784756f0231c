"""The README and the pages of docs/ are true: what they show runs, where they point to is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers

import kdcache
from kdcache.corpora.standard_library import Docstring
from tests.conftest import bert_config, save_teacher
from tests.pages import (
    DOCS,
    PAGES,
    README,
    ROOT,
    SLOW,
    blocks,
    calls_of,
    links,
    prose,
    run_console,
    run_python,
)

CONTRIBUTING = ROOT / "CONTRIBUTING.md"

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MASKED_LM = "google-bert/bert-base-uncased"
"""What the README begins with; a folder of that name is taken for it."""


def stand_ins(folder: Path, tokenizer: Path, sentences: list[Docstring]) -> Path:
    """The files that the pages name, small: encoders of six layers and labelled sentences."""
    torch.manual_seed(0)
    encoder = transformers.BertModel(bert_config(tokenizer, num_hidden_layers=6))
    (folder / ENCODER).mkdir(parents=True)
    save_teacher(folder / ENCODER, tokenizer, encoder)
    (folder / MASKED_LM).mkdir(parents=True)
    masked_lm = transformers.BertForMaskedLM(bert_config(tokenizer, num_hidden_layers=1))
    save_teacher(folder / MASKED_LM, tokenizer, masked_lm)
    rows = [(s.text.replace("\t", " ").replace("\n", " "), s.package) for s in sentences]
    for i, name in enumerate(("reviews", "labelled", "dev", "test")):
        lines = ["text\tlabel", *("\t".join(row) for row in rows[i::4])]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, sentences: list[Docstring]
) -> Path:
    """Where the commands run, the README's first: the other pages go on with what it made."""
    return stand_ins(tmp_path_factory.mktemp("shop"), tokenizer, sentences)


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 250


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in a link."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_links_and_images_of_a_page_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def test_every_picture_is_on_a_page() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target in links(page)}
    assert set(DOCS.glob("*.png")) <= shown


def test_the_commands_of_the_readme_run_and_print_what_it_shows(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    run_console(blocks(README, "console"), skipped=SLOW)


@pytest.mark.slow
def test_all_commands_of_the_readme_run_the_shipped_student_too(
    tmp_path: Path,
    tokenizer: Path,
    sentences: list[Docstring],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(stand_ins(tmp_path, tokenizer, sentences))
    run_console(blocks(README, "console"))


COMMANDS = ["fidelity.md", "store.md", "kernels.md", "scores.md", "sweep.md"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_a_page_run(name: str, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    run_console(blocks(DOCS / name, "console"))


@pytest.mark.slow
def test_the_commands_of_the_page_of_methods_run(
    tmp_path: Path,
    tokenizer: Path,
    sentences: list[Docstring],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the README's, whose cache they go on with; they train a dozen students."""
    monkeypatch.chdir(stand_ins(tmp_path, tokenizer, sentences))
    run_console(blocks(README, "console"), skipped=SLOW)
    run_console(blocks(DOCS / "methods.md", "console"))


def test_the_python_of_the_readme_calls_what_is_there() -> None:
    called = list(calls_of(blocks(README, "python"), "kdcache"))
    assert {"teach", "build", "train", "evaluate", "ship"} <= {name for name, _, _ in called}
    for name, count, named in called:
        inspect.signature(getattr(kdcache, name)).bind(*range(count), **dict.fromkeys(named))


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    tokenizer: Path,
    sentences: list[Docstring],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(stand_ins(tmp_path, tokenizer, sentences))
    names = run_python(blocks(README, "python"))
    assert names["student"].folder.is_dir()


@pytest.mark.parametrize("name", ["fidelity.md", "store.md", "kernels.md", "methods.md"])
def test_the_python_of_a_page_runs(name: str) -> None:
    run_python(blocks(DOCS / name, "python"))
