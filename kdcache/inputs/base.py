"""What a transformation of a student's inputs is."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol

import torch

from kdcache.signals import SoftLabels


class Asked(NamedTuple):
    """What is known of N tokens, documents one after the other, whose embeddings are asked for.

    Attributes:
        table: [V, H], the student's word embeddings, into which gradients flow.
        ids: [N] int64, the tokens.
        words: what a masked language model says at each of them, N rows; None: it is not asked.
    """

    table: torch.Tensor
    ids: torch.Tensor
    words: SoftLabels | None = None


class WordsOf(NamedTuple):
    """What is asked of a masked language model's soft labels.

    Attributes:
        teacher: its name among the teachers of a cache; "": the only one that is such a model.
        temperature: what its logits are divided by.
    """

    teacher: str = ""
    temperature: float = 1.0


class Inputs(Protocol):
    """A frozen dataclass, whose fields are its options in the [inputs] table of a recipe.

    Attributes:
        kind: its name there.
        asks: what it needs of a masked language model; None: it needs none.
    """

    kind: ClassVar[str]

    @property
    def asks(self) -> WordsOf | None: ...

    def embed(self, asked: Asked) -> torch.Tensor:
        """What is read in the place of the tokens' word embeddings, [N, H]."""
        ...
