"""The training of a student: the stages of its recipe, one after the other, and its folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import wait_for_everyone
from safetensors.torch import load_file, save_file
from torch import nn

from kdcache.errors import ConfigError
from kdcache.interrupts import held_interrupts
from kdcache.manifest import Json
from kdcache.models.student_again import student_again, take_weights
from kdcache.progress import Progress
from kdcache.store import Cache
from kdcache.store.io.durable_writes import remove_tree, writing
from kdcache.training.card import write_card
from kdcache.training.dev import DevSet
from kdcache.training.dev_heads import HeadDevs
from kdcache.training.fitting import fit
from kdcache.training.lock import one_run, require_free
from kdcache.training.mixture import Mixture
from kdcache.training.parts import Parts
from kdcache.training.progressive import by_layer
from kdcache.training.recipe import Recipe
from kdcache.training.refusals import with_all_signals
from kdcache.training.result import joined_logs, joined_metrics
from kdcache.training.run import Run
from kdcache.training.run_folder import (
    CACHE,
    CHECKPOINTS,
    LOG,
    METRICS,
    RECIPE,
    STAGES,
    Standing,
    check_folder,
    finish_folder,
    place_of,
    read_json,
    stage_folder,
    start_folder,
    tell_folder,
    write_json,
)
from kdcache.training.scale import RUN, scale_record
from kdcache.training.stage import of_stage
from kdcache.training.weighing import weights_record

MAPS = "projections.safetensors"
Tensors = dict[str, torch.Tensor]


class Stages:
    """The training of a student by a recipe, all stages checked in full when made.

    A recipe without stages has one, whose name is "". The student of a stage is what came out of
    the one before, in memory; a run that is resumed between two reads it from the folder of the
    first, which holds the same. Learned maps that two stages have of one name and shape go on,
    over stages between them that have none.

    Attributes:
        run: the stage that is next, or that the training is in.
        choice: what the weights are chosen on, in the last stage.
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
        mixture: Mixture,
        module: nn.Module | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        recipe = by_layer(recipe, cache, module, trust_remote_code=trust_remote_code)
        self.cache, self.recipe, self.folder = cache, recipe, folder
        self.mixture = mixture
        self.module, self.trusted, self.asked_progress = module, trust_remote_code, progress
        require_free(folder, folder / CHECKPOINTS)
        self.standing = check_folder(
            folder, recipe, cache, parts, several=mixture.record, resume=resume
        )
        self.names = [stage.name for stage in recipe.stages] or [""]
        self.parts = parts
        numbers = range(len(self.names) - 1, self.standing.done - 1, -1)
        self.dev: DevSet | HeadDevs | None = None  # the last stage's, which all leave out
        self.runs = {number: self._run(number) for number in numbers}
        runs = list(self.runs.values())  # the next comes last
        self.scales = {run.stage: scale_record(run.args) for run in runs}
        weighed = {run.stage: weights_record(run.weighers) for run in runs}
        self.weights = self._known_weights() | {n: one for n, one in weighed.items() if one}
        self.run, self.choice = runs[-1], runs[0].choice
        self.parts, self.config, self.first = self.run.parts, self.run.config, self.run.first
        self.progress = self.run.progress
        self.metrics: dict[str, Json] = {}
        self.logs: dict[str, list[Json]] = {}

    def _known_weights(self) -> Json:
        """What the record of a run that goes on says of the weights of its stages, those that are
        over among them.
        """
        known = read_json(self.folder / CACHE) if self.standing.begun else {}
        found: Json = known.get("example_weights", {})
        return found

    def _run(self, number: int) -> Run:
        """The run of a stage."""
        standing = self.standing
        here, prefix = number == standing.done, self.recipe.prefixes[number]
        recipe = self.recipe.in_stages()[number]
        with of_stage(prefix, recipe.losses), with_all_signals(self.recipe, self.mixture.caches):
            run = Run(
                self.cache,
                self.parts,
                recipe,
                self.folder,
                stage=self.names[number],
                prefix=prefix,
                standing=standing if here else Standing(standing.done),
                chooses=number == len(self.names) - 1,
                progress=self.asked_progress,
                mixture=self.mixture,
                module=self.module,
                trust_remote_code=self.trusted,
                resumed=standing.begun,
                dev=self.dev,
            )
        self.dev = run.dev
        return run

    def train(self, callbacks: Sequence[Any], teacher: Any = None) -> Json:
        """Train, write the folder and return the metrics.

        `teacher` is a folder or hub name, to be scored on the dev set where there is one; of
        several heads, one for each by its name.
        """
        done, student = self.standing.done, self._student()
        for name in self.names[:done]:
            self.metrics[name] = read_json(stage_folder(self.folder, name) / METRICS)
            self.logs[name] = read_json(stage_folder(self.folder, name) / LOG)
        student = self.run.prepare(student, teacher)
        with self._writing():
            for number in range(done, len(self.names)):
                if number > done:
                    self.run = self.runs[number]
                    student = self.run.prepare(student, teacher)
                student = self._stage(number, student, callbacks)
            return self._finish(student)

    def _student(self) -> Any:
        """What came out of the stage before; None: the student is made of what the recipe says."""
        if self.standing.done == 0:
            return None
        before = stage_folder(self.folder, self.names[self.standing.done - 1])
        seed = self.run.args.seed
        if not self.mixture.heads:
            return student_again(self.cache, self.run.spec, before, seed=seed)
        student = self.mixture.load(self.config, self.run.spec, seed=seed)
        take_weights(student, before)
        return student

    def _stage(self, number: int, student: Any, callbacks: Sequence[Any]) -> Any:
        """Train a stage, and write what it comes to; returns the student it comes to."""
        name, last = self.names[number], number == len(self.names) - 1
        maps: nn.Module = self.run.projections
        before = _maps(stage_folder(self.folder, self.names[number - 1])) if number else {}
        _go_on(maps, before)
        student, metrics, log = fit(self.run, student, callbacks)
        self.metrics[name], self.logs[name] = metrics, log
        with held_interrupts() as check:
            if self.first and name:
                with writing(self.folder):
                    self._tell(name, student, {**before, **maps.state_dict()}, whole=not last)
            if not last:
                wait_for_everyone()
                check()
        return student

    def _finish(self, student: Any) -> Json:
        """Write the student's folder; the metrics of all stages."""
        metrics = joined_metrics(self.metrics, self.logs)
        if self.first:
            log, title = (
                joined_logs(self.logs),
                f"{self.recipe.name}: {self.folder.name}{self._caption}",
            )
            with writing(self.folder):
                finish_folder(self.folder, student, self._caches, log, title, metrics.get("dev"))
                self.record(metrics)
            remove_tree(self.folder / CHECKPOINTS)
        return metrics

    def _tell(self, name: str, student: Any, maps: Tensors, *, whole: bool) -> None:
        """Write the folder of a stage, all at once; `whole`, with the student and all learned maps,
        those of stages before among them.
        """
        folder = stage_folder(self.folder, name)
        scratch = folder.with_name(f".{folder.name}")
        remove_tree(scratch)
        scratch.mkdir(parents=True)
        for note in (RECIPE, CACHE):
            shutil.copy(self.folder / note, scratch)
        title = f"{self.recipe.name}, stage {name}: {self.folder.name}{self._caption}"
        log = self.logs[name]
        dev = self.metrics[name].get("dev")
        if whole:
            finish_folder(scratch, student, self._caches, log, title, dev)
            save_file({k: v.cpu().contiguous() for k, v in maps.items()}, scratch / MAPS)
        else:
            tell_folder(scratch, log, title, dev)
        write_json(scratch / METRICS, self.metrics[name])
        remove_tree(folder)  # of a last stage that was told of before
        os.replace(scratch, folder)
        if whole:
            remove_tree(place_of(self.folder, name))

    def _tell_scales(self) -> None:
        """Write down the steps of every stage, for whoever resumes before it has begun."""
        for name, scale in self.scales.items():
            place = place_of(self.folder, name)
            place.mkdir(parents=True, exist_ok=True)
            write_json(place / RUN, scale)

    @property
    def _caches(self) -> tuple[Cache, ...]:
        """The cache of each head; else that the student is made for."""
        return self.mixture.caches if self.mixture.heads else (self.cache,)

    @property
    def _caption(self) -> str:
        """What a title says of several caches."""
        return self.mixture.caption(self.run.counts)

    def record(self, metrics: Json) -> None:
        """Write what is known of the student: the model card and the metrics."""
        several = metrics.get("heads") or metrics.get("students") or {"": {}}
        for name, own in several.items():
            write_card(self.folder / name, self.recipe, metrics | own)
            if name:
                write_json(self.folder / name / METRICS, metrics | own)
        write_json(self.folder / METRICS, metrics)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder while training, and start it, in the process that writes."""
        if not self.first:
            yield
            return
        known = (self.folder, self.recipe, self.cache, self.parts)
        dev = None if self.run.dev is None else self.run.dev.record
        several = self.mixture.record
        fresh = not self.folder.exists()
        try:
            with ExitStack() as stack:
                with writing(self.folder):
                    stack.enter_context(one_run(self.folder, self.folder / CHECKPOINTS))
                    check_folder(*known, resume=self.standing.begun, several=several)
                    start_folder(*known, dev, several=several, weights=self.weights)
                    self._tell_scales()
                yield
        except ConfigError:  # of what transformers only then refuses
            if fresh and not (self.folder / STAGES).exists():
                remove_tree(self.folder)
            raise


def _maps(folder: Path) -> Tensors:
    """The learned maps that a stage, or one before it, left in its folder."""
    found: Tensors = load_file(folder / MAPS)
    return found


def _go_on(maps: nn.Module, known: Tensors) -> None:
    """Give learned maps the values of known ones of one name and shape."""
    own = maps.state_dict()
    same = {n: v for n, v in known.items() if n in own and own[n].shape == v.shape}
    maps.load_state_dict({**own, **same})
