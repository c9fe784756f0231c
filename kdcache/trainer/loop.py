"""The training loop: transformers.Trainer with a cache's batches and a recipe's objective."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from kdcache.batch import Batch
from kdcache.errors import ModelError
from kdcache.interrupts import handled_by
from kdcache.loader import CachedDocuments, make_loader
from kdcache.losses import Objective
from kdcache.models import run_model
from kdcache.progress import Progress
from kdcache.tasks import Task


class DistillationTrainer(transformers.Trainer):
    """A Trainer whose batches come from a cache and whose loss is an objective.

    A language model's `head`, if given, is left to the losses, which fuse with it.
    """

    def __init__(
        self,
        *,
        task: Task,
        objective: Objective,
        dataset: CachedDocuments,
        head: torch.nn.Linear | None = None,
        **options: Any,
    ) -> None:
        super().__init__(train_dataset=dataset, **options)
        self.model_accepts_loss_kwargs = False  # with the next line: an objective is a mean over a
        self.loss_is_scaled_for_ga = False  # micro-batch, so accumulation has to divide it
        self.remove_callback(transformers.PrinterCallback)
        self.task: Task = task
        self.objective: Objective = objective
        self.dataset: CachedDocuments = dataset
        self.head = head
        self._seen = torch.zeros(2, dtype=torch.int64, device=self.args.device)
        self._terms: dict[str, torch.Tensor] = {}
        self._batches = 0
        self.wait_seconds = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step; `wait_seconds` sums the time until they were there."""
        started = time.perf_counter()
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self.wait_seconds += time.perf_counter() - started

    def seen(self) -> tuple[int, int]:
        """Documents and tokens, pads left out, trained on by all ranks; every rank has to ask."""
        documents, tokens = self.accelerator.reduce(self._seen, reduction="sum").tolist()
        return documents, tokens

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        ranks = args.world_size * args.gradient_accumulation_steps
        self.dataset.batch = args.train_batch_size * ranks
        loader = make_loader(
            self.dataset,
            batch_size=args.train_batch_size,
            drop_last=args.dataloader_drop_last,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(  # type: ignore[override]  # a Batch is what our loader gives
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = run_model(model, self.task, inputs, hidden=self.objective.hidden, head=self.head)
        loss, terms = self.objective(outputs, inputs)
        if self.args.world_size > 1 and not self.objective.logits:
            loss = loss + 0.0 * outputs.logits.sum()  # DDP waits for a gradient of every parameter
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0) + value.float()
        self._batches += 1
        self._seen[0] += len(inputs["docs"])
        self._seen[1] += inputs["attention_mask"].sum()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's mean since the last log, before its weight, as "loss_NAME"."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: training has "
                    "diverged; lower training.learning_rate"
                )
            for name, value in self._terms.items():
                mean = self.accelerator.reduce(value / self._batches, reduction="mean")
                logs[f"loss_{name}"] = float(mean)
            self._terms, self._batches = {}, 0
        super().log(logs, start_time)


class Reporter(transformers.TrainerCallback):
    """Drives a progress bar, times steps, and turns Ctrl-C or SIGTERM into a checkpoint and a stop.

    Attributes:
        step_seconds: time from the end of a step to the end of the next, reading included.
        interrupted: whether one of the two came; the run then stops after the step under way.
    """

    def __init__(self, progress: Progress, label: str) -> None:
        self.progress, self.label = progress, label
        self.step_seconds: list[float] = []
        self.interrupted = False
        self._stack = ExitStack()
        self._last = 0.0

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Hold the bar and the handler of both while training."""
        with self._stack:
            yield

    def on_train_begin(
        self, args: Any, state: transformers.TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._stack.enter_context(handled_by(self._interrupt))
        steps = state.max_steps - state.global_step
        if state.is_world_process_zero:
            bar = self.progress.bar(self.label, unit="steps", total=steps)
            self._advance = self._stack.enter_context(bar)
        self._last = time.perf_counter()

    def _interrupt(self, *_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # the second time, at once
        self.interrupted = True
        self.progress.say("stopping after this step; the run can be resumed")

    def on_step_end(
        self,
        args: Any,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **kwargs: Any,
    ) -> None:
        now = time.perf_counter()
        self.step_seconds.append(now - self._last)
        self._last = now
        if state.is_world_process_zero:
            self._advance(1)
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_log = True  # or the last steps' losses would be lost
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: Any, state: Any, control: transformers.TrainerControl, **kwargs: Any
    ) -> None:
        if (
            control.should_training_stop and not self.interrupted
        ):  # a callback of the user's said so
            control.should_log = True

    @property
    def median_step(self) -> float:
        """Median seconds of a step; 0 if there was none."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0
