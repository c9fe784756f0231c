"""What a run tells while it trains: a progress bar, times of steps, and how it is stopped."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import transformers

from kdcache.interrupts import handled_by
from kdcache.progress import Progress
from kdcache.training.ranks import Ranks


class Reporter(transformers.TrainerCallback):
    """Drives a progress bar, times steps, and turns Ctrl-C or SIGTERM into a checkpoint and a stop.

    Several ranks stop after the same step, the one after the next that all of them begin.

    Attributes:
        step_seconds: time from the end of a step to the end of the next, reading included.
    """

    def __init__(self, progress: Progress, label: str, ranks: Ranks) -> None:
        self.progress, self.label, self.ranks = progress, label, ranks
        self.step_seconds: list[float] = []
        self._stack = ExitStack()
        self._last = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the run stops after the step under way."""
        return self.ranks.stopping

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Hold the bar and the handler of both while training."""
        with self._stack:
            yield

    def on_train_begin(
        self, args: Any, state: transformers.TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._stack.enter_context(handled_by(self._interrupt))
        steps = state.max_steps - state.global_step
        if state.is_world_process_zero:
            bar = self.progress.bar(self.label, unit="steps", total=steps)
            self._advance = self._stack.enter_context(bar)
        self._last = time.perf_counter()

    def _interrupt(self, *_: Any) -> None:
        if self.ranks.asked:
            raise KeyboardInterrupt  # the second time, at once
        self.ranks.ask_to_stop()
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

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = time.perf_counter()  # a score is no part of the next step

    def on_epoch_end(
        self, args: Any, state: Any, control: transformers.TrainerControl, **kwargs: Any
    ) -> None:
        if (
            control.should_training_stop and not self.interrupted
        ):  # a callback of the user's asked for it
            control.should_log = True

    @property
    def median_step(self) -> float:
        """Median seconds of a step; 0 if there was none."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0
