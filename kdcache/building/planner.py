"""Tokenise a corpus into a plan, as a stream: memory does not grow with the corpus's text."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from kdcache.building.shuffle import PlanBuilder
from kdcache.corpora.documents import Corpus, Unit, open_corpus
from kdcache.errors import ConfigError, CorpusError
from kdcache.labels import LABEL_KINDS, UNKNOWN, LabelType, Outputs, resolve
from kdcache.models import Tokenizer, check_classifier, classes_of, load_tokenizer
from kdcache.plans import Plan, PlanConfig, round_up
from kdcache.progress import Progress, Shown, quiet, short, shown, track
from kdcache.store import Place, locate, open_plan, write_plan
from kdcache.store.io.durable_writes import remove_tree, sweep, writing
from kdcache.tasks import Task, as_task

SCRATCH = ".kdcache-plan-"
MAX_PART = 2**31  # rows of a part, in any store
MAX_VIEWS = 32_767  # a view's number is stored as int16


class PlanOptions(TypedDict, total=False):
    """Options of a plan, and of a build that makes its own.

    Attributes:
        text_columns: one column, or two for text pairs; guessed from their names if not given.
        label_column: column of the labels, or several of them: one for each class or value that a
            document may have; None guesses it and "" means there are none.
        ignore_columns: columns that may go unused although they look like text.
        label_type: "class", "float", "multi-label" (several classes a document), "vector" (several
            values) or "auto", which looks at the teacher and the labels.
        limit: take the first documents only.
        unit: of plain text files, a document is a "line" or the whole "file".
        max_length: tokens a document may have. Classification cuts longer ones off; language
            modelling cuts them into windows. Default 128.
        part_tokens: most tokens a part may hold, the work lost when a build is killed (262,144).
        seed: of the documents' order and the masks.
        mask_probability: share of tokens that tasks which mask do mask (0.15).
        views: for tasks that mask, how often each document is masked anew (1).
    """

    text_columns: Sequence[str]
    label_column: str | Sequence[str] | None
    ignore_columns: Sequence[str]
    label_type: LabelType
    limit: int | None
    unit: Unit
    max_length: int
    part_tokens: int
    seed: int
    mask_probability: float
    views: int


def plan(
    corpus: Any,
    *,
    tokenizer: str | Path,
    task: str | Task,
    out: Place,
    progress: Shown = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Tokenise `corpus` and write its plan, a Zarr group, to `out`.

    Args:
        corpus: a path, folder, glob or list of those, a `datasets.Dataset` or a
            `pandas.DataFrame`.
        tokenizer: folder or hub name; where it is also a classifier, its class names are used.
        task: a name of `TASKS`, such as "text-classification" or "masked-lm".
        out: folder or URL to write; the same plan there already is left as it is.
        options: see `PlanOptions`.

    Raises:
        CorpusError: the corpus cannot be read, or its labels cannot be learnt from.
        ConfigError: an option that the task does not have, or that is out of range.
        ModelError: the tokenizer cannot be loaded, or lacks what the task needs.
        MismatchError: `out` holds another plan.
    """
    progress = shown(progress)
    task = as_task(task)
    loaded = load_tokenizer(tokenizer)
    check_classifier(tokenizer, task)
    with scratch_folder(out) as scratch:
        made = make_plan(
            corpus,
            loaded,
            scratch=scratch,
            task=task,
            classes=classes_of(tokenizer, task),
            progress=progress,
            **options,
        )
        write_plan(out, made)
    return open_plan(out)


@contextmanager
def scratch_folder(out: Place | None, *, anywhere: bool = False) -> Iterator[Path]:
    """A temporary folder for the files behind a plan, on the disk of `out` where that is given.

    `anywhere`: where that cannot be written to, which nothing else will ask of it.
    """
    root = None if out is None else locate(out)
    parent = root.resolve().parent if isinstance(root, Path) else Path(tempfile.gettempdir())
    with writing(root or parent):
        try:
            made = _fresh_folder(parent)
        except OSError:
            if not anywhere:
                raise
            made = _fresh_folder(Path(tempfile.gettempdir()))
    try:
        yield made
    finally:
        remove_tree(made)


def _fresh_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, f"{SCRATCH}*")
    return Path(tempfile.mkdtemp(dir=parent, prefix=SCRATCH))


