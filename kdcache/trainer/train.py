"""Train a student from a cache; the teacher is neither in memory nor on the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import wait_for_everyone
from transformers.trainer_utils import enable_full_determinism, set_seed

from kdcache.documents import CachedDocuments
from kdcache.errors import ConfigError, ModelError, require_path
from kdcache.identity import say_unvouched
from kdcache.losses import CacheFacts, Objective
from kdcache.manifest import Json
from kdcache.models import check_alone, load_student, student_shape
from kdcache.models.auto import silent_transformers
from kdcache.models.student import student_config
from kdcache.outdated import outdated
from kdcache.progress import Progress, Shown, quiet, short, shown
from kdcache.recipe import Recipe, load_recipe
from kdcache.store import Cache, Place, open_cache
from kdcache.store.files import remove_tree, writing
from kdcache.trainer.arguments import meant_fields, training_arguments
from kdcache.trainer.card import write_card
from kdcache.trainer.evaluation import check_evaluation, check_labels, same_columns
from kdcache.trainer.folder import (
    CACHE,
    CHECKPOINTS,
    METRICS,
    RECIPE,
    check_folder,
    finish_folder,
    start_folder,
    write_json,
)
from kdcache.trainer.fused import fused_head
from kdcache.trainer.lock import one_run, require_free
from kdcache.trainer.loop import DistillationTrainer, Reporter, make_trainer
from kdcache.trainer.options import (
    check_callbacks,
    require_one_student,
    student_spec,
    with_shorthands,
    with_student,
)
from kdcache.trainer.portion import Parts, agree, choose_parts, documents_of
from kdcache.trainer.ranks import Ranks
from kdcache.trainer.result import TrainResult, run_metrics
from kdcache.trainer.scale import (
    RUN,
    keep_scale,
    require_step,
    require_whole,
    scale_record,
    stored_scale,
)

PROJECTIONS = "kdcache_projections"


def train(
    cache: Place | Cache,
    *,
    recipe: str | Path | Recipe = "kd",
    out: str | Path,
    student: str | Path | None = None,
    init_from_teacher: Sequence[int] | str | None = None,
    config: str | Path | None = None,
    same_tokenizer: bool = False,
    eval_file: str | Path | None = None,
    eval_teacher: str | Path | None = None,
    seed: int | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    resume: bool = False,
    allow_partial: bool = False,
    progress: Shown = None,
) -> TrainResult:
    """Train a student from `cache` by `recipe` into the folder `out`.

    Args:
        recipe: name of a shipped recipe, a file, or a Recipe.
        student: folder or hub name of the checkpoint to start from; or
        init_from_teacher: teacher layers (1 is the first block) whose blocks the student copies; or
        config: folder or file of a configuration whose weights are drawn anew. None of the three
            leaves the choice to the recipe.
        same_tokenizer: your word that a checkpoint without a tokenizer has the cache's vocabulary.
        eval_file: labelled documents to evaluate the student on when it is done.
        eval_teacher: folder or hub name of the teacher, to be scored on them too.
        seed: of new weights, dropout and the order of documents. This and the next four set fields
            of the recipe's [training] table.
        epochs: passes over the documents.
        lr: the highest learning rate.
        batch_size: documents a device takes in a forward.
        device: "auto", "cpu" or "cuda", the first GPU this process sees.
        overrides: fields of the recipe, such as "training.learning_rate=1e-4".
        callbacks: `transformers.TrainerCallback` objects, called at every step, log and checkpoint.
        resume: continue from the last checkpoint in `out`. On a CPU the result equals that of the
            unbroken run bit for bit.
        allow_partial: train on the parts that are committed where the cache lacks some, as while
            it is being built; a run that is resumed keeps to the parts it was started on.

    Under torchrun its processes train one student: the loss of a step is that of all its documents,
    and the first writes. A run that is resumed keeps the documents of a step, whatever the ranks.

    Seeds torch's, numpy's and Python's global generators. Stopped by Ctrl-C or SIGTERM, all ranks
    finish the same step, write a checkpoint and raise KeyboardInterrupt.

    Raises, before anything is loaded, ConfigError for a recipe that cache and student cannot serve
    or a folder that cannot be used, IncompleteError for a cache that lacks parts; ModelError for a
    student that does not fit or a loss that is no longer finite.
    """
    progress = shown(progress)
    require_path("the student's folder", out, "path")
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    say_unvouched(progress, [(source.path, source.manifest["teacher"])])
    for fault in outdated(source.path):
        progress.say(fault)
    parts = choose_parts(source, Path(out) / CACHE, allow_partial=allow_partial, resume=resume)
    chosen = load_recipe(recipe, overrides, meant_fields())
    require_one_student(overrides, student, init_from_teacher, config)
    chosen = with_student(chosen, student, init_from_teacher, config, same_tokenizer)
    given = {"seed": seed, "epochs": epochs, "lr": lr, "batch_size": batch_size, "device": device}
    chosen = with_shorthands(chosen, given, overrides)
    called = check_callbacks(callbacks)
    evaluation = check_evaluation(eval_file, eval_teacher, source.plan.config)
    run = _Run(source, parts, chosen, Path(out), resume=resume, progress=progress)
    if evaluation is not None and source.plan.config.task == "text-classification":
        check_labels(evaluation, student_config(run.spec, source))
    metrics = run.train(called)
    if eval_file is not None and run.first:
        metrics["evaluation"] = _evaluate(run, eval_file, eval_teacher)
        run.record(metrics)
    return TrainResult(run.folder, metrics, run.first)


def _evaluate(run: _Run, file: str | Path, teacher: str | Path | None) -> Json:
    from kdcache.evaluator import evaluate

    known = run.cache if run.parts is None else None  # the teacher's side may not all be there
    scores = evaluate(
        run.folder,
        file,
        cache=known,
        teacher=teacher,
        progress=run.progress,
        **same_columns(run.cache.plan.config.corpus, file),
    )
    return {"file": Path(file).name, **scores}


class _Run:
    """One training run, checked in full when made, from configurations and manifests alone."""

    def __init__(
        self,
        cache: Cache,
        parts: Parts,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool,
        progress: Progress,
    ) -> None:
        self.cache, self.recipe, self.folder = cache, recipe, folder
        self.spec = student_spec(recipe)
        require_free(folder, folder / CHECKPOINTS)
        self.checkpoint = check_folder(folder, recipe, cache, parts, resume=resume)
        self.args = training_arguments(recipe, folder / CHECKPOINTS)
        self.progress = progress if self.first else quiet
        self.notes = self._same_steps()
        seed = self.args.seed
        if self.args.full_determinism:
            enable_full_determinism(seed)
        else:
            set_seed(seed)
        self.parts = agree(parts)
        docs = documents_of(cache, self.parts)
        labelled = np.intersect1d(docs, cache.plan.labelled_docs)
        known = facts(cache, len(labelled))
        self.objective = Objective(recipe.losses, known, student_shape(self.spec, cache))
        self.dataset = CachedDocuments(
            cache,
            self.objective.arrays,
            seed=seed if self.args.data_seed is None else self.args.data_seed,
            window=recipe.data.window if recipe.data.group_by_length else 0,
            docs=labelled if self.objective.hard_only else docs,
        )
        require_step(self.args, len(self.dataset))
        require_whole(self.args, recipe)
        wait_for_everyone()  # or the first could hold and write what another still checks

    def _same_steps(self) -> list[str]:
        """Let a resumed run keep the documents of a step; what a person should know of it."""
        if self.checkpoint is None:
            return []
        record = self.folder / CHECKPOINTS / RUN
        stored = stored_scale(record, self.folder / RECIPE, self.checkpoint)
        return list(filter(None, [keep_scale(self.args, stored)]))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.args.process_index == 0)

    @property
    def label(self) -> str:
        """What is trained, for progress."""
        made = f"{self.recipe.name} from {short(str(self.cache.path))}"
        return f"training {self.folder.name} by {made}"

    def train(self, callbacks: Sequence[Any]) -> Json:
        """Train, write the folder and return the metrics."""
        for note in [*self.objective.notes, *self._portion(), *self.notes]:
            self.progress.say(note)
        student = load_student(self.cache, self.spec, seed=self.args.seed)
        self._settle(student)
        with self._writing():
            return self._train(student, callbacks)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder while training, and start it, in the process that writes."""
        if not self.first:
            yield
            return
        known = (self.folder, self.recipe, self.cache, self.parts)
        fresh = not self.folder.exists()
        try:
            with ExitStack() as stack:
                with writing(self.folder):
                    stack.enter_context(one_run(self.folder, self.folder / CHECKPOINTS))
                    check_folder(*known, resume=self.checkpoint is not None)
                    start_folder(*known, scale_record(self.args))
                yield
        except ConfigError:  # of what transformers only then refuses
            if fresh:
                remove_tree(self.folder)
            raise

    def _train(self, student: Any, callbacks: Sequence[Any]) -> Json:
        keeps_cache = getattr(student.config, "use_cache", None)
        setattr(student, PROJECTIONS, self.objective.projections)
        reporter = Reporter(self.progress, self.label, Ranks(self.args))
        trainer = self._trainer(student, reporter.ranks, [*callbacks, reporter])
        metrics = self._fit(trainer, reporter)
        delattr(student, PROJECTIONS)
        if keeps_cache is not None:
            student.config.use_cache = keeps_cache  # the Trainer turns it off for training
        if self.parts is not None:
            used = {"documents": len(self.dataset), "of": self.cache.plan.documents}
            metrics["partial"] = {**used, "parts": self.parts}
        metrics["parameters"] = sum(p.numel() for p in student.parameters())
        if self.first:
            log, title = trainer.state.log_history, f"{self.recipe.name}: {self.folder.name}"
            with writing(self.folder):
                finish_folder(self.folder, student, self.cache, log, title)
                self.record(metrics)
            remove_tree(self.folder / CHECKPOINTS)
        return metrics

    def record(self, metrics: Json) -> None:
        """Write what is known of the student: the model card and the metrics."""
        write_card(self.folder, self.cache, self.recipe, metrics)
        write_json(self.folder / METRICS, metrics)

    def _portion(self) -> Iterator[str]:
        """What a person should know of a run on part of a cache."""
        if self.parts is not None:
            plan = self.cache.plan
            yield (
                f"training on {len(self.dataset):,} of {plan.documents:,} documents: "
                f"{len(self.parts)} of {plan.parts} parts are there"
            )

    def _trainer(self, student: Any, ranks: Ranks, callbacks: Sequence[Any]) -> DistillationTrainer:
        task = self.cache.plan.config.task
        sample = self.cache.batch(self.cache.plan.docs[:1], [])
        head, note = fused_head(student, task, sample, self.objective, self.args)
        if note:
            self.progress.say(note)
        return make_trainer(
            self.recipe.name,
            task=task,
            head=head,
            objective=self.objective,
            dataset=self.dataset,
            ranks=ranks,
            model=student,
            args=self.args,
            callbacks=list(callbacks),
        )

    def _settle(self, student: Any) -> None:
        """See to it, on the device it trains on, that the student reads every document alone."""
        if not (self.args.fsdp or self.args.deepspeed):  # which place it themselves
            student.to(self.args.device)
        apart = check_alone(
            student,
            self.cache.plan.config.task,
            self.cache.plan,
            name="the student",
            hidden=self.objective.hidden,
            progress=self.progress,
        )
        if apart and self.args.world_size > 1:
            raise ModelError(
                "the student says something else of documents that are padded, and processes do "
                "not keep step on documents of one length at a time: train with one process, or "
                "choose another student"
            )

    def _fit(self, trainer: DistillationTrainer, reporter: Reporter) -> Json:
        if self.checkpoint is not None:
            self.progress.say(f"resuming from {self.checkpoint.name.replace('-', ' ')}")
        start = time.perf_counter()
        with silent_transformers(), reporter.reporting():
            resume_from = None if self.checkpoint is None else str(self.checkpoint)
            trainer.train(resume_from_checkpoint=resume_from)
        if reporter.interrupted:
            reporter.ranks.total([])  # every rank has written its part of the checkpoint
            raise KeyboardInterrupt
        return run_metrics(trainer, reporter, time.perf_counter() - start)


def facts(cache: Cache, labelled: int) -> CacheFacts:
    """What losses ask of a cache of which `labelled` documents with hard labels are used."""
    return CacheFacts(
        task=cache.plan.config.task,
        problem=cache.plan.config.problem,
        signals=cache.signals,
        shape=cache.shape,
        labelled=labelled,
    )
