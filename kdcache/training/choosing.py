"""When a student is scored on its dev set, which weights are kept, and what a run reports of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from kdcache.errors import ConfigError, ModelError
from kdcache.evaluation.scoring import LOWER_IS_BETTER
from kdcache.manifest import Json
from kdcache.progress import Progress
from kdcache.training.dev import DevSet
from kdcache.training.dev_heads import HeadDevs
from kdcache.training.dev_options import EPOCH
from kdcache.training.dev_teacher import teacher_score
from kdcache.training.mixture import Mixture
from kdcache.training.ranks import Ranks


def best_checkpoint(state: transformers.TrainerState, checkpoints: Path) -> Path | None:
    """The checkpoint with the weights that scored best so far; None if there are none."""
    if not state.best_global_step:
        return None
    return checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"


class AtScores(transformers.TrainerCallback):
    """Writes a checkpoint with every score, and scores only where an unbroken run would.

    Comes after the callbacks that stop a run. The end of a run is scored; a run that is
    interrupted within an epoch is not at its end, though transformers ends the epoch there.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for the best weights where the folder lies now; a checkpoint says where it lay."""
        best = best_checkpoint(state, Path(args.output_dir))
        if best is not None and not best.is_dir():
            raise ConfigError(
                f"{best} is gone, which holds the weights that scored best on dev: put it back, or "
                "train into another folder"
            )
        state.best_model_checkpoint = None if best is None else str(best)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stops = control.should_training_stop and not self._interrupted(state)
        if args.eval_strategy == EPOCH:
            if stops or _whole(state):  # the epoch's end, which is next, scores before it saves
                control.should_save = False
        elif stops:
            control.should_evaluate = True
        control.should_save |= control.should_evaluate

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._interrupted(state):
            control.should_evaluate = False
        control.should_save |= control.should_evaluate

    def _interrupted(self, state: Any) -> bool:
        """Whether the run stops where an unbroken one would go on with the epoch."""
        ends = _whole(state) or state.global_step >= state.max_steps
        return self.ranks.stopping and not ends


def _whole(state: Any) -> bool:
    """Whether the step that was just taken is the last of its epoch."""
    return bool(state.epoch == int(state.epoch))


class Patience(transformers.EarlyStoppingCallback):
    """Early stopping that goes on counting where the checkpoint of a resumed run stood."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]  # transformers' own
        self.early_stopping_patience_counter = _waited(state)


def _waited(state: transformers.TrainerState) -> int:
    """Scores in a row without a better one."""
    callbacks: Any = state.stateful_callbacks  # a state makes a dict of the list it is given
    stored = callbacks.get(Patience.__name__)
    return 0 if stored is None else int(stored["attributes"]["early_stopping_patience_counter"])


def out_of_patience(state: transformers.TrainerState, patience: int | None) -> bool:
    """Whether so many scores in a row were no better."""
    return patience is not None and _waited(state) >= patience


def has_ended(state: transformers.TrainerState, patience: int | None) -> bool:
    """Whether the run that a checkpoint is of was over: it has nothing to train on with."""
    return state.global_step >= state.max_steps or out_of_patience(state, patience)


class Choice:
    """The dev set of a run, what its teacher scores there, and what comes of both.

    Attributes:
        teacher: "value" and "source" of the teacher's score; None: unknown, or not asked for yet.
    """

    def __init__(
        self, dev: DevSet | HeadDevs, patience: int | None, args: transformers.TrainingArguments
    ) -> None:
        self.dev, self.patience, self.args = dev, patience, args
        self.teacher: Json | None = None

    def ask(
        self, mixture: Mixture, teacher: Any, progress: Progress, *, trust_remote_code: bool
    ) -> None:
        """Find out what the teacher scores, by running `teacher` where one is named.

        Of several heads, `teacher` names one for each by the name of the head. It may be a module
        of somebody's own if that is trusted.
        """
        options: Any = {
            "batch_size": self.args.eval_batch_size,
            "device": str(self.args.device),
            "progress": progress,
            "trust_remote_code": trust_remote_code,
        }
        if isinstance(self.dev, HeadDevs):
            self.teacher = self.dev.teacher(mixture.by_head, teacher, **options)
        else:
            self.teacher = teacher_score(self.dev, mixture.first, teacher, **options)

    @property
    def teacher_logs(self) -> dict[str, float]:
        """The teacher's score as it is logged with every score of the student, by name."""
        if self.teacher is None:
            return {}
        return {f"eval_teacher_{self.dev.metric}": self.teacher["value"]}

    def callbacks(self, ranks: Ranks) -> list[transformers.TrainerCallback]:
        """What makes a Trainer choose; they come after all others."""
        early = [] if self.patience is None else [Patience(self.patience)]
        return [AtScores(ranks), *early]

    def report(self, state: transformers.TrainerState, diverged: int, progress: Progress) -> Json:
        """What a run tells of its choice: "metric", "higher_is_better", "documents", "source",
        "left_out" (documents of the cache not trained on), "points" (step, epoch, value), "best"
        (one of them), "teacher" (value, source; None: unknown) and "stopped" ("patience",
        "diverged" or None). `diverged` is the step whose loss was no number, or 0.

        Raises ModelError where no score is a number.
        """
        points = [
            {"step": entry["step"], "epoch": entry["epoch"], "value": entry[self._name]}
            for entry in state.log_history
            if self._name in entry
        ]
        best = [point for point in points if point["step"] == state.best_global_step]
        if not best:
            raise ModelError(
                f"no score on {self.dev.source} is a number: training has diverged; lower "
                "training.learning_rate"
            )
        if diverged:
            progress.say(
                f"training has diverged (the loss is no number at step {diverged:,}): the weights "
                f"of step {best[-1]['step']:,}, the best on dev, are kept"
            )
        patience = "patience" if out_of_patience(state, self.patience) else None
        scored = (e for e in state.log_history if self._name in e and e["step"] == best[-1]["step"])
        heads = self.dev.report(next(scored)) if isinstance(self.dev, HeadDevs) else {}
        return {
            **({"heads": heads} if heads else {}),
            "metric": self.dev.metric,
            "higher_is_better": self.dev.metric not in LOWER_IS_BETTER,
            "documents": self.dev.documents,
            "source": self.dev.source,
            "left_out": self.dev.withheld,
            "best": best[-1],
            "teacher": self.teacher,
            "stopped": "diverged" if diverged else patience,
            "points": points,
        }

    @property
    def _name(self) -> str:
        return f"eval_{self.dev.metric}"
