"""Teach: from labelled documents and an encoder to a teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import set_seed

from kdcache.building.planner import PlanOptions, scratch_folder
from kdcache.errors import require_path
from kdcache.evaluation.score_tables import score_table
from kdcache.labels import LabelType
from kdcache.manifest import Json
from kdcache.models import Tokenizer, load_tokenizer
from kdcache.progress import Progress, Shown, short, shown
from kdcache.rendering.parts import fields
from kdcache.store.io.durable_writes import remove_tree, writing
from kdcache.tasks import Task
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.teaching.card import write_card
from kdcache.teaching.data import Data, read_data, seen_before
from kdcache.teaching.encoder import load_encoder, require_encoder
from kdcache.teaching.folder import check_folder
from kdcache.teaching.grid import Grid
from kdcache.teaching.settings import ClassWeights, Settings, rates_of, require_taught
from kdcache.teaching.tuning import arguments
from kdcache.training.dev_options import DevOptions, share_of
from kdcache.training.evaluation import check_evaluation, check_labels, same_columns
from kdcache.training.options import on_cpu
from kdcache.training.run_folder import CHECKPOINTS, METRICS, write_json


@dataclass(frozen=True)
class TeachResult:
    """A taught teacher.

    Attributes:
        folder: model, tokenizer, model card and `metrics.json`.
        metrics: settings, class weights, the start, every point of the grid, the one chosen, scores
            on the dev documents under "dev", those on an evaluation file under "evaluation", with
            the number of its documents that were "seen": their text was taught or chosen on.
    """

    folder: Path
    metrics: Json

    def __repr__(self) -> str:
        chosen, by = self.metrics["chosen"], self.metrics["chosen_by"]
        return (
            f"<TeachResult {self.folder}: learning rate {chosen['learning_rate']}, epoch "
            f"{chosen['epoch']}, {by} {self.metrics['dev'][by]:.4g} on dev>"
        )

    def _repr_html_(self) -> str:
        chosen, sides = self.metrics["chosen"], {"dev": self.metrics["dev"]}
        if scores := self.metrics.get("evaluation"):
            sides[str(scores["file"])] = scores
        rows = {
            "teacher": f"`{self.folder}`",
            "learning rate": f"{chosen['learning_rate']:g}",
            "epoch": str(chosen["epoch"]),
        }
        scored = score_table(sides, TEXT_CLASSIFICATION.name, "dev")
        return fields(rows.items()).html() + scored.html()


def teach(
    encoder: str | Path,
    train: Any,
    *,
    out: str | Path,
    task: str | Task = "text-classification",
    dev: Any = None,
    dev_split: float | str = 0.1,
    eval_file: Any = None,
    epochs: int = 4,
    learning_rates: float | Sequence[float] = (5e-5, 2e-4),
    class_weights: ClassWeights = "auto",
    batch_size: int = 32,
    max_length: int = 128,
    seed: int = 0,
    device: str = "auto",
    text_columns: Sequence[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Sequence[str] = (),
    label_type: LabelType = "auto",
    limit: int | None = None,
    progress: Shown = None,
) -> TeachResult:
    """Fine-tune `encoder` on the labelled documents of `train` into a teacher in the folder `out`.

    A head is fitted to the encoder's states first; then the whole is fine-tuned once for each
    learning rate and scored on dev documents after each epoch. The best of all these is kept.

    Args:
        encoder: folder or hub name of a model that transformers loads as a classifier.
        train: a corpus, as in `plan`. Documents without a label help to fit the pooler.
        task: "text-classification"; labels that are numbers with a point, or `label_type="float"`,
            make it a regression.
        dev: labelled documents to choose on, a corpus too; else
        dev_split: the share of the labelled documents of `train`, 0.1 or "10%" of every class, that
            is set aside for it.
        eval_file: labelled documents to score the teacher on when it is done; not chosen on.
        epochs: passes over the documents; the rate falls to 0 over all of them.
        learning_rates: those that are tried, each from the same start.
        class_weights: "balanced" weighs each class in the loss by N / (C * count), at most 10, and
            chooses by macro-F1; "auto" does so where the largest class has three times the labels
            of the smallest, or more; "none" never does.
        batch_size: documents of a step.
        max_length: tokens a document may have; longer ones are cut off.
        seed: of the split, the head, dropout and the order of documents.
        device: "auto", "cpu" or "cuda", the first GPU this process sees.
        text_columns, label_column, ignore_columns, label_type, limit: of `train`, as in `plan`.

    Called again after it was stopped, it goes on behind the last learning rate that it finished.
    The same seed gives the same weights on a CPU, bit for bit. Seeds torch's, numpy's and Python's
    global generators.

    Raises:
        ConfigError: a setting cannot work, or a folder cannot be used.
        CorpusError: labels cannot be learnt from.
        ModelError: the encoder does not fit.
        MismatchError: `out` holds a run with other settings. Nothing is written where one of these
            is raised.
        CacheError: the folder cannot be written.
    """
    progress, folder = shown(progress), Path(out)
    require_path("the encoder", encoder)
    require_path("the teacher's folder", out, "path")
    require_taught(task)
    settings = Settings(
        epochs=epochs,
        learning_rates=rates_of(learning_rates),
        dev_split=share_of(dev_split),
        class_weights=class_weights,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
    )
    cpu = on_cpu(device, "teach")
    check_folder(folder)
    config, tokenizer = require_encoder(encoder), load_tokenizer(encoder)
    columns: PlanOptions = {
        "text_columns": text_columns,
        "label_column": label_column,
        "ignore_columns": ignore_columns,
        "label_type": label_type,
        "limit": limit,
    }
    started = time.perf_counter()
    with scratch_folder(None) as scratch:
        data = read_data(train, dev, tokenizer, settings, scratch, columns, progress)
        known = data.train.plan.config
        chosen_on = DevOptions(file=str(dev)) if isinstance(dev, str | Path) else None
        evaluation = check_evaluation(eval_file, None, known, chosen_on)
        args = arguments(settings, folder / CHECKPOINTS, cpu=bool(cpu))
        set_seed(seed)
        plans = [data.train.plan, data.dev.plan]
        loaded = load_encoder(encoder, config, data.names, plans, tokenizer)
        seen = 0
        if evaluation is not None:
            check_labels(evaluation, loaded.model.config, TEXT_CLASSIFICATION)
            seen = _seen(data, eval_file, tokenizer, settings, scratch, progress)
        grid = Grid(encoder, loaded, data, settings, args, folder, progress)
        metrics = grid.run(tokenizer)
        if eval_file is not None:
            scores = _evaluate(folder, eval_file, known.corpus, progress)
            metrics["evaluation"] = {"file": short(eval_file), "seen": seen, **scores}
    metrics["seconds"] = time.perf_counter() - started
    with writing(folder):
        write_card(folder, metrics)
        write_json(folder / METRICS, metrics)
        remove_tree(folder / CHECKPOINTS)
    return TeachResult(folder, metrics)


def _evaluate(folder: Path, file: Any, corpus: Json, progress: Progress) -> Json:
    from kdcache.evaluation.evaluator import evaluate

    return evaluate(folder, file, progress=progress, **same_columns(corpus, file))


def _seen(
    data: Data,
    file: Any,
    tokenizer: Tokenizer,
    settings: Settings,
    scratch: Path,
    progress: Progress,
) -> int:
    """Documents of an evaluation file that are taught or chosen on, of which a person is told."""
    seen, of = seen_before(data, file, tokenizer, settings, scratch)
    if seen:
        progress.say(
            f"{seen:,} of the {of:,} documents of {short(file)} (--eval) have the text of one that "
            "the teacher is taught or chosen on: the scores there say too much"
        )
    return seen
