"""A model folder as evaluation takes it: loaded, and with the plan of the documents it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.building.planner import PlanOptions, make_plan, open_documents
from kdcache.building.training_note import (
    require_same_texts,
    require_trained_vocabulary,
    texts_of,
    trained_plan,
    trained_task,
)
from kdcache.corpora.documents import Corpus
from kdcache.corpora.readers import name_of
from kdcache.errors import CorpusError, ModelError
from kdcache.evaluation.scoring import require_fit, settle
from kdcache.manifest import Json
from kdcache.models import Teacher, Tokenizer, classes_of, load_config, load_teacher, load_tokenizer
from kdcache.models.token_map import vocabulary_apart
from kdcache.plans import Plan
from kdcache.progress import Progress
from kdcache.store import Cache, open_plan, write_plan
from kdcache.tasks import TASKS, Task


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a corpus is read: columns, the first so many documents, tokens of a document at most."""

    text_columns: Sequence[str] = ()
    label_column: str | Sequence[str] | None = None
    ignore_columns: Sequence[str] = ()
    limit: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, and how the documents were planned that it was trained on, where that is known.

    `trusted`: code that comes with the model may run.
    """

    folder: str | Path
    task: Task
    loaded: Teacher
    tokenizer: Tokenizer
    trained: Json
    trusted: bool = False

    def plan(self, file: Any, reading: Reading, scratch: Path, progress: Progress) -> Plan:
        """The documents of `file` as the model reads them, in an empty folder of `scratch`."""
        made = make_plan(
            file,
            self.tokenizer,
            scratch=scratch,
            task=self.task,
            classes=classes_of(self.folder, self.task, trust_remote_code=self.trusted),
            like=texts_of(self.trained),
            progress=progress,
            **_options(self.trained, self.task, reading),
        )
        write_plan(scratch / "plan.zarr", made)
        plan = open_plan(scratch / "plan.zarr")
        if plan.task.labelled and plan.labelled == 0:
            raise CorpusError(
                f"{name_of(file)} has no labels to score against; name them with --label-column"
            )
        return plan

    def require_reads(self, plan: Plan, file: Any, progress: Progress) -> None:
        """Raise ConfigError or ModelError unless the model takes the documents of a plan of `file`,
        and see to it that it says of each what it says of that document alone.
        """
        name = self.loaded.identity["name"]
        require_fit(self.loaded.model, plan, name)
        require_same_texts(self.folder, texts_of(self.trained), plan, file)
        settle(self.loaded.model, plan, name, progress)


def opened(
    folder: str | Path, task: Task, cache: Cache | None, *, device: str, trust_remote_code: bool
) -> Opened:
    """Load the model in a folder; ModelError unless its tokenizer is its own and the cache's."""
    loaded = load_teacher(folder, task=task, device=device, trust_remote_code=trust_remote_code)
    trained = trained_plan(folder, cache, task)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    require_trained_vocabulary(folder, tokenizer)
    if cache is not None and (apart := vocabulary_apart(cache, tokenizer.plain)):
        raise ModelError(f"the model's tokenizer is not the cache's: {apart}; leave --cache out")
    return Opened(
        folder=folder,
        task=task,
        loaded=loaded,
        tokenizer=tokenizer,
        trained=trained,
        trusted=trust_remote_code,
    )


def documents_of(
    file: Any, folder: str | Path, task: Task, cache: Cache | None, reading: Reading
) -> Corpus:
    """The documents of a file as `Opened.plan` reads them; the model in `folder` is not loaded."""
    trained = trained_plan(folder, cache, task)
    return open_documents(file, task, _options(trained, task, reading), texts_of(trained))


def task_of(
    model: str | Path, cache: Cache | None = None, *, trust_remote_code: bool = False
) -> Task:
    """The task of a model folder, from its architecture, and of several that which it was trained
    for, or that of the cache it is compared with; ModelError if it is none of ours.
    """
    heads = load_config(model, trust_remote_code=trust_remote_code).architectures or []
    able = {t.name: t for head in heads for t in TASKS.values() if head.endswith(t.heads)}
    if able:
        known = trained_task(model) or ("" if cache is None else cache.plan.config.task)
        return able.get(known, next(iter(able.values())))
    raise ModelError(f"{model} is a {', '.join(heads) or 'model without a head'}: not for any task")


def _options(trained: Json, task: Task, reading: Reading) -> PlanOptions:
    """Documents are cut and masked as in training, where that is known."""
    planned, asked = trained.get("max_length", 128), reading.max_length
    options: PlanOptions = {"max_length": planned if asked is None else asked}
    if "mask_probability" in task.options and trained:
        options["mask_probability"], options["seed"] = trained["mask_probability"], trained["seed"]
    options["text_columns"], options["label_column"] = reading.text_columns, reading.label_column
    options["ignore_columns"], options["limit"] = reading.ignore_columns, reading.limit
    return options