def make_plan(
    corpus: Any,
    tokenizer: Tokenizer,
    *,
    scratch: Path,
    task: str | Task,
    classes: Outputs = UNKNOWN,
    new_classes: bool = False,
    like: Sequence[str] = (),
    progress: Progress = quiet,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Tokenise a corpus into a plan whose tokens lie in files of the folder `scratch`.

    `classes` are the teacher's outputs, as far as they are known; `new_classes`: there is
    no teacher yet, and it will have those of the corpus. Where text columns are not named, those of
    `like` are taken if they are there.
    """
    task = as_task(task)
    opened = open_documents(corpus, task, options, like)
    if not task.pairs and len(opened.text_columns) > 1:
        raise ConfigError(
            f"{task} takes one text column, not {' and '.join(opened.text_columns)}; "
            "name one with --text-column"
        )
    if opened.unused:
        progress.say(f"columns not read: {_names(opened.unused)}")
    config = _config(task, opened, tokenizer, options)
    builder = PlanBuilder(scratch, tokenizer)
    documents = track(
        progress, opened, f"tokenising {short(corpus)}", unit="documents", total=opened.limit
    )
    with writing(scratch.parent):
        found = builder.fill(documents, config)
    if opened.late:
        progress.say(f"columns not read, which only later rows have: {_names(opened.late)}")
    labels = None
    if task.labelled:
        labels = resolve(
            builder.labels,
            label_type=options.get("label_type", "auto"),
            kind=classes.kind,
            known=classes.names,
            count=classes.count,
            columns=opened.label_columns if len(opened.label_columns) > 1 else (),
            corpus_names=opened.class_names,
            new=new_classes,
        )
        if not LABEL_KINDS[labels.kind].serves(task):
            raise CorpusError(
                f"the labels are {labels.kind}, which {task} has none of: its kinds of label "
                f"are {', '.join(task.kinds)}; name another column with --label-column"
            )
        found["classes"] = labels.classes
        for note in labels.notes:
            progress.say(note)
    config = replace(
        config,
        label_kind=labels.kind if labels else "tokens",
        corpus={**config.corpus, **found},
    )
    with writing(scratch.parent):
        return builder.arrange(config, labels)


def open_documents(
    corpus: Any, task: Task, options: PlanOptions, like: Sequence[str] = ()
) -> Corpus:
    """A corpus as `make_plan` of the same arguments reads it."""
    return open_corpus(
        corpus,
        text_columns=options.get("text_columns", ()),
        label_column=options.get("label_column"),
        ignore_columns=options.get("ignore_columns", ()),
        limit=options.get("limit"),
        unit=options.get("unit", "line"),
        labelled=task.labelled,
        like=like,
        words=task.words,
        tags=task.tags,
    )


def _names(columns: Iterable[str]) -> str:
    return ", ".join(column or "(unnamed)" for column in columns)


def _config(task: Task, corpus: Corpus, tokenizer: Tokenizer, options: PlanOptions) -> PlanConfig:
    """Check the options; what tokenising tells is filled in afterwards."""
    max_length = options.get("max_length", 128)
    part_tokens = options.get("part_tokens", 262_144)
    probability, views = options.get("mask_probability", 0.15), options.get("views", 1)
    seed = options.get("seed", 0)
    if max_length < 8:
        raise ConfigError(f"max_length must be 8 or more; got {max_length}")
    if not max_length <= part_tokens <= MAX_PART or part_tokens != round_up(part_tokens):
        raise ConfigError(
            f"part_tokens must be a multiple of 128 (of 1,024 beyond 16,384) from "
            f"max_length ({max_length}) to {MAX_PART:,}; got {part_tokens}"
        )
    if not 0 < probability < 1:
        raise ConfigError(f"mask_probability must lie between 0 and 1; got {probability}")
    if not 1 <= views <= MAX_VIEWS:
        raise ConfigError(f"views must lie in [1, {MAX_VIEWS:,}]; got {views}")
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more; got {seed}")
    given: dict[str, Any] = {"mask_probability": probability, "views": views}
    return PlanConfig(
        task=task.name,
        label_kind="tokens",
        tokenizer=tokenizer.identity | {name: getattr(tokenizer, name) for name in task.ids},
        corpus={
            "text_columns": list(corpus.text_columns),
            "label_column": corpus.label_column if task.labelled else None,
        },
        max_length=max_length,
        seed=seed,
        part_tokens=part_tokens,
        **{name: given[name] for name in task.options},
    )
