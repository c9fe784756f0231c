"""One stage of a recipe: checked in full when made, and prepared when it is its turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import wait_for_everyone
from transformers.trainer_utils import enable_full_determinism, set_seed

from kdcache.errors import ConfigError
from kdcache.losses import CacheSpec
from kdcache.models import check_taps
from kdcache.models.embedded import word_embeddings
from kdcache.models.parameters import require_parameters
from kdcache.models.recording import heads_of
from kdcache.models.student_config import unloadable
from kdcache.models.together import require_one
from kdcache.plans import Docs
from kdcache.progress import Progress, quiet
from kdcache.signals import ModelSizes
from kdcache.store import Cache
from kdcache.training.arguments import choose_by, training_arguments
from kdcache.training.balance import Balancer, require_measured, require_several
from kdcache.training.bound import bind_all, documents_read, learned_modules, without
from kdcache.training.choosing import Choice
from kdcache.training.dev import DevSet
from kdcache.training.dev_heads import HeadDevs, make_devs
from kdcache.training.generators import drawn_apart
from kdcache.training.inputs import require_table
from kdcache.training.mixture import Mixture
from kdcache.training.objective import Objective
from kdcache.training.options import student_spec
from kdcache.training.parts import Parts, agree, documents_of
from kdcache.training.points import require_blocks
from kdcache.training.recipe import Recipe
from kdcache.training.reused import reused
from kdcache.training.run_folder import (
    RECIPE,
    Standing,
    place_of,
    require_same_dev,
    require_same_weights,
)
from kdcache.training.scale import (
    RUN,
    keep_scale,
    require_step,
    require_whole,
    stored_scale,
)
from kdcache.training.settling import settle_student
from kdcache.training.specs import cache_specs
from kdcache.training.weighing import require_scored, weighers_of, weights_record


class Run:
    """One stage, checked in full when made, from configurations and manifests; `fit` trains it.

    A dev file is read and tokenised for that, too. Seeds are set when it begins.

    Args:
        recipe: of one stage.
        stage: its name; "" of a recipe without stages.
        prefix: what its settings begin with, such as "stages.hidden."; "" likewise.
        standing: where the training that is resumed stands, if it is in this stage.
        chooses: whether the weights are chosen on the dev set; else its documents are left out.
        resumed: whether the training goes on, in this stage or an earlier one.
        dev: the dev set of the stages after it, which is that of all; None: it is made.
    """

    def __init__(
        self,
        cache: Cache,
        parts: Parts,
        recipe: Recipe,
        folder: Path,
        *,
        stage: str,
        standing: Standing,
        chooses: bool,
        progress: Progress,
        mixture: Mixture,
        prefix: str = "",
        module: torch.nn.Module | None = None,
        trust_remote_code: bool = False,
        resumed: bool = False,
        dev: DevSet | HeadDevs | None = None,
    ) -> None:
        self.mixture = mixture
        self.cache, self.recipe, self.folder = cache, recipe, folder
        self.stage, self.prefix, self.standing = stage, prefix, standing
        self.place = place_of(folder, stage)
        self.checkpoint, self.resumed = standing.checkpoint, resumed
        self.spec = student_spec(recipe, module, trust_remote_code=trust_remote_code)
        self.scored = recipe if chooses else dataclasses.replace(recipe, dev=None)
        self.args, self.notes = self._arguments()
        self.progress = progress if self.first else quiet
        seed = self.args.seed
        self.parts = agree(parts)
        self.config = mixture.config(self.spec)
        self._check_student()
        docs = [documents_of(cache, self.parts), *(other.plan.docs for other in mixture.others)]
        self.dev = self._dev(docs, dev)
        self.choice = self._choice() if chooses else None
        if self.dev is not None:
            docs, notes = without(self.dev, mixture, docs)
            self.notes += notes
        labelled = [
            np.intersect1d(found, one.plan.labelled_docs)
            for found, one in zip(docs, mixture.caches, strict=True)
        ]
        specs = cache_specs(mixture, [len(found) for found in labelled], recipe)
        sizes = mixture.sizes(self.config)
        self._drawn = drawn_apart(seed, partial(self._learn, specs, sizes, seed))
        self._check_taps()
        read = [
            some if objective.hard_only else found
            for found, some, objective in zip(docs, labelled, self.objectives, strict=True)
        ]
        self.weighers = weighers_of(
            recipe.data.weighting, mixture.caches, specs, read, sizes, seed=seed
        )
        self._check_weights()
        self.dataset = documents_read(
            mixture,
            self.objectives,
            read,
            seed=seed if self.args.data_seed is None else self.args.data_seed,
            window=recipe.data.window if recipe.data.group_by_length else 0,
            args=self.args,
            weighers=self.weighers,
        )
        for one, documents in zip(mixture.caches, self.counts, strict=True):
            require_step(self.args, documents, one.path)
        require_whole(self.args, recipe)
        wait_for_everyone()  # or the first could hold and write what another still checks

    def _check_student(self) -> None:
        """Refuse ways to train that a student of this configuration does not go with."""
        args, recipe, heads = self.args, self.recipe, self.mixture.heads
        if heads and (args.fsdp or args.deepspeed):
            raise ConfigError(
                f"{len(heads)} heads of one encoder are not sharded: train without "
                "training.fsdp and training.deepspeed"
            )
        require_one(self.config, args.world_size, dev=recipe.dev)
        if (heads or hasattr(self.config, "tap_widths")) and args.gradient_checkpointing:
            raise ConfigError(
                "training.gradient_checkpointing is for a model of transformers' alone, and this "
                "student is a module around one or several, or of your own: leave it out"
            )
        if recipe.inputs is not None:
            require_table(args, self.config)
        if why := unloadable(self.config):
            self.notes.append(f"{why}: the folder holds its weights for code of your own")
        require_parameters(recipe.trainable, self.spec, self.config, self.mixture.caches)

    def _check_taps(self) -> None:
        """Refuse losses that read what the student does not give."""
        configs = self.mixture.configs(self.config)
        for config, objective in zip(configs, self.objectives, strict=True):
            check_taps(config, objective.reads)
            if objective.points is not None or objective.elsewhere is not None:
                require_blocks(self.args, self.spec)

    def _check_weights(self) -> None:
        """Refuse weights, of documents or losses, that this run cannot work out."""
        recipe, stage = self.recipe, self.stage
        require_scored(self.weighers, scored=self.choice is not None, stage=stage)
        if recipe.balance is not None:
            require_measured(self.args, self.config)
            where = f"{stage or recipe.name} on {self.cache.path}"
            require_several(self.objective.losses, where)
        if self.resumed:
            require_same_weights(self.folder, stage, weights_record(self.weighers))

    @property
    def objective(self) -> Objective:
        """The losses as they are bound to the first cache, with the learned maps of all."""
        return self.objectives[0]

    def _arguments(self) -> tuple[transformers.TrainingArguments, list[str]]:
        """The arguments of transformers', and what a person should know of the steps they make.

        What is made of them is global in part: the arguments that are made last are in force.
        """
        args = training_arguments(self.scored, self.place)
        return args, self._same_steps(args)

    def begin(self) -> None:
        """Put the arguments and seeds of this stage in force, as if its maps were drawn now."""
        self.args, _ = self._arguments()
        if self.choice is not None:
            choose_by(self.args, self.choice.dev.metric)
            self.choice.args = self.args
        if self.args.full_determinism:
            enable_full_determinism(self.args.seed)
        else:
            set_seed(self.args.seed)
        self._drawn.put()
        self.balancers = list(self._balancers())

    def _learn(self, specs: Sequence[CacheSpec], sizes: Sequence[ModelSizes], seed: int) -> None:
        """Bind the losses to every cache, and draw what they learn."""
        mixture = self.mixture
        self.objectives = bind_all(mixture, self.recipe, specs, sizes, seed=seed)
        self.reused = reused(self.objectives, self.cache, self.config, heads=mixture.heads)
        self.projections = learned_modules(mixture, [one.projections for one in self.objectives])
        self.state = learned_modules(mixture, [one.state for one in self.objectives])

    def _balancers(self) -> Iterator[Balancer]:
        """What sets the weights of the losses, if anything does: of each head, or of all caches."""
        if self.recipe.balance is None:
            return
        heads = len(self.mixture.heads) > 1
        for some in [[one] for one in self.objectives] if heads else [self.objectives]:
            losses = {name: loss for one in some for name, loss in one.losses.items()}
            weights = {name: float(loss.weight) for name, loss in losses.items()}
            yield Balancer(self.recipe.balance, weights)

    def _dev(
        self, docs: Sequence[Docs], known: DevSet | HeadDevs | None
    ) -> DevSet | HeadDevs | None:
        """What the student is chosen on, if it is; `docs` are those there are to train on."""
        options = self.recipe.dev
        if options is None:
            return None
        given: Any = {"seed": self.args.seed, "progress": self.progress}
        dev = known or make_devs(options, self.mixture, self.config, docs, **given)
        if self.standing.begun:
            require_same_dev(self.folder, dev.record)
        return dev

    def _choice(self) -> Choice | None:
        if self.dev is None or self.recipe.dev is None:
            return None
        choose_by(self.args, self.dev.metric)
        return Choice(self.dev, self.recipe.dev.patience, self.args)

    def _same_steps(self, args: transformers.TrainingArguments) -> list[str]:
        """Let a resumed run keep the documents of a step; what a person should know of it."""
        record = self.place / RUN
        if not self.resumed or not (record.exists() or self.checkpoint):
            return []
        stored = stored_scale(record, self.folder / RECIPE, self.checkpoint)
        return list(filter(None, [keep_scale(args, stored)]))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.args.process_index == 0)

    @property
    def label(self) -> str:
        """What is trained, for progress."""
        made = f"{self.recipe.name} from {self.mixture.names}"
        stage = f", stage {self.stage}" if self.stage else ""
        return f"training {self.folder.name} by {made}{stage}"

    def prepare(self, student: Any, teacher: Any = None) -> Any:
        """Begin: say what a person should know, and see to it that the student can be trained.

        `student` is what comes out of the stage before; None: it is made. `teacher` is a folder or
        hub name, to be scored on the dev set where the weights are chosen on one; one for each
        head by its name, where there are several.
        """
        self.begin()
        left_out = [] if self.dev is None else self.dev.notes
        taught = dict.fromkeys(note for one in self.objectives for note in one.notes)
        for note in [*taught, *self._committed_parts(), *left_out, *self.notes]:
            self.progress.say(note)
        if self.choice is not None and self.first:
            trust = self.spec.trust_remote_code
            self.choice.ask(self.mixture, teacher, self.progress, trust_remote_code=trust)
        if student is None:
            student = self.mixture.load(self.config, self.spec, seed=self.args.seed)
        if self.recipe.inputs is not None:
            for one in heads_of(student):
                word_embeddings(one)
        scored = {} if self.choice is None else self.choice.dev.each
        taps = [tap for one in self.objectives for tap in one.reads]
        settle_student(student, self.mixture, scored, taps, self.args, self.progress)
        return student

    @property
    def counts(self) -> list[int]:
        """Documents of an epoch that are of each cache, the mean over all epochs."""
        return getattr(self.dataset, "mean_counts", [len(self.dataset)])

    def _committed_parts(self) -> Iterator[str]:
        """What a person should know of a run on part of a cache."""
        if self.parts is not None:
            plan = self.cache.plan
            yield (
                f"training on {len(self.dataset):,} of {plan.documents:,} documents: "
                f"{len(self.parts)} of {plan.parts} parts are there"
            )
