"""The training loop: transformers.Trainer with a cache's batches and a recipe's objective."""

from __future__ import annotations

import math
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME

from kdcache.errors import ModelError
from kdcache.losses import Moment
from kdcache.losses.selector import Selector
from kdcache.models.layer_rates import Slowed, at_rates
from kdcache.models.recording import heads_of
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, Activations, Tap
from kdcache.spans import FORWARD, WAIT, span
from kdcache.tasks import Task, as_task
from kdcache.training.balance import Balancer, balanced_weights
from kdcache.training.choosing import best_checkpoint
from kdcache.training.dev import DevSet, value_of
from kdcache.training.dev_heads import HeadDevs
from kdcache.training.idle import LeaveIdle, idle_parameters
from kdcache.training.loader import Documents, make_loader
from kdcache.training.measuring import Measuring
from kdcache.training.objective import Objective, Terms
from kdcache.training.ranks import Ranks
from kdcache.training.shares import Shares
from kdcache.training.term_means import TermMeans
from kdcache.training.weighing import Weigher


class DistillationTrainer(transformers.Trainer):
    """A Trainer whose batches come from a cache and whose loss is an objective.

    The loss of a step is that of all its documents at once, however they are cut into micro-batches
    and dealt out to ranks. With `head`, that of a language model is left to the losses, which fuse
    with it; a list is of the caches. With a `dev` set, the student is scored on it where `args` say
    so.

    Attributes:
        objective: that of the cache whose documents the step has; `others` are of further caches.
        weighers: what weighs the documents of each cache; none: they count alike.
        balancers: what sets the weights of the losses in the first steps, of each head where there
            are several; none: they are given.
        teacher_logs: scores of the teacher that are logged with every score on the dev set.
        shares: what each loss counts for; `say` takes a line about those that do not.
        diverged: the step whose loss was no number, after which a student that had been scored
            before stops; 0: none.
    """

    def __init__(
        self,
        *,
        task: str | Task,
        objective: Objective,
        dataset: Documents,
        ranks: Ranks | None = None,
        others: Sequence[Objective] = (),
        weighers: Sequence[Weigher] = (),
        balancers: Sequence[Balancer] = (),
        head: bool | Sequence[bool] = False,
        dev: DevSet | HeadDevs | None = None,
        teacher_logs: Mapping[str, float] = MappingProxyType({}),
        say: Callable[[str], None] = lambda line: None,
        prefix: str = "",
        slowed: Slowed | None = None,
        **options: Any,
    ) -> None:
        self.slowed = slowed or {}
        super().__init__(train_dataset=dataset, eval_dataset=dev, **options)
        self.model_accepts_loss_kwargs = True  # with the next line: accumulation has nothing to
        self.loss_is_scaled_for_ga = True  # divide, a batch's loss is its part of the step's
        self.remove_callback(transformers.PrinterCallback)
        self.task: Task = as_task(task)
        self.objectives, self.weighers = [objective, *others], weighers
        self.objective: Objective = objective
        self.dataset: Documents = dataset
        self.ranks = Ranks(self.args) if ranks is None else ranks
        heads = [head] * len(self.objectives) if isinstance(head, bool) else head
        pairs = zip(self.objectives, heads, strict=True)
        self.taps = [self._read(one, head=fused) for one, fused in pairs]
        turns, model = range(len(heads)), options["model"]
        self.idle = [idle_parameters(model, self.objectives, turn) for turn in turns]
        if any(self.idle):
            self.add_callback(LeaveIdle(lambda: self.idle[self.turn]))
        self.dev, self.teacher_logs, self.diverged = dev, teacher_logs, 0
        self.turn = 0
        self.heads: Sequence[str] = getattr(model.config, "heads", ())
        met = heads_of(model)[0] if self.heads else model
        self.balancers = balancers
        self.shares = Shares(
            objective, met, self.args, say, prefix, others=others, balanced=bool(balancers)
        )
        self.measuring = Measuring(self.shares, balancers, self.objectives, self.ranks)
        self.terms = TermMeans(
            self.objectives,
            self.heads,
            lambda value: self.accelerator.reduce(value, reduction="sum"),
        )
        self._documents = self._tokens = 0
        self._weight = 0.0
        self.epoch_steps = 1
        self.wait_seconds = 0.0

    def _read(self, objective: Objective, *, head: bool) -> list[Tap]:
        """What to read out of the student for an objective."""
        taps = objective.taps(head=head)
        if self.ranks.size > 1 and not objective.logits and LOGITS not in taps:
            taps.append(LOGITS)  # DDP waits for a gradient of every parameter
        return taps

    def create_optimizer(self, *args: Any, **given: Any) -> Any:
        """The Trainer's, with a lower learning rate for the parameters that have one."""
        optimizer = super().create_optimizer(*args, **given)
        if self.slowed:
            optimizer.param_groups = list(at_rates(optimizer.param_groups, self.slowed))
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> Any:
        """The batches of a step, and what its losses are means over, which `compute_loss` takes.

        `wait_seconds` sums the time until the batches were there.
        """
        started = time.perf_counter()
        with span(WAIT):
            batches = list(islice(epoch_iterator, num_batches))
        self.wait_seconds += time.perf_counter() - started
        for batch in batches:
            if self.weighers:
                self._weight += self.weighers[batch.cache].weigh(batch, self.state.global_step)
            if not batch.idle:
                self._documents += len(batch["docs"])
                self._tokens += batch.tokens
        if self.selector is not None:
            self.selector.take(self.ranks.total(self.selector.pending.tolist()))
        if batches:
            self.turn = batches[0].cache  # that of the whole step
            self.objective = self.objectives[self.turn]
        self.terms.step(self.turn)
        self.objective.step = self.state.global_step
        self.measuring.begin(self.turn, self.state.global_step, self.epoch_steps)
        if self.objective.changes:
            self.objective.advance(self.moment())
        return batches, self.ranks.total(self.objective.totals(batches))

    @property
    def selector(self) -> Selector | None:
        """What learns from scores on the dev set which documents count, if anything does."""
        return self.weighers[0].selector if self.weighers else None

    def moment(self) -> Moment:
        """Where the run stands, of its steps and of its epochs."""
        step, steps = self.state.global_step, self.state.max_steps
        epoch = self.epoch_steps
        return Moment(step, steps, step // epoch, -(-steps // epoch))

    def seen(self) -> tuple[int, int]:
        """Documents and tokens, pads left out, trained on by all ranks; every rank has to ask."""
        documents, tokens = self.ranks.total([self._documents, self._tokens])
        return int(documents), int(tokens)

    def mean_weight(self) -> float | None:
        """What a document weighed on average, of all ranks; every rank has to ask. None of a run
        that had been trained to its end when it was resumed.
        """
        weight, documents = self.ranks.total([self._weight, self._documents])
        return weight / documents if documents else None

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        turns = args.world_size * args.gradient_accumulation_steps
        self.dataset.batch = args.train_batch_size * turns
        loader = make_loader(
            self.dataset,
            batch_size=args.train_batch_size,
            drop_last=args.dataloader_drop_last,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            ranks=args.world_size,
            rank=args.process_index,
        )
        self.epoch_steps = max(1, -(-len(loader) // args.gradient_accumulation_steps))
        # Not accelerator.prepare, which would deal the batches out again and repeat some of them.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def _prepare_inputs(self, inputs: Any) -> Any:
        """The batch as the loader has put it on the device: it knows what its rows count for."""
        return inputs

    def compute_loss(  # type: ignore[override]  # a Batch is what our loader gives
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: list[float] | None = None,
    ) -> Any:
        with span(FORWARD):
            activations = self.objective.read(model, inputs, self.taps[self.turn])
        self.measuring.measure(activations, inputs, num_items_in_batch)
        loss, terms = self._loss(activations, inputs, num_items_in_batch)
        if self.ranks.size > 1:
            loss = loss * self.ranks.size  # DDP takes the mean of the ranks' gradients
            if not self.objective.logits:
                loss = loss + 0.0 * activations[LOGITS].sum()
            for parameter in self.idle[self.turn]:
                loss = loss + 0.0 * parameter.sum()
        self.terms.add(self.turn, terms)
        return (loss, activations) if return_outputs else loss

    def _loss(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None
    ) -> tuple[torch.Tensor, Terms]:
        """The objective; of several students trained together the sum, and the mean of terms."""
        found = [self.objective(one, batch, totals) for one in activations.students]
        if len(found) == 1:
            return found[0]
        terms = {name: sum(t[name] for _, t in found) / len(found) for name in found[0][1]}
        return torch.stack([loss for loss, _ in found]).sum(), typing.cast(Terms, terms)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each term's mean since the last log, before its weight, as "loss_NAME"; its share.

        Of several heads, "loss_HEAD.NAME" is the mean over the steps of a head.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                self._stop_diverged(logs["loss"])
            means = self.terms.of_heads() or self.terms.means()
            logs |= {f"loss_{name}": mean for name, mean in means.items()}
            logs |= self.shares.logs(self.terms.means(weighed=True)) | self.objective.scheduled()
            weights = balanced_weights(self.balancers, self.heads)
            logs |= {f"{name}.weight": weight for name, weight in weights.items()}
            self.terms.clear()
        super().log(logs, start_time)

    def _stop_diverged(self, loss: float) -> None:
        """Stop where weights were kept that scored well; raise ModelError where there are none."""
        if self.state.best_global_step is None:
            raise ModelError(
                f"the loss is {loss} at step {self.state.global_step}: training has diverged; "
                "lower training.learning_rate"
            )
        self.diverged = self.state.global_step
        self.control.should_training_stop = True

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Score the student on the dev set, log it and let callbacks know."""
        assert self.dev is not None
        where = {"rank": self.args.process_index, "ranks": self.args.world_size}
        scored = self.dev.score(self.model, batch_size=self.args.eval_batch_size, **where)
        scored[self.dev.metric] = value_of(scored, self.dev.metric)
        if self.selector is not None:
            score = scored[self.dev.metric]
            self.selector.reward(score if self.args.greater_is_better else -score)
        plain = {name: value for name, value in scored.items() if isinstance(value, int | float)}
        logs = {f"{metric_key_prefix}_{name}": value for name, value in plain.items()}
        self.log(logs | dict(self.teacher_logs))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def restore(self, checkpoint: Path) -> None:
        """Take over the state of a run that had ended, and the weights it came to."""
        self.state = transformers.TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        best = best_checkpoint(self.state, checkpoint.parent) if self.dev is not None else None
        self._load_from_checkpoint(str(best or checkpoint))
