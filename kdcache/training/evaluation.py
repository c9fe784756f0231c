"""The documents a student is evaluated on when it is trained, looked into before it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcache.corpora.columns import label_columns
from kdcache.corpora.documents import Corpus, columns_of, open_corpus
from kdcache.corpora.files import files_of
from kdcache.corpora.packed import open_bytes
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError
from kdcache.labels import LabelReader, resolve
from kdcache.manifest import Json
from kdcache.models import load_config
from kdcache.models.classifier_outputs import outputs_of
from kdcache.models.student_config import require_trusted
from kdcache.plans import PlanConfig
from kdcache.tasks import TASKS, Task
from kdcache.training.dev_options import DevOptions


def check_evaluation(
    file: Any,
    teacher: str | Path | None,
    config: PlanConfig,
    dev: DevOptions | None = None,
    *,
    head: str = "",
    trust_remote_code: bool = False,
) -> Corpus | None:
    """The documents of an evaluation, if there is one, with the columns it will read.

    Training takes long: a mistyped name or a file without labels shows before it, and so in a dev
    file, and a teacher whose code nobody trusts.

    Raises CorpusError, ConfigError or ModelError.
    """
    if teacher is not None:
        if file is None and dev is None:
            of, file_of = (f" of head {head}", f" {head}=FILE") if head else ("", "")
            raise ConfigError(
                f"a teacher{of} is scored on an evaluation file (--eval{file_of}) or a dev set "
                f"(--dev{file_of}): name one"
            )
        require_trusted(load_config(teacher, trust_remote_code=trust_remote_code))
    chosen_on = None if dev is None else dev.file
    if chosen_on is not None:
        _labelled(chosen_on, config, "--dev", "dev")
        if file is not None:
            _require_apart(chosen_on, file)
    return None if file is None else _labelled(file, config, "--eval", "evaluation")


def _labelled(file: Any, config: PlanConfig, flag: str, kind: str) -> Corpus:
    named = isinstance(file, str | Path)
    if named and not Path(file).exists() and "*" not in str(file):
        raise CorpusError(f"no {kind} file {file}; {flag} names a file of labelled documents")
    task = TASKS[config.task]
    task.require(config.classes or [])
    labelled, columns = task.labelled, same_columns(config.corpus, file)
    corpus = open_corpus(file, labelled=labelled, words=task.words, tags=task.tags, **columns)
    require_as_many_texts(corpus.text_columns, config.corpus["text_columns"], file, flag)
    if labelled and not corpus.label_columns:
        raise CorpusError(
            f"{name_of(file)} has no column of labels: {flag} names labelled documents"
        )
    return corpus


def require_as_many_texts(
    columns: Sequence[str], known: Sequence[str], file: Any, flag: str
) -> None:
    """Raise ConfigError for single texts where a model learns from pairs, or vice versa."""
    if len(columns) != len(known):
        raise ConfigError(
            f"a document of {name_of(file)} ({flag}) is {' and '.join(columns)}, and one that is "
            f"learnt from is {' and '.join(known)}: give its columns these names"
        )


def _require_apart(dev: str | Path, test: Any) -> None:
    """Raise ConfigError if a file is in the dev set and in the test set, compressed or not."""
    tested = {content_digest(path): path for path in data_files(test)}
    for path in data_files(dev):
        other = tested.get(content_digest(path))
        if other is not None:
            raise ConfigError(
                f"{path} (--dev) and {other} (--eval) are the same file, and a score on documents "
                "that a model was chosen on says too much: name two files"
            )


def data_files(source: Any) -> list[Path]:
    """The files that documents are in, of a saved data set too; none of an object of Python."""
    if not isinstance(source, str | Path):
        return []
    saved = sorted(Path(source).glob("*.arrow"))
    return saved or files_of(source)


def content_digest(path: Path) -> str:
    """SHA-256 of what a file holds, uncompressed, in hex."""
    with open_bytes(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_columns(corpus: Json, file: Any) -> dict[str, Any]:
    """The columns a plan was made from, named where the file has them, too."""
    columns = columns_of(file)
    texts, labels = corpus["text_columns"], label_columns(corpus["label_column"])
    return {
        "text_columns": texts if set(texts) <= set(columns) else (),
        "label_column": labels if labels and set(labels) <= set(columns) else None,
    }


def check_labels(corpus: Corpus, config: Any, task: Task) -> None:
    """Raise CorpusError for a label that is none of the classes of a student's configuration.

    So it does where no document has a label.
    """
    reader = LabelReader()
    for document in corpus:
        for label in task.labels_of(document):
            reader.add(label, document.where)
    outputs, columns = outputs_of(config), corpus.label_columns
    found = resolve(
        reader,
        kind=outputs.kind,
        known=outputs.names,
        count=outputs.count,
        corpus_names=corpus.class_names,
        columns=columns if len(columns) > 1 else (),
    )
    if not found.labelled:
        where = f"column {corpus.label_column} of {corpus.tables[0].name}"
        raise CorpusError(f"{where} holds no labels: --eval names labelled documents")
