"""Training steps whose gradients are looked at: cut into batches and ranks, or all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from kdcache.losses import PTP, Hard, HiddenMSE, LogitMSE, Loss, SoftKL
from kdcache.losses.pool import Pool
from kdcache.models import run as run_model
from kdcache.models.run import EQUAL
from kdcache.plans import Docs
from kdcache.plans.batch import Batch
from kdcache.progress import quiet
from kdcache.signals import ModelSizes
from kdcache.store import Cache
from kdcache.training.arguments import training_arguments
from kdcache.training.balance import Balance, Balancer
from kdcache.training.documents import CachedDocuments
from kdcache.training.fitting import PROJECTIONS
from kdcache.training.fused_head import fused_head
from kdcache.training.objective import Objective
from kdcache.training.ranks import Ranks
from kdcache.training.recipe import Recipe
from kdcache.training.reporter import Reporter
from kdcache.training.specs import cache_spec
from kdcache.training.trainer import DistillationTrainer
from kdcache.training.weighing import Weigher
from kdcache.training.weighting import weighting_of

BATCH, TURNS = 3, 4
DOCUMENTS = {torch.float64: 19, torch.float32: 13}
"""A step takes 12; of the second step, one of two ranks has a batch less, or none."""
TOP = HiddenMSE(layer_map="2:4")
LOSSES: dict[str, Loss] = {"hard": Hard(), "kl": SoftKL(), "logit_mse": LogitMSE(), "hidden": TOP}
"""One of every kind."""
COMBINED: dict[str, dict[str, Loss]] = {
    "kl and hard": {"kl": SoftKL(weight=0.7), "hard": Hard(weight=0.3)},
    "three": {"hidden": TOP, "hard": Hard(weight=0.5), "kl": SoftKL(temperature=2.0)},
    "one length": {"kl": SoftKL(), "hard": Hard()},  # at a time
    "element": {"kl": SoftKL(reduction="element", t_squared=False, tail="renormalize")},
    "squares": {"logit_mse": LogitMSE(), "hard": Hard(weight=0.5)},
    "first token": {"hidden": HiddenMSE(layer_map="2:4", positions="cls", normalize="l2")},
    "labels beside": {"ptp": PTP()},  # nothing of which is worked out from logits
}
ALL: dict[str, dict[str, Loss]] = {name: {name: loss} for name, loss in LOSSES.items()} | COMBINED
SMALL = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2}
    | dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0),
}
AUTO = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "causal-lm": transformers.AutoModelForCausalLM,
}

Gradients = dict[str, torch.Tensor]


class Taken(transformers.TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append(gradients(model))


def gradients(model: torch.nn.Module) -> Gradients:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Student:
    """A small student without dropout, always of the same weights, and its objective."""

    def __init__(
        self, cache: Cache, config: str | Path, losses: dict[str, Loss], dtype: torch.dtype
    ) -> None:
        self.cache, self.task = cache, cache.plan.task
        kind = transformers.AutoConfig.from_pretrained(config).model_type
        made = transformers.AutoConfig.from_pretrained(config, **SMALL[kind])
        torch.manual_seed(0)
        self.model = AUTO[self.task.name].from_config(made)
        setattr(self.model, EQUAL, losses is COMBINED["one length"])
        shape = ModelSizes(outputs=cache.shape.outputs, hidden=16, layers=2)
        known = cache_spec(cache, len(cache.plan.labelled_docs))
        self.objective = Objective(losses, known, shape)
        setattr(self.model, PROJECTIONS, self.objective.projections)
        self.model.to(dtype)
        self.documents = DOCUMENTS[dtype]

    def data(self) -> CachedDocuments:
        docs = self.cache.plan.docs[: self.documents]
        return CachedDocuments(self.cache, self.objective.arrays, seed=5, docs=docs)

    def trainer(
        self, folder: Path, *, turns: int, balance: Balance | None = None, **more: Any
    ) -> tuple[DistillationTrainer, Taken]:
        losses = self.objective.losses.items()
        given = {name: float(loss.weight) for name, loss in losses}
        args = self.arguments(folder, turns, **more)
        taken, ranks = Taken(), Ranks(args)
        made = DistillationTrainer(
            task=self.task,
            head=self.head(args),
            objective=self.objective,
            dataset=self.data(),
            ranks=ranks,
            balancers=[] if balance is None else [Balancer(balance, given)],
            model=self.model,
            args=args,
            callbacks=[taken, Reporter(quiet, "steps", ranks)],
        )
        return made, taken

    def arguments(self, folder: Path, turns: int = 1, **more: Any) -> Any:
        training = {
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": turns,
            "num_train_epochs": 1,
            "learning_rate": 0.0,  # or the second step would be of other weights
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            **more,
        }
        recipe = Recipe(name="steps", losses=self.objective.losses, training=training)
        return training_arguments(recipe, folder)

    def head(self, args: Any) -> Any:
        sample = self.cache.batch(self.cache.plan.docs[:1], [])
        return fused_head(self.model, self.task, sample, self.objective, args)[0]

    def at_once(self, batch: Batch, args: Any) -> tuple[float, dict[str, float], Gradients]:
        """Loss, terms and gradients of a batch that nobody cuts."""
        self.model.zero_grad()
        taps = self.objective.taps(head=self.head(args))
        outputs = run_model(self.model, batch, taps, task=self.task)
        total, terms = self.objective(outputs, batch)
        total.backward()
        told = {name: float(term) for name, term in terms.items()}
        return float(total.detach()), told, gradients(self.model)


def weigh(student: Student, trainer: DistillationTrainer, way: str) -> Weigher:
    """Let a trainer weigh its documents; what it weighs them by."""
    weighting = weighting_of(way)
    assert weighting is not None
    cache, data = student.cache, student.data()
    pool = Pool(cache.plan, data.docs)
    spec = cache_spec(cache, len(cache.plan.labelled_docs))
    made = Weigher(weighting, cache, spec, pool, cache.shape, seed=0)
    trainer.weighers, dataset = [made], trainer.dataset
    assert isinstance(dataset, CachedDocuments)
    dataset.weighed = True
    dataset.arrays = list(dict.fromkeys([*dataset.arrays, *made.arrays]))
    return made


def steps_of(data: CachedDocuments, size: int) -> list[Docs]:
    """Documents of every step of an epoch."""
    data.batch = size
    return [data.order[i : i + size] for i in range(0, len(data), size)]


def run(trainer: DistillationTrainer, taken: Taken) -> tuple[list[Any], list[Gradients]]:
    """Train; the log entry and the gradients of every step."""
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], taken.steps
