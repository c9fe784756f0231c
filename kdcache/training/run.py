"""One training run: checked in full when made, then trained and written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import wait_for_everyone
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import enable_full_determinism, set_seed

from kdcache.errors import ConfigError, ModelError
from kdcache.evaluation.scoring import require_fit, settle
from kdcache.losses import CacheSpec
from kdcache.manifest import Json
from kdcache.models import check_alone, check_taps, load_student, student_sizes
from kdcache.models.auto import silent_transformers
from kdcache.models.recording import members_of
from kdcache.models.run import EQUAL
from kdcache.models.student import student_config
from kdcache.models.student_config import unloadable
from kdcache.models.together import homes, require_one
from kdcache.plans import Docs
from kdcache.progress import Progress, quiet, short
from kdcache.signals import TAP_KINDS
from kdcache.store import Cache
from kdcache.store.io.durable_writes import remove_tree, writing
from kdcache.training.arguments import choose_by, training_arguments
from kdcache.training.card import write_card
from kdcache.training.choosing import Choice, has_ended
from kdcache.training.dev import make_dev
from kdcache.training.documents import CachedDocuments
from kdcache.training.fused_head import fused_head
from kdcache.training.lock import one_run, require_free
from kdcache.training.objective import Objective
from kdcache.training.options import student_spec
from kdcache.training.parts import Parts, agree, documents_of
from kdcache.training.ranks import Ranks
from kdcache.training.recipe import Recipe
from kdcache.training.result import run_metrics
from kdcache.training.run_folder import (
    CHECKPOINTS,
    METRICS,
    RECIPE,
    check_folder,
    finish_folder,
    require_same_dev,
    start_folder,
    write_json,
)
from kdcache.training.scale import (
    RUN,
    keep_scale,
    require_step,
    require_whole,
    scale_record,
    stored_scale,
)
from kdcache.training.trainer import DistillationTrainer, Reporter, make_trainer

PROJECTIONS = "kdcache_projections"


class Run:
    """One training run, checked in full when made, from configurations and manifests alone.

    A dev file is read and tokenised for that, too.
    """

    def __init__(
        self,
        cache: Cache,
        parts: Parts,
        recipe: Recipe,
        folder: Path,
        *,
        resume: bool,
        progress: Progress,
        module: torch.nn.Module | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.cache, self.recipe, self.folder = cache, recipe, folder
        self.spec = student_spec(recipe, module, trust_remote_code=trust_remote_code)
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
        self.config = student_config(self.spec, cache)
        require_one(self.config, self.args.world_size, dev=recipe.dev)
        if why := unloadable(self.config):
            self.notes.append(f"{why}: the folder holds its weights for code of your own")
        docs = documents_of(cache, self.parts)
        self.choice = self._choice(docs)
        if self.choice is not None:
            docs = np.setdiff1d(docs, self.choice.dev.left_out)
        labelled = np.intersect1d(docs, cache.plan.labelled_docs)
        known = cache_spec(cache, len(labelled), several=bool(recipe.teaching))
        sizes = student_sizes(self.spec, cache)
        self.objective = Objective(
            recipe.losses, known, sizes, recipe.schedules, teaching=recipe.teaching, seed=seed
        )
        check_taps(self.config, self.objective.reads)
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

    def _choice(self, docs: Docs) -> Choice | None:
        """What the student is chosen on, if it is; `docs` are those there are to train on."""
        options = self.recipe.dev
        if options is None:
            return None
        seed, config, progress = self.args.seed, self.config, self.progress
        dev = make_dev(options, self.cache, docs, seed=seed, config=config, progress=progress)
        choose_by(self.args, dev.metric)
        if self.checkpoint is not None:
            require_same_dev(self.folder, dev.record)
        return Choice(dev, options.patience, self.args)

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

    def train(self, callbacks: Sequence[Any], teacher: str | Path | None = None) -> Json:
        """Train, write the folder and return the metrics.

        `teacher` is a folder or hub name, to be scored on the dev set where there is one.
        """
        left_out = [] if self.choice is None else self.choice.dev.notes
        for note in [*self.objective.notes, *self._committed_parts(), *left_out, *self.notes]:
            self.progress.say(note)
        if self.choice is not None and self.first:
            self.choice.ask(self.cache, teacher, self.progress)
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
        dev = None if self.choice is None else self.choice.dev.record
        fresh = not self.folder.exists()
        try:
            with ExitStack() as stack:
                with writing(self.folder):
                    stack.enter_context(one_run(self.folder, self.folder / CHECKPOINTS))
                    check_folder(*known, resume=self.checkpoint is not None)
                    start_folder(*known, scale_record(self.args), dev)
                yield
        except ConfigError:  # of what transformers only then refuses
            if fresh:
                remove_tree(self.folder)
            raise

    def _train(self, student: Any, callbacks: Sequence[Any]) -> Json:
        keeps_cache = getattr(student.config, "use_cache", None)
        setattr(student, PROJECTIONS, self.objective.projections)
        reporter = Reporter(self.progress, self.label, Ranks(self.args))
        choosing = [] if self.choice is None else self.choice.callbacks(reporter.ranks)
        callbacks = [*callbacks, reporter, *choosing]
        trainer = self._trainer(student, reporter.ranks, callbacks)
        metrics = self._fit(trainer, reporter)
        delattr(student, PROJECTIONS)
        if keeps_cache is not None:
            student.config.use_cache = keeps_cache  # the Trainer turns it off for training
        if self.parts is not None:
            used = {"documents": len(self.dataset), "of": self.cache.plan.documents}
            metrics["partial"] = {**used, "parts": self.parts}
        if self.choice is not None:
            metrics["dev"] = self.choice.report(trainer.state, trainer.diverged, self.progress)
        metrics["parameters"] = _parameters(student)
        if getattr(self.config, "members", ()):
            metrics["students"] = {
                home.name: {"parameters": _parameters(one)}
                for home, one in homes(self.folder, student)
            }
        if self.first:
            log, title = trainer.state.log_history, f"{self.recipe.name}: {self.folder.name}"
            with writing(self.folder):
                finish_folder(self.folder, student, self.cache, log, title, metrics.get("dev"))
                self.record(metrics)
            remove_tree(self.folder / CHECKPOINTS)
        return metrics

    def record(self, metrics: Json) -> None:
        """Write what is known of the student: the model card and the metrics."""
        for name, own in metrics.get("students", {"": {}}).items():
            write_card(self.folder / name, self.cache, self.recipe, metrics | own)
        write_json(self.folder / METRICS, metrics)

    def _committed_parts(self) -> Iterator[str]:
        """What a person should know of a run on part of a cache."""
        if self.parts is not None:
            plan = self.cache.plan
            yield (
                f"training on {len(self.dataset):,} of {plan.documents:,} documents: "
                f"{len(self.parts)} of {plan.parts} parts are there"
            )

    def _trainer(self, student: Any, ranks: Ranks, callbacks: Sequence[Any]) -> DistillationTrainer:
        task = self.cache.plan.task
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
            dev=None if self.choice is None else self.choice.dev,
            teacher_logs={} if self.choice is None else self.choice.teacher_logs,
            model=student,
            args=self.args,
            callbacks=list(callbacks),
        )

    def _settle(self, student: Any) -> None:
        """See to it, on the device it trains on, that the student reads every document alone."""
        if not (self.args.fsdp or self.args.deepspeed):  # which place it themselves
            student.to(self.args.device)
        hidden = any(TAP_KINDS[tap.name].per != "row" for tap in self.objective.reads)
        apart = False
        for one in members_of(student):
            apart |= check_alone(
                one,
                self.cache.plan.task,
                self.cache.plan,
                name="the student",
                hidden=hidden,
                progress=self.progress,
            )
        if apart and self.args.world_size > 1:
            raise ModelError(
                "the student says something else of documents that are padded, and processes do "
                "not keep step on documents of one length at a time: train with one process, or "
                "choose another student"
            )
        if self.choice is not None and self.choice.dev.plan is not self.cache.plan:
            require_fit(student, self.choice.dev.plan, "the student")
            apart |= settle(student, self.choice.dev.plan, "the student", self.progress)
            setattr(student, EQUAL, apart)

    def _fit(self, trainer: DistillationTrainer, reporter: Reporter) -> Json:
        if self.checkpoint is not None:
            self.progress.say(f"resuming from {self.checkpoint.name.replace('-', ' ')}")
        start = time.perf_counter()
        with silent_transformers(), reporter.reporting():
            if self.checkpoint is not None and self._ended(self.checkpoint):
                trainer.restore(self.checkpoint)
            else:
                resume_from = None if self.checkpoint is None else str(self.checkpoint)
                trainer.train(resume_from_checkpoint=resume_from)
        if reporter.interrupted:
            reporter.ranks.total([])  # every rank has written its part of the checkpoint
            raise KeyboardInterrupt
        return run_metrics(trainer, reporter, time.perf_counter() - start)

    def _ended(self, checkpoint: Path) -> bool:
        """Whether the run had been trained to its end when it was stopped: a step is too many."""
        if self.args.fsdp or self.args.deepspeed:  # whose weights only their own training loads
            return False
        state = transformers.TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return has_ended(state, None if self.choice is None else self.choice.patience)


def _parameters(student: Any) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


def cache_spec(cache: Cache, labelled: int, *, several: bool = False) -> CacheSpec:
    """What losses ask of a cache of which `labelled` documents with hard labels are used.

    With `several`, of all its teachers; else of the one that it is seen as.
    """
    views = cache.views if several else {cache.teacher or cache.first: cache}
    specs = {
        name: CacheSpec(
            task=cache.plan.task,
            label_kind=cache.plan.config.problem,
            signals=view.signals,
            shape=view.shape,
            labelled=labelled,
            name=name,
            prefix="" if view is cache else view.prefix,
        )
        for name, view in views.items()
    }
    first, *others = specs.values()
    return replace(first, others={spec.name: spec for spec in others})
