"""The documents a student is evaluated on when it is trained, looked into before it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kdcache.corpus import Corpus, columns_of, open_corpus
from kdcache.errors import ConfigError, CorpusError
from kdcache.labels import LabelReader, resolve
from kdcache.manifest import Json
from kdcache.models import load_config
from kdcache.models.tokenizer import class_names
from kdcache.plans import PlanConfig


def check_evaluation(
    file: str | Path | None, teacher: str | Path | None, config: PlanConfig
) -> Corpus | None:
    """The documents of an evaluation, if there is one, with the columns it will read.

    Training takes long: a mistyped name or a file without labels shows before it. Raises
    CorpusError, ConfigError or ModelError.
    """
    if teacher is not None:
        if file is None:
            raise ConfigError("a teacher is scored on an evaluation file: name one (--eval)")
        load_config(teacher)
    if file is None:
        return None
    if not Path(file).exists() and "*" not in str(file):
        raise CorpusError(f"no evaluation file {file}; --eval names a file of labelled documents")
    labelled = config.task == "text-classification"
    corpus = open_corpus(file, labelled=labelled, **same_columns(config.corpus, file))
    if labelled and corpus.label_column is None:
        raise CorpusError(f"{file} has no column of labels: --eval names labelled documents")
    return corpus


def same_columns(corpus: Json, file: str | Path) -> dict[str, Any]:
    """The columns a plan was made from, named where the file has them, too."""
    columns = columns_of(file)
    texts, label = corpus["text_columns"], corpus["label_column"]
    return {
        "text_columns": texts if set(texts) <= set(columns) else (),
        "label_column": label if label in columns else None,
    }


def check_labels(corpus: Corpus, config: Any) -> None:
    """Raise CorpusError for a label that is none of the classes of a student's configuration.

    So it does where no document has a label.
    """
    reader = LabelReader()
    for document in corpus:
        reader.add(document.label, document.where)
    names, count = class_names(config), int(config.num_labels)
    found = resolve(reader, known=names, count=count, corpus_names=corpus.class_names)
    if not ((found.ids >= 0) | np.isfinite(found.values)).any():
        where = f"column {corpus.label_column} of {corpus.tables[0].name}"
        raise CorpusError(f"{where} holds no labels: --eval names labelled documents")
