"""What the processes of a run agree on at every step: how much each batch counts, when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import transformers
from torch import distributed


class Ranks:
    """The ranks of a run: one sum over all of them a step, through the hosts.

    A GPU is neither asked nor waited for: what is summed is known where batches are made.

    Attributes:
        asked: whether this process was asked to stop.
        stopping: whether any was, as all of them know since the last sum.
    """

    def __init__(self, args: transformers.TrainingArguments) -> None:
        self.size = args.world_size
        self.asked = self.stopping = False
        self._group = None
        if self.size > 1 and distributed.get_backend() != "gloo":
            limit = timedelta(seconds=args.ddp_timeout)
            self._group = distributed.new_group(backend="gloo", timeout=limit)

    def ask_to_stop(self) -> None:
        """Stop after this step; where others have to know, after one that begins later."""
        self.asked = True
        self.stopping = self.size == 1

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of `values` over all ranks; every rank has to ask."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor([*values, self.asked], dtype=torch.float64)
        distributed.all_reduce(sums, group=self._group)
        *totals, asked = sums.tolist()
        self.stopping = asked > 0
        return totals
