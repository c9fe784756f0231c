"""A stage that was checked and prepared is trained: what it takes, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer import TRAINER_STATE_NAME

from kdcache.errors import ConfigError, KdcacheError
from kdcache.manifest import Json
from kdcache.memory import kept_pages
from kdcache.models.auto import silent_transformers
from kdcache.models.layer_rates import Slowed, one_layer_trained
from kdcache.models.parameters import only_trained
from kdcache.models.together import homes
from kdcache.training.balance import balanced_weights
from kdcache.training.choosing import has_ended
from kdcache.training.fused_head import fused_heads
from kdcache.training.ranks import Ranks
from kdcache.training.reporter import Reporter
from kdcache.training.result import run_metrics
from kdcache.training.run import Run
from kdcache.training.trainer import DistillationTrainer

PROJECTIONS, STATE, BALANCE = "kdcache_projections", "kdcache_state", "kdcache_balance"
SELECTOR = "kdcache_selector"
"""Names under which what is learned and kept lies beside a student, so in checkpoints."""


def fit(
    run: Run,
    student: Any,
    callbacks: Sequence[Any],
    make: Callable[..., DistillationTrainer] = DistillationTrainer,
) -> tuple[Any, Json, list[Json]]:
    """Train a student that `run` has prepared; what it has become, metrics and log.

    `make` is the trainer's class, or what makes one of the same arguments.
    """
    keeps_cache = getattr(student.config, "use_cache", None)
    reporter = Reporter(run.progress, run.label, Ranks(run.args))
    choosing = [] if run.choice is None else run.choice.callbacks(reporter.ranks)
    callbacks = [*callbacks, reporter, *choosing]
    parts = _parts(run)
    with (
        only_trained(student, run.recipe.trainable),
        one_layer_trained(student, run.recipe.layer, run.recipe.below) as slowed,
    ):
        for name, part in parts.items():
            setattr(student, name, part)
        if run.reused is not None:
            run.reused.begin(student)
        rates = slowed | {p: r for one in run.objectives for p, r in one.rates.items()}
        trainer = _trainer(run, student, reporter.ranks, callbacks, rates, make)
        metrics = _fit(run, trainer, reporter)
    for name in parts:
        delattr(student, name)
    _without_autocast(student)
    if keeps_cache is not None:
        student.config.use_cache = keeps_cache  # the Trainer turns it off for training
    if run.reused is not None:
        student = run.reused.end(student)
    return student, metrics | _told(run, student, trainer), trainer.state.log_history


def _parts(run: Run) -> dict[str, torch.nn.Module]:
    """What lies in checkpoints with the student."""
    parts: dict[str, torch.nn.Module] = {PROJECTIONS: run.projections}
    if run.state:
        parts[STATE] = run.state
    if run.balancers:
        parts[BALANCE] = torch.nn.ModuleList(run.balancers).to(run.args.device)
    selector = run.weighers[0].selector if run.weighers else None
    if selector is not None:
        parts[SELECTOR] = selector
    return parts


def _trainer(
    run: Run,
    student: Any,
    ranks: Ranks,
    callbacks: Sequence[Any],
    slowed: Slowed,
    make: Callable[..., DistillationTrainer],
) -> DistillationTrainer:
    """A trainer; ConfigError for what transformers refuses only when its Trainer is made.

    Packages behind a field that are not there, backends and log levels that do not exist.
    """
    heads = fused_heads(student, run.mixture, run.objectives, run.args, run.progress.say)
    try:
        return make(
            task=run.cache.plan.task,
            head=heads,
            objective=run.objective,
            others=run.objectives[1:],
            balancers=run.balancers,
            weighers=run.weighers,
            dataset=run.dataset,
            ranks=ranks,
            dev=None if run.choice is None else run.choice.dev,
            teacher_logs={} if run.choice is None else run.choice.teacher_logs,
            model=student,
            args=run.args,
            callbacks=list(callbacks),
            say=run.progress.say,
            prefix=run.prefix,
            slowed=slowed,
        )
    except (KdcacheError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of as many kinds as there are packages behind the fields
        text = " ".join(str(error).split())
        raise ConfigError(
            f"[training] of recipe {run.recipe.name} is refused by transformers: "
            f"{text or repr(error)}"
        ) from error


def _fit(run: Run, trainer: DistillationTrainer, reporter: Reporter) -> Json:
    """Train to the end, or go on to it from a checkpoint."""
    if run.checkpoint is not None:
        run.progress.say(f"resuming from {run.checkpoint.name.replace('-', ' ')}")
    start = time.perf_counter()
    with silent_transformers(), reporter.reporting():
        if run.checkpoint is not None and _ended(run, run.checkpoint):
            trainer.restore(run.checkpoint)
        else:
            resume_from = None if run.checkpoint is None else str(run.checkpoint)
            with kept_pages(run.args.device.type):
                trainer.train(resume_from_checkpoint=resume_from)
    if reporter.interrupted:
        reporter.ranks.total([])  # every rank has written its part of the checkpoint
        raise KeyboardInterrupt
    return run_metrics(trainer, reporter, time.perf_counter() - start)


def _ended(run: Run, checkpoint: Path) -> bool:
    """Whether the run had been trained to its end when it was stopped: a step is too many."""
    if run.args.fsdp or run.args.deepspeed:  # whose weights only their own training loads
        return False
    state = transformers.TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return has_ended(state, None if run.choice is None else run.choice.patience)


def _told(run: Run, student: Any, trainer: DistillationTrainer) -> Json:
    """What metrics tell of a stage beside its training: the data, the choice and the losses."""
    told: Json = {}
    if run.parts is not None:
        used = {"documents": len(run.dataset), "of": run.cache.plan.documents}
        told["partial"] = {**used, "parts": run.parts}
    if run.mixture.others:
        told["caches"] = run.mixture.report(run.counts)
    if run.weighers:
        way = str(run.recipe.data.weighting)
        weighed = {"way": way, "mean": trainer.mean_weight()}
        told["example_weights"] = weighed | run.weighers[0].learnt
    if run.choice is not None:
        told["dev"] = run.choice.report(trainer.state, trainer.diverged, run.progress)
    trainer.shares.end(-(-trainer.state.global_step // trainer.epoch_steps))
    if trainer.shares.last:
        told["shares"] = trainer.shares.last
    if run.balancers:
        weights = balanced_weights(run.balancers, run.mixture.heads)
        told["balance"] = {"way": str(run.recipe.balance), "weights": weights}
    told["parameters"] = _parameters(student)
    if getattr(run.config, "members", ()):
        told["heads" if run.mixture.heads else "students"] = {
            home.name: {"parameters": _parameters(one)} for home, one in homes(run.folder, student)
        }
    return told


def _without_autocast(student: Any) -> None:
    """Take off the autocast that accelerate put around a student: the next stage may have none."""
    own = vars(student).pop("_original_forward", None)
    if own is not None:
        student.forward = own


def _parameters(student: Any) -> int:
    return sum(parameter.numel() for parameter in student.parameters())
