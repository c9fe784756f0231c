"""The demo's corpus is large enough, clean and the same at every reading."""

from collections import Counter

import pytest

from kdcache.corpora.standard_library import Docstring, docstrings, prose


def test_docstrings_are_many_and_their_packages_large(library: list[Docstring]) -> None:
    counts = Counter(docstring.package for docstring in library)
    assert len(library) > 3000
    assert len(counts) > 30
    assert min(counts.values()) >= 40


def test_docstrings_are_unique_collapsed_and_five_words_long(library: list[Docstring]) -> None:
    texts = [docstring.text for docstring in library]
    assert len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) for text in texts)
    assert min(len(text.split()) for text in texts) >= 5


def test_docstrings_leave_out_tests_and_other_peoples_code(library: list[Docstring]) -> None:
    packages = {docstring.package for docstring in library}
    assert {"asyncio", "email", "unittest"} <= packages
    assert packages.isdisjoint({"test", "tests", "site-packages", "idlelib", "lib2to3"})


@pytest.mark.slow
def test_a_second_reading_with_a_higher_bar_is_the_same_list_less_the_small_packages(
    library: list[Docstring],
) -> None:
    counts = Counter(docstring.package for docstring in library)
    assert docstrings(at_least=100) == [d for d in library if counts[d.package] >= 100]


def test_prose_is_long_and_its_paragraphs_unique() -> None:
    paragraphs = prose()
    assert sum(map(len, paragraphs)) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert min(len(paragraph.split()) for paragraph in paragraphs) >= 5
    assert paragraphs == prose()
