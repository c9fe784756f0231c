"""Whether the processes that a launcher started train together, and on what."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import transformers
from torch import distributed

from kdcache.errors import ConfigError

SIZES = (
    "WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
WAY_OUT = "start them with torchrun --nproc-per-node N"


def launch_values() -> dict[str, Any]:
    """Training arguments of a launch: several processes without an accelerator train on the CPU.

    Raises ConfigError for processes that cannot know which of them they are.
    """
    name, size = _launched()
    if size == 1:
        return {}
    if not distributed.is_initialized() and not any(rank in os.environ for rank in RANKS):
        raise ConfigError(
            f"{name}={size} says that {size} processes train together, and RANK, which says which "
            f"of them this is, is not set: {WAY_OUT}, or unset {name} to train in one process"
        )
    return {} if torch.accelerator.is_available() else {"use_cpu": True}


def require_together(args: transformers.TrainingArguments) -> None:
    """Raise ConfigError if processes started together would each train a student alone."""
    name, size = _launched()
    hint = f", or unset {name} to train in one process"
    if distributed.is_initialized():
        name, size, hint = "torch's process group", distributed.get_world_size(), ""
    if size != args.world_size:
        raise ConfigError(
            f"{name} says that {size} processes train together, and transformers finds "
            f"{args.world_size}: {WAY_OUT}{hint}"
        )


def leave_together() -> None:
    """Leave the process group in a process that ends now: its threads abort one that ends with
    them. What is spread over the group goes first: freed later, it waits for those threads.
    """
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def _launched() -> tuple[str, int]:
    """The variable that tells how many processes there are, and the number."""
    for name in SIZES:
        value = os.environ.get(name)
        if value:
            if not value.isdecimal() or not int(value):
                raise ConfigError(f"{name} is a number of processes; got {value!r}")
            return name, int(value)
    return "WORLD_SIZE", 1
