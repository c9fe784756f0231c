"""What the files of `oracles` hold, put through the losses of kdcache: a module for each method.

A file is a case: inputs, settings, `loss`, parts of it as `out_NAME` and the gradient at a
student's input NAME as `grad_NAME`, all in float64. Most were made by running code that authors of
the methods published; `meta_kind` says whether it was, or only the formula. A module has a table

    CASES = {"tinybert": intermediate, "tinybert.pred": prediction}

of what files' names begin with (the longest that fits counts) and a function each, which takes what
is `Given` and returns what was `Found` by the losses that recipes are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import torch

from kdcache.labels import LabelKind
from kdcache.labels.classes import CLASSES
from kdcache.losses import Loss, Pair, Step
from kdcache.plans.batch import Batch, Rows
from kdcache.signals import LOGITS, Activations, LayerRows, SoftLabels, Tap

FOLDER = Path(__file__).parents[1] / "oracles"


class Given(Mapping[str, torch.Tensor]):
    """The arrays of a file by name, of floats in the dtype under test; inputs with a gradient in
    the file are leaves that require one.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        with np.load(FOLDER / f"{name}.npz") as stored:
            self.arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
        self.name, self.dtype = name, dtype
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, key: str) -> torch.Tensor:
        if key not in self._made:
            values = torch.from_numpy(np.array(self.arrays[key]))
            values = values.to(self.dtype) if values.is_floating_point() else values
            self._made[key] = values.requires_grad_(f"grad_{key}" in self.arrays)
        return self._made[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def number(self, key: str) -> float:
        """A setting that is one number."""
        return float(self.arrays[key])

    def text(self, key: str) -> str:
        """A setting that is a word."""
        return str(self.arrays[key])

    @property
    def kind(self) -> str:
        """What made the numbers: "code" that was published, or the "formula" alone."""
        return self.text("meta_kind")

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each sequence, [B]."""
        return self["lengths"]

    @property
    def whole(self) -> torch.Tensor:
        """Numbers of the sequences without a pad."""
        return (self.lengths == self.lengths.max()).nonzero().squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the losses of kdcache make of a case.

    Attributes:
        loss: the loss; of a case that is cut, that of the sequences without a pad.
        parts: further values by the names they have in the file, such as "out_hidden".
        cut: how many sequences were left out of `loss`, because the code counts pads. The runner
            then holds gradients at the other sequences alone against the file, which is a mean over
            all of them, and leaves those of parameters.
        sum_to_one: inputs whose rows are probabilities. The gradient that is compared is that at
            scores of which softmax makes them: a loss of scores cannot leave what adds up to 1.
    """

    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    cut: int = 0
    sum_to_one: tuple[str, ...] = ()


Case = Callable[[Given], Found]


def collected() -> dict[str, Case]:
    """The cases of all modules here: what names begin with -> function."""
    found: dict[str, Case] = {}
    for module in iter_modules(__path__):
        cases: dict[str, Case] = import_module(f"{__name__}.{module.name}").CASES
        twice = found.keys() & cases.keys()
        assert not twice, f"{module.name} claims {twice}, which another module does"
        found |= cases
    return found


def case_of(name: str, cases: Mapping[str, Case]) -> Case:
    """The function of the longest prefix of a name that is claimed."""
    prefixes = [prefix for prefix in cases if name.startswith(prefix)]
    assert prefixes, f"no module of tests/methods claims {name}: give one of its CASES that prefix"
    return cases[max(prefixes, key=len)]


def value(
    loss: Loss,
    pairs: list[Pair],
    lengths: torch.Tensor,
    *,
    space: Any = "token",
    labels: torch.Tensor | None = None,
    kind: LabelKind = CLASSES,
    heads: int = 0,
    weights: torch.Tensor | None = None,
    counted: bool = False,
    docs: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """What a loss makes of both sides of its matches, as the objective asks for it.

    Args:
        pairs: of documents of so many `lengths` tokens, in the order of the loss's matches.
        space: of their rows: "token", or "document" for rows of documents.
        labels: hard labels, where the loss is a mean over the rows that have one.
        heads: those of the student's attention, where the pairs are of queries and keys.
        weights: what documents count for, [B] float64; None: alike.
        counted: whether they are weighed in a mean over their number.
        docs: numbers of the documents in their cache; None: it has no others.
        more: further fields of the step.
    """
    over = loss.over
    rows = Rows("document") if over in ("documents", "batch", "pairs") else Rows(space)
    rows = rows._replace(
        padded=over == "padded", paired=over == "pairs", labelled=labels is not None
    )
    batch = batch_of(lengths, labels)
    if weights is not None:
        batch.weigh(weights, counted=counted)
    if docs is not None:
        batch["docs"] = docs
    student = pairs[0].student
    values = {LOGITS: student.detach() if isinstance(student, torch.Tensor) else torch.empty(0)}
    if heads:
        values[Tap("query", 1)] = student.new_empty(len(lengths), heads, 0, 0)
    activations = more.pop("activations", Activations(values=values, mask=batch.mask))
    step = Step(
        batch=batch,
        labels=kind,
        activations=activations,
        rows=rows,
        total=batch.total(rows),
        **more,
    )
    return loss.value(pairs, step)


def batch_of(lengths: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    """Documents of so many tokens, with their labels."""
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    batch = Batch(docs=torch.arange(len(lengths)), attention_mask=mask.long())
    batch.tokens, batch.pairs = int(lengths.sum()), int(lengths.square().sum())
    if labels is not None:
        batch["labels"], batch.labelled = labels, int((labels >= 0).sum())
    return batch


def one_each(documents: int) -> torch.Tensor:
    """Lengths of documents of which there is a row each."""
    return torch.ones(documents, dtype=torch.int64)


def tokens(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows of the tokens of [B, L, ...]: [tokens, ...]."""
    mask = torch.arange(states.shape[1])[None] < lengths[:, None]
    return states[mask]


def query_and_key(scores: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of queries and of keys, [tokens, heads * L], whose scores [B, heads, L, L] are these.

    A query is the square root of L times its scores, a key a row of the identity: their product
    over the square root of L, which is the width of a head, is the score.
    """
    _, heads, length, _ = scores.shape
    queries = tokens(scores.transpose(1, 2), lengths) * length**0.5
    keys = torch.eye(length, dtype=scores.dtype)[None, :, None].expand(len(lengths), -1, heads, -1)
    return queries.flatten(1), tokens(keys, lengths).flatten(1)


def layer_rows(rows: torch.Tensor) -> LayerRows:
    """A teacher's rows as a cache gives them, but in the dtype they have."""
    return LayerRows(codes=rows.detach())


def dense(logits: torch.Tensor) -> SoftLabels:
    """A teacher's logits [N, C] as `logits:dense` gives them."""
    ids = torch.arange(logits.shape[1]).expand(logits.shape)
    return SoftLabels(ids=ids, logprobs=logits.log_softmax(-1), values=logits)


def entropy(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of each row [N, C] at a temperature in nats, [N]: what cross-entropy has over divergence."""
    found = (logits / temperature).log_softmax(-1)
    return -(found.exp() * found).sum(-1)
