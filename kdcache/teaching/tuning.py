"""One run of fine-tuning: transformers.Trainer over a plan's documents, scored after each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcache.errors import ConfigError
from kdcache.labels import LabelKind
from kdcache.manifest import Json
from kdcache.memory import kept_pages
from kdcache.models import run
from kdcache.models.auto import silent_transformers
from kdcache.plans import Array
from kdcache.plans.batch import Batch, collate
from kdcache.progress import Advance, Progress
from kdcache.signals import LOGITS
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.teaching.data import Data, Documents
from kdcache.teaching.scores import WORST, Floats, merit, predict, score, step_loss
from kdcache.teaching.settings import Settings
from kdcache.training.documents import document_order

WINDOW = 25  # batches among which documents are sorted by length: less padding
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 0.01


class PlannedDocuments(Dataset[Batch]):
    """Documents of a plan, read a batch at a time in the order of an epoch."""

    def __init__(self, documents: Documents, *, seed: int, batch: int) -> None:
        self.documents, self.seed, self.batch = documents, seed, batch
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.documents)

    def __getitems__(self, docs: list[int]) -> Batch:
        return collate(self.documents.plan, np.asarray(docs), {})

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def batches(self) -> Iterator[list[int]]:
        """Rows of the plan's document space, batch by batch."""
        docs = self.documents.docs
        lengths = self.documents.plan.per_document["doc_len"][docs]
        order = document_order(
            len(docs),
            seed=self.seed,
            epoch=self.epoch,
            batch=self.batch,
            lengths=lengths,
            window=WINDOW,
        )
        for start in range(0, len(docs), self.batch):
            yield docs[order[start : start + self.batch]].tolist()


class _Batches(Sampler[list[int]]):
    def __init__(self, dataset: PlannedDocuments) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.dataset.batch)

    def __iter__(self) -> Iterator[list[int]]:
        return self.dataset.batches()


class TeachingTrainer(transformers.Trainer):
    """A Trainer that gives a model each document with pads of its own, and weighs classes."""

    def __init__(
        self,
        *,
        dataset: PlannedDocuments,
        weights: Floats | None,
        kind: LabelKind,
        scale: Array | None,
        **options: Any,
    ) -> None:
        super().__init__(train_dataset=dataset, **options)
        self.remove_callback(transformers.PrinterCallback)
        self.dataset = dataset
        device = self.args.device
        self.weights = None if weights is None else torch.tensor(weights, device=device).float()
        self.kind = kind
        self.scale = None if scale is None else torch.as_tensor(scale, device=device).float()
        self.losses: list[torch.Tensor] = []

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=_Batches(self.dataset),
            collate_fn=lambda batch: batch,  # `__getitems__` has collated it already
            generator=torch.Generator(),  # reading does not change training
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def compute_loss(  # type: ignore[override]  # a Batch is what our loader gives
        self, model: Any, inputs: Batch, return_outputs: bool = False, **more: Any
    ) -> Any:
        outputs = run(model, inputs, [LOGITS], task=TEXT_CLASSIFICATION)
        loss = step_loss(self.kind, outputs[LOGITS], inputs["labels"], self.weights, self.scale)
        self.losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def mean_loss(self) -> float | None:
        """Mean loss of the steps since it was last asked for; None where it is not finite."""
        mean = float(torch.stack(self.losses).mean())
        self.losses = []
        return mean if math.isfinite(mean) else None


@dataclass
class Watcher(transformers.TrainerCallback):
    """Scores a model after each epoch and keeps the weights that were best on the dev documents."""

    dev: Documents
    by: str
    advance: Advance
    epochs: list[Json] = field(default_factory=list)
    best: tuple[float, float] = WORST
    weights: dict[str, torch.Tensor] | None = None
    trainer: TeachingTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)

    def on_epoch_end(
        self, args: Any, state: Any, control: transformers.TrainerControl, **kwargs: Any
    ) -> None:
        assert self.trainer is not None
        model: Any = self.trainer.model
        scores = score(predict(model, self.dev), self.dev)
        epoch = len(self.epochs) + 1
        self.epochs.append({"epoch": epoch, "loss": self.trainer.mean_loss(), "dev": scores})
        if merit(scores, self.by) > self.best:
            self.best = merit(scores, self.by)
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        if scores is None:
            control.should_training_stop = True  # it does not come back from what is no number


def arguments(settings: Settings, folder: Path, *, cpu: bool) -> transformers.TrainingArguments:
    """Arguments of the runs; ConfigError for a launch of several processes."""
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="linear",
        seed=settings.seed,
        use_cpu=cpu,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
    )
    args._n_gpu = min(1, args.n_gpu)  # DataParallel would split documents by rows
    if args.world_size > 1:
        raise ConfigError("teach runs in one process: start it without torchrun")
    return args


def tune(
    model: Any,
    data: Data,
    args: transformers.TrainingArguments,
    rate: float,
    weights: Floats | None,
    *,
    by: str,
    label: str,
    progress: Progress,
) -> list[Json]:
    """Fine-tune `model` at one learning rate; it is left with the weights of its best epoch.

    Seeds torch's, numpy's and Python's global generators, so that runs do not depend on each other.

    Returns what became of each epoch: its number, mean loss, and scores on the dev documents, None
    where outputs were no longer finite, which ends the run.
    """
    batch = args.per_device_train_batch_size
    steps = math.ceil(len(data.train) / batch)
    args.learning_rate, args.warmup_steps = rate, math.ceil(WARMUP * steps * args.num_train_epochs)
    dataset = PlannedDocuments(data.train, seed=args.seed, batch=batch)
    scale = data.train.teaching.scale
    with ExitStack() as stack:
        total = int(steps * args.num_train_epochs)
        advance = stack.enter_context(progress.bar(label, unit="steps", total=total))
        watcher = Watcher(data.dev, by, advance)
        watcher.trainer = TeachingTrainer(
            model=model,
            args=args,
            dataset=dataset,
            weights=weights,
            kind=data.train.kind,
            scale=None if scale is None else scale(data.train.labels),
            callbacks=[watcher],
        )
        with silent_transformers(), kept_pages(args.device.type):
            watcher.trainer.train()
    if watcher.weights is not None:
        model.load_state_dict(watcher.weights)
    return watcher.epochs
