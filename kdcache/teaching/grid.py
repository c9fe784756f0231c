"""The grid: one start, a run of fine-tuning for each learning rate, the best epoch of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from kdcache.errors import ModelError
from kdcache.manifest import Json
from kdcache.models import Tokenizer, check_alone
from kdcache.models.tokenizer import short_name
from kdcache.progress import Progress
from kdcache.store.io.durable_writes import writing
from kdcache.teaching.data import Data
from kdcache.teaching.encoder import Encoder
from kdcache.teaching.folder import START, Run, save_teacher
from kdcache.teaching.scores import Floats, criterion, merit, predict, score
from kdcache.teaching.settings import Settings
from kdcache.teaching.start import fit_start
from kdcache.teaching.tuning import tune
from kdcache.teaching.weights import class_weights
from kdcache.training.lock import one_run
from kdcache.training.run_folder import CHECKPOINTS


class Grid:
    """One run of teaching in its folder."""

    def __init__(
        self,
        source: str | Path,
        encoder: Encoder,
        data: Data,
        settings: Settings,
        args: transformers.TrainingArguments,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.source, self.encoder, self.model = source, encoder, encoder.model
        self.data, self.settings, self.args = data, settings, args
        self.folder, self.progress = folder, progress
        self.weights = self._weights()
        self.by = criterion(data.dev, weighted=self.weights is not None)

    def _weights(self) -> Floats | None:
        if not self.data.train.kind.numbered:
            return None
        counts = self.data.train.counts()
        weights = class_weights(counts, self.settings.class_weights)
        if weights is not None:
            there = counts[counts > 0]
            self.progress.say(
                f"classes have {there.min():,} to {there.max():,} documents to learn from: they "
                "are weighed in the loss, and macro-F1 decides (--class-weights none turns it off)"
            )
        return weights

    def run(self, tokenizer: Tokenizer) -> Json:
        """Teach, write the model, and return what is known of it."""
        self.model.to(self.args.device)
        plan, rates = self.data.train.plan, self.settings.learning_rates
        check_alone(self.model, plan.task, plan, name="the encoder", progress=self.progress)
        keeps_cache = getattr(self.model.config, "use_cache", None)
        with writing(self.folder), one_run(self.folder, self.folder / CHECKPOINTS):
            run = Run(self.folder, self._identity())
            self._start(run)
            try:
                for number in range(len(run.finished), len(rates)):
                    self._point(run, number)
            except KeyboardInterrupt:
                self.progress.say(
                    f"stopped: the same command goes on after {len(run.finished)} of {len(rates)} "
                    "learning rates"
                )
                raise
            chosen = self._chosen(run)
            run.load(self.model, chosen.pop("weights"))
            if keeps_cache is not None:
                self.model.config.use_cache = keeps_cache  # the Trainer turns it off for training
            save_teacher(self.folder, self.model, tokenizer, plan)
        return self._metrics(run, chosen)

    def _identity(self) -> Json:
        """What a run has in common with the one it goes on with."""
        train, dev = self.data.train, self.data.dev
        return {
            "kind": "teaching run",
            **self.settings.to_json(),
            "encoder": {"sha256": self.encoder.weights_sha256},
            "train": {"sha256": train.plan.sha256, "documents": len(train)},
            "dev": {"sha256": dev.plan.sha256, "documents": len(dev)},
        }

    def _start(self, run: Run) -> None:
        if run.start is not None:
            self.progress.say(
                f"going on with the run in {self.folder}: {len(run.finished)} of "
                f"{len(self.settings.learning_rates)} learning rates are finished"
            )
            return
        start = fit_start(
            self.model,
            self.data,
            self.weights,
            by=self.by,
            seed=self.settings.seed,
            progress=self.progress,
        )
        scores = score(predict(self.model, self.data.dev), self.data.dev)
        if scores is None:
            raise ModelError(f"the outputs of {self.source} are not finite: choose another encoder")
        run.keep_start(self.model, {**start, "scores": scores})

    def _point(self, run: Run, number: int) -> None:
        """Fine-tune from the start at one learning rate."""
        rates = self.settings.learning_rates
        run.load(self.model)
        epochs = tune(
            self.model,
            self.data,
            self.args,
            rates[number],
            self.weights,
            by=self.by,
            label=f"teaching at {rates[number]:g}, learning rate {number + 1} of {len(rates)}",
            progress=self.progress,
        )
        if epochs[-1]["dev"] is None:
            self.progress.say(f"the run at {rates[number]:g} diverged in epoch {len(epochs)}")
        best = max(merit(epoch["dev"], self.by) for epoch in epochs)
        run.keep_point(
            self.model,
            {"learning_rate": rates[number], "epochs": epochs},
            best=best > self._best(run),
        )

    def _best(self, run: Run) -> tuple[float, float]:
        """The merit of the best that is finished, the start among it."""
        scores = [self._start_scores(run), *(e["dev"] for p in run.finished for e in p["epochs"])]
        return max(merit(one, self.by) for one in scores)

    @staticmethod
    def _start_scores(run: Run) -> Json:
        assert run.start is not None
        scores: Json = run.start["scores"]
        return scores

    def _chosen(self, run: Run) -> Json:
        """The learning rate and epoch of the best scores on the dev documents."""
        points = [point for point in run.finished if point["weights"]]
        if not points:
            self.progress.say(
                "no epoch was better on the dev documents than the start: the teacher is the "
                "encoder as it was, with a head fitted to it"
            )
            scores = self._start_scores(run)
            return {"learning_rate": None, "epoch": 0, "scores": scores, "weights": START}
        point = points[-1]
        best = max(point["epochs"], key=lambda epoch: merit(epoch["dev"], self.by))
        if best["epoch"] == self.settings.epochs:
            self.progress.say("the last epoch was the best one: more --epochs may do better")
        return {
            "learning_rate": point["learning_rate"],
            "epoch": best["epoch"],
            "scores": best["dev"],
            "weights": point["weights"],
        }

    def _metrics(self, run: Run, chosen: Json) -> Json:
        train, dev = self.data.train, self.data.dev
        names = self.data.names
        points: list[Any] = [{k: v for k, v in p.items() if k != "weights"} for p in run.finished]
        return {
            "task": train.plan.task.name,
            "problem": train.plan.config.label_kind,
            "classes": names,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "encoder": {
                "name": short_name(str(self.source)),
                "weights_sha256": self.encoder.weights_sha256,
            },
            "data": {
                "sha256": train.plan.config.corpus["sha256"],
                "documents": train.plan.config.corpus["documents"],
                "train": len(train),
                "dev": len(dev),
                "dev_file": self.data.dev_file,
                "dev_sha256": dev.plan.config.corpus["sha256"],
            },
            "settings": self.settings.to_json(),
            "class_weights": self._named_weights(),
            "start": run.start,
            "grid": points,
            "chosen_by": self.by,
            "chosen": {k: v for k, v in chosen.items() if k != "scores"},
            "dev": {"documents": len(dev), **chosen["scores"]},
        }

    def _named_weights(self) -> Json | None:
        if self.weights is None:
            return None
        return dict(zip(self.data.names, self.weights.tolist(), strict=True))
