"""The trainer that `train` uses, whose steps take turns and are measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from kdcache.bench.timing import PeakBytes
from kdcache.errors import ModelError
from kdcache.plans.batch import Batch
from kdcache.profiling.ops import Call, OpWatch
from kdcache.profiling.recorder import Recorded, Recorder
from kdcache.profiling.turns import MEMORY, OPS, TIME, TRACE, Turn, turns, ways
from kdcache.spans import BACKWARD, CLIP, OPTIMIZER
from kdcache.training.trainer import DistillationTrainer
from kdcache_kernels._backends import plain_torch

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
ROUGH = 2e-2
"""How far the losses of two ways may lie apart, as a share; ROUGH in half precision."""


class Measured:
    """What the steps of a profile come to.

    Attributes:
        steps: of each way, by its name: seconds, seconds of the parts, and of what ran beside.
        memory: the most bytes a step held beyond those held between steps; None if unknown.
        losses: of one batch, by way.
        calls: of kdcache's ops, of each step that was watched for them.
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[Recorded]] = defaultdict(list)
        self.memory: dict[str, int | None] = {}
        self.losses: dict[str, float] = {}
        self.calls: list[list[Call]] = []
        self.documents: list[int] = []
        self.tokens: list[int] = []


class Profiled(DistillationTrainer):
    """A trainer whose steps are those of a profile, of which `measured` tells.

    Args:
        steps: of each way that are timed.
        trace: file of a Chrome trace of one step; None: there is none.
        recorder: of the parts of a step; whoever trains lets `spans` know of it.
    """

    def __init__(
        self,
        *,
        steps: int,
        trace: Path | None,
        measured: Measured,
        recorder: Recorder,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        head = options["head"]
        self.recorder, self.measured, self.trace = recorder, measured, trace
        self.ways = ways([head] if isinstance(head, bool) else head)
        self.plan = turns(self.ways, steps, trace=trace is not None)
        self.args.max_steps = len(self.plan)
        whole = [self._read(one, head=False) for one in self.objectives]
        self._taps = {True: self.taps, False: whole}
        self._kept: tuple[list[Batch], list[float]] | None = None
        self._watch: OpWatch | None = None
        self._around = ExitStack()
        self.add_callback(_Ends(self))
        for name, part in (("backward", BACKWARD), ("clip_grad_norm_", CLIP)):
            known = getattr(self.accelerator, name)
            setattr(self.accelerator, name, self._as_part(part, known))

    def _as_part(self, part: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def within(*args: Any, **given: Any) -> Any:
            with self.recorder.part(part):
                return run(*args, **given)

        return within

    @property
    def now(self) -> Turn:
        """What the step is for."""
        return self.plan[self.state.global_step]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Begin the step of a turn; the documents are those of the first step of its round."""
        turn = self.now
        self.taps = self._taps[turn.way.fused]
        self._begin(turn)
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        if turn.first or self._kept is None or len(self._kept[0]) != len(found[0]):
            self._kept = found
        batches, _ = self._kept
        self.turn = batches[0].cache
        self.objective = self.objectives[self.turn]
        if turn.kind == TIME and turn.first:
            self.measured.documents.append(sum(len(batch["docs"]) for batch in batches))
            self.measured.tokens.append(sum(batch.tokens for batch in batches))
        return self._kept

    def _begin(self, turn: Turn) -> None:
        """Put around the step what it is for."""
        around = self._around = ExitStack()
        around.enter_context(plain_torch(turn.way.plain))
        if turn.kind == MEMORY:
            peak = PeakBytes(self.args.device)
            around.callback(lambda: self.measured.memory.update({turn.way.name: peak.end()}))
        if turn.kind == TRACE:
            around.enter_context(self._traced())
        if turn.kind == OPS:
            self._watch = OpWatch(self.recorder.clock)
        self.recorder.begin()

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """Write a trace of what runs within the context, parts and ops of kdcache's in it."""
        with profile(activities=_activities()) as traced:
            self.recorder.ranges = True
            yield
            self.recorder.ranges = False
            self.recorder.clock.settle()
        traced.export_chrome_trace(str(self.trace))

    def end(self) -> None:
        """End the step, of which the optimizer has made its own."""
        turn = self.plan[self.state.global_step - 1]
        found = self.recorder.end()
        if turn.kind == TIME:
            self.measured.steps[turn.way.name].append(found)
        if self._watch is not None:
            self.measured.calls.append(self._watch.calls)
            self._watch = None
        self._around.close()

    def _loss(self, *args: Any) -> Any:
        if self._watch is None:
            return super()._loss(*args)
        with self._watch:
            return super()._loss(*args)

    def compute_loss(  # type: ignore[override]  # a Batch is what our loader gives
        self, model: Any, inputs: Batch, *args: Any, **given: Any
    ) -> Any:
        if not self.measured.losses:
            self._compare(model, inputs, given.get("num_items_in_batch"))
        return super().compute_loss(model, inputs, *args, **given)

    def _compare(self, model: Any, batch: Batch, totals: Any) -> None:
        """Work out the losses of a batch by every way: no time is told of ways that differ."""
        cuda = [self.args.device] if self.args.device.type == "cuda" else []
        state = {n: x.clone() for n, x in self.objective.state.state_dict().items()}
        for way in self.ways:
            with torch.random.fork_rng(cuda), torch.no_grad(), plain_torch(way.plain):
                torch.manual_seed(self.args.seed)  # the same units drop out
                activations = self.objective.read(model, batch, self._taps[way.fused][self.turn])
                loss, _ = super()._loss(activations, batch, totals)
            self.objective.state.load_state_dict(state)  # what a loss keeps of a step, it forgets
            self.measured.losses[way.name] = float(loss)
        ours, *others = self.measured.losses.values()
        half = self.args.bf16 or self.args.fp16
        dtype = next(model.parameters()).dtype
        allowed = ROUGH if half else TOLERANCE.get(dtype, ROUGH)
        if not all(abs(one - ours) <= allowed * max(abs(ours), 1e-3) for one in others):
            raise ModelError(
                f"the ways to work out a loss differ on one batch, {self.measured.losses}, so "
                "their times are not told: the student's outputs are no numbers, or a kernel is "
                "wrong here (kdcache bench kernels tells which)"
            )


class _Ends(transformers.TrainerCallback):
    """Tells a trainer of the ends of its steps, and of the optimizer's part in them."""

    def __init__(self, trainer: Profiled) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **given: Any) -> None:
        self.trainer.recorder.enter(OPTIMIZER)

    def on_optimizer_step(self, *args: Any, **given: Any) -> None:
        self.trainer.recorder.leave()

    def on_step_end(self, *args: Any, **given: Any) -> None:
        self.trainer.end()


def _activities() -> list[ProfilerActivity]:
    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *cuda]
