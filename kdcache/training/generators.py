"""The global generators of random numbers, seeded for a while and put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Generators:
    """Where Python's, numpy's and torch's generators stand, of torch that of the CPU."""

    python: Any
    numpy: Any
    torch: torch.Tensor

    @classmethod
    def now(cls) -> Generators:
        """Where they stand."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),  # noqa: NPY002 - losses from outside may draw of it
            torch=torch.get_rng_state(),
        )

    def put(self) -> None:
        """Let them go on from here."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002 - as above
        torch.set_rng_state(self.torch)


def drawn_apart(seed: int, draw: Callable[[], None]) -> Generators:
    """Let `draw` draw what it does of generators that are seeded, and put them back as they were;
    returns where it left them.
    """
    before = Generators.now()
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - as transformers' set_seed does
        torch.default_generator.manual_seed(seed)
        draw()
        return Generators.now()
    finally:
        before.put()
