"""Tiny encoders and labelled sentences for teachers to be taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdcache.corpora.standard_library import Docstring
from kdcache.teaching import TeachResult, teach
from tests.conftest import bert_config, save_teacher, write_csv

QUICK: dict[str, Any] = {
    "epochs": 2,
    "learning_rates": (2e-3, 1e-3),
    "max_length": 32,
    "batch_size": 16,
    "device": "cpu",
    "progress": False,
}


@pytest.fixture(scope="session")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teaching")


@pytest.fixture(scope="session")
def encoder(lessons: Path, tokenizer: Path) -> Path:
    """A BERT without a head."""
    torch.manual_seed(5)
    model = transformers.BertModel(bert_config(tokenizer, initializer_range=0.2))
    return save_teacher(lessons / "encoder", tokenizer, model)


@pytest.fixture(scope="session")
def labelled(lessons: Path, sentences: list[Docstring]) -> Path:
    """Sentences of three classes, every fourth without its label."""
    rows = [(s.text, "" if i % 4 == 3 else s.package) for i, s in enumerate(sentences)]
    return write_csv(lessons / "labelled.csv", [*rows])


@pytest.fixture(scope="session")
def taught(lessons: Path, encoder: Path, labelled: Path) -> TeachResult:
    """A teacher of the labelled sentences."""
    return teach(encoder, labelled, out=lessons / "taught", eval_file=labelled, **QUICK)
