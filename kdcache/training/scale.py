"""The documents of a step: ranks x batch x accumulation, which belong to a run."""

from __future__ import annotations

import json
from pathlib import Path

import transformers

from kdcache.errors import ConfigError, MismatchError
from kdcache.losses.schedules import is_on
from kdcache.manifest import Json
from kdcache.training.recipe import Recipe, load_recipe

RUN = "run.json"


def step_documents(args: transformers.TrainingArguments) -> int:
    """Documents of a step over all ranks."""
    return int(args.world_size * args.train_batch_size * args.gradient_accumulation_steps)


def scale_record(args: transformers.TrainingArguments) -> Json:
    """What the record of a run says of its steps."""
    return {
        "documents_per_step": step_documents(args),
        "ranks": args.world_size,
        "batch": args.train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
    }


def stored_scale(record: Path, recipe: Path, checkpoint: Path | None) -> Json:
    """The steps of the run to be resumed; of one that kept no record, as its checkpoint tells."""
    if record.exists():
        try:
            stored: Json = json.loads(record.read_text("utf-8"))
            return {key: int(stored[key]) for key in ("documents_per_step", "ranks")}
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{record} is damaged: {error}; train into another folder") from error
    states = () if checkpoint is None else checkpoint.glob("rng_state_*.pth")
    ranks = max(1, len(list(states)))
    training = load_recipe(recipe).training
    known = transformers.TrainingArguments
    batch = int(training.get("per_device_train_batch_size", known.per_device_train_batch_size))
    turns = int(training.get("gradient_accumulation_steps", known.gradient_accumulation_steps))
    return {"documents_per_step": ranks * batch * turns, "ranks": ranks}


def keep_scale(args: transformers.TrainingArguments, stored: Json) -> str:
    """Adapt accumulation so that a step keeps its documents; returns what to say of it.

    Raises MismatchError if no accumulation does.
    """
    documents, turn = stored["documents_per_step"], args.world_size * args.train_batch_size
    if documents % turn:
        raise MismatchError(
            f"the run takes {documents} documents a step, on {_ranks(stored['ranks'])}; "
            f"{_ranks(args.world_size)} of {args.train_batch_size} cannot: resume on "
            f"{_ranks(stored['ranks'])}, or {_way(documents, args.world_size)}"
        )
    turns = documents // turn
    if turns == args.gradient_accumulation_steps:
        return ""
    args.gradient_accumulation_steps = turns
    return (
        f"a step keeps its {documents} documents: {_ranks(args.world_size)} x "
        f"{args.train_batch_size} x accumulation {turns}"
    )


def _way(documents: int, ranks: int) -> str:
    """How else a step could have so many documents."""
    if documents % ranks:
        return f"on a number of ranks that divides {documents}"
    return f"set training.per_device_train_batch_size to a divisor of {documents // ranks}"


def _ranks(count: int) -> str:
    return f"{count} rank" + ("s" if count > 1 else "")


def require_step(args: transformers.TrainingArguments, documents: int, cache: object) -> None:
    """Raise ConfigError if dataloader_drop_last leaves no step of so many documents of a cache."""
    step = step_documents(args)
    if args.dataloader_drop_last and documents < step:
        raise ConfigError(
            f"training.dataloader_drop_last leaves nothing of {cache} to train on: there are "
            f"{documents} documents and a step takes {step} ({_ranks(args.world_size)} x "
            f"{args.train_batch_size} x accumulation {args.gradient_accumulation_steps}); lower "
            "training.per_device_train_batch_size, or turn dataloader_drop_last off"
        )


OF_WHOLE_STEPS = {
    "remembered": "remembers documents from step to step",
    "together": "is rewarded by the step that follows",
}
"""What a loss with such a method does that a step is not to be cut for."""


def require_whole(args: transformers.TrainingArguments, recipe: Recipe) -> None:
    """Raise ConfigError for a loss over pairs of documents whose steps are cut, unless allowed; and
    for one that remembers documents.
    """
    cut = args.world_size * args.gradient_accumulation_steps
    on = {n: loss for n, loss in recipe.losses.items() if is_on(n, loss, recipe.schedules)}
    parts = (
        f"a step is cut into {cut} batches ({_ranks(args.world_size)} x accumulation "
        f"{args.gradient_accumulation_steps}): train on one rank with "
        "training.gradient_accumulation_steps=1"
    )
    for name, loss in on.items():
        does = next((does for method, does in OF_WHOLE_STEPS.items() if hasattr(loss, method)), "")
        if does and cut > 1:
            raise ConfigError(f"losses.{name} {does}, and {parts}")
    pairs = [name for name, loss in on.items() if loss.over == "batch"]
    if pairs and cut > 1 and not recipe.data.split_pairs:
        raise ConfigError(
            f"losses.{pairs[0]} compares the documents of a batch with each other, and {parts}, "
            "or let it see the pairs within each batch alone with data.split_pairs=true"
        )
