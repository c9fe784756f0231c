"""What a signal is: one kind of teacher output, and the arrays it is stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.tasks import LOGITS_SPACE, RowSpace, Space, Subset, Task, axis_of

Arrays = dict[str, torch.Tensor]
Stats = dict[str, float]

POSITIONS: dict[str, Space] = {
    "cls": "example",
    "mean": "example",
    "all": "token",
    "masked": "masked",
}
"""Which hidden states of a document are kept, and the row space they make."""

Packing = Literal["", "zstd", "columns"]
"""How an inner chunk is compressed: not at all; by zstd; by zstd, column after column."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a signal: `row_shape` values of `dtype` for each row of `space`.

    Attributes:
        axes: names of the axes of a row; arrays of one group whose axes have one name have one
            length there.
        chunk_rows: rows of an inner chunk, the least that is read and checked at once.
        packing: how inner chunks are compressed.
        expected: bytes a row takes once compressed, least and most, as measured on real teachers;
            None where the size is exact.
    """

    name: str
    space: RowSpace
    row_shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...] = ()
    attributes: Json = field(default_factory=dict)
    chunk_rows: int = 16_384
    packing: Packing = ""
    expected: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.row_shape), f"{self.name}: an axis without a name"

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all its dimensions, that of the rows first."""
        return axis_of(self.space), *self.axes


@dataclass(frozen=True, kw_only=True)
class TeacherShape:
    """Sizes of a teacher: outputs (classes or vocabulary), hidden width, number of layers."""

    outputs: int
    hidden: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a language model, not applied: logits are `hidden @ weight.T + bias`.

    Attributes:
        hidden: [rows of the task's logits, H].
        weight: [V, H].
        bias: [V].
        autocast: dtype in which the model would have applied it; None: that of `hidden`.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    autocast: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """That of the logits."""
        return len(self.hidden), len(self.weight)

    def as_in_model(self) -> AbstractContextManager[Any]:
        """The autocast in which the model would have applied it."""
        kind, on = self.hidden.device.type, self.autocast is not None
        return torch.autocast(kind, dtype=self.autocast, enabled=on)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a model said of one padded batch of B documents of up to L tokens.

    Attributes:
        logits: [rows of the task's logits, outputs]; only a shape, on the meta device, with `head`.
        hidden: one [B, L, hidden] per layer, the embedding output first.
        mask: [B, L] bool, True where there is a token.
        masked: flat indices into B * L of the masked positions, for masked-lm.
        head: what would have made the logits.
    """

    logits: torch.Tensor
    hidden: Sequence[torch.Tensor]
    mask: torch.Tensor
    masked: torch.Tensor | None = None
    head: Head | None = None

    @property
    def said(self) -> torch.Tensor | Head:
        """The head if it was not applied, else the logits."""
        return self.logits if self.head is None else self.head


class Signal(Protocol):
    """A frozen dataclass that writes itself into the manifest and reads itself back."""

    name: ClassVar[str]
    codec: ClassVar[str]

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        ...

    def check(self, task: Task, shape: TeacherShape) -> None:
        """Raise ConfigError if a teacher of this shape cannot give this signal."""
        ...

    def arrays(self, task: Task, shape: TeacherShape) -> list[ArraySpec]:
        """The arrays this signal is stored in."""
        ...

    def encode(self, outputs: Outputs) -> Arrays:
        """Teacher outputs to array rows, on the teacher's device."""
        ...

    def measure(self, outputs: Outputs, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Distance between teacher and decoded values over sampled `rows`, as sums and maxima."""
        ...

    def summarise(self, stats: Stats) -> Json:
        """Fidelity figures from merged stats."""
        ...


@dataclass(frozen=True, kw_only=True)
class Origins:
    """What a signal's artefacts are made of, each computed when it is asked for.

    Attributes:
        token_counts: how often each id occurs in the plan, [V] int64.
        head: the linear output layer of the teacher: weight [V, H] and bias [V] or None.
    """

    token_counts: Callable[[], npt.NDArray[np.int64]]
    head: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]


@runtime_checkable
class Assisted(Protocol):
    """A signal that needs files of the cache, its artefacts, to encode and decode."""

    def artefacts(self, task: Task, shape: TeacherShape, origins: Origins) -> dict[str, bytes]:
        """The files to keep in the cache under `files/`, by name; made before the teacher runs."""
        ...

    def artefact_bytes(self, shape: TeacherShape) -> dict[str, int]:
        """The most each of those files takes, by name."""
        ...

    def assisted(self, shape: TeacherShape, read: Callable[[str], bytes]) -> Signal:
        """This signal, ready to encode and decode with the files that `read` gives.

        Raises DamageError if they are not what was kept.
        """
        ...


def merge(parts: Sequence[Mapping[str, float]]) -> Stats:
    """Merge stats of several batches: names that end in `max` by maximum, others by sum."""
    total: Stats = {}
    for stats in parts:
        for name, value in stats.items():
            if name.endswith("max"):
                total[name] = max(total.get(name, value), value)
            else:
                total[name] = total.get(name, 0.0) + value
    return total


def select(
    hidden: torch.Tensor, positions: str, mask: torch.Tensor, masked: torch.Tensor | None
) -> torch.Tensor:
    """Rows of a layer [B, L, H] at `positions`: [B, H], [tokens, H] or [masked, H].

    Means are float32 at least: what half precision holds of a token it need not hold of their sum.
    """
    if positions == "cls":
        return hidden[:, 0]
    if positions == "mean":
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = mask.unsqueeze(-1).to(wide)
        return (hidden.to(wide) * weights).sum(1) / weights.sum(1)
    if positions == "all":
        return hidden[mask]
    if masked is None:
        raise ConfigError("masked positions exist for the task masked-lm only")
    return hidden.flatten(0, 1)[masked]


def at_rows(outputs: Outputs, task: Task, space: RowSpace, rows: torch.Tensor | None) -> Outputs:
    """What a model said at the rows of a subset of a space: `mask` or `masked` has only those.

    `rows` [kept] int64 are numbers among all rows of the batch, as `Plan.kept` gives them. Where
    `space` is no subset the outputs are as they were.
    """
    if not isinstance(space, Subset):
        return outputs
    assert rows is not None, "which rows a subset keeps is to be read with it"
    kept = of_subset(outputs.mask, outputs.masked, space, rows)
    if LOGITS_SPACE[task] != space.of:
        return replace(outputs, **kept)
    if outputs.head is None:
        return replace(outputs, logits=outputs.logits[rows], **kept)
    head = replace(outputs.head, hidden=outputs.head.hidden[rows])
    return replace(outputs, logits=torch.empty(head.shape, device="meta"), head=head, **kept)


def of_subset(
    mask: torch.Tensor, masked: torch.Tensor | None, space: Subset, rows: torch.Tensor
) -> dict[str, Any]:
    """`mask` [B, L], or `masked`, with no more than the `rows` of a subset, by its name."""
    if space.of == "token":
        flat = mask.flatten().nonzero().squeeze(1)[rows]
        kept = torch.zeros_like(mask).flatten().index_fill(0, flat, True)
        return {"mask": kept.view_as(mask)}
    assert masked is not None
    return {"masked": masked[rows]}


def check_fraction(what: str, fraction: float) -> None:
    """Raise ConfigError, naming `what`, for a fraction that is none."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction of {what} must be more than 0 and at most 1; got {fraction}")


def check_kept(what: str, k: int, draws: int) -> None:
    """Raise ConfigError, naming `what`, for numbers of ids that cannot be."""
    if not 1 <= k <= 65536:
        raise ConfigError(f"k of {what} must lie in [1, 65536]; got {k}")
    if not 0 <= draws <= 65536:
        raise ConfigError(f"draws of {what} must lie in [0, 65536]; got {draws}")


def check_outputs(what: str, k: int, draws: int, shape: TeacherShape) -> None:
    """Raise ConfigError, naming `what`, for fewer outputs than k, or none left to draw from."""
    if k > shape.outputs:
        raise ConfigError(
            f"{what},k={k}: the teacher has {shape.outputs} outputs; use k={shape.outputs} or "
            "less, or logits:dense"
        )
    if draws and k == shape.outputs:
        raise ConfigError(
            f"{what},k={k},draws={draws}: k is all the outputs of the teacher, and nothing is left "
            "to draw; leave draws out"
        )


def row_space(what: str, space: Space, fraction: float) -> RowSpace:
    """`space`, or the subset that is a `fraction` of its rows.

    Raises ConfigError, naming `what`, where a document has a single row.
    """
    if fraction == 1:
        return space
    if space == "example":
        raise ConfigError(
            f"fraction={fraction:g} of {what} is for rows of tokens or masked positions; here a "
            "document has a single row: leave fraction out"
        )
    return Subset(space, fraction)


def logits_space(codec: str, task: Task, fraction: float) -> RowSpace:
    """Where a `fraction` of the logits is kept; ConfigError for that of a classifier's."""
    return row_space(f"logits:{codec}", LOGITS_SPACE[task], fraction)


def settings(values: Json) -> Json:
    """A configuration for the manifest, which is silent on a fraction of all and on no draws."""
    silent = (("fraction", 1), ("draws", 0))
    return {name: value for name, value in values.items() if (name, value) not in silent}


def check_positions(positions: str, task: Task) -> Space:
    """The row space of `positions`; ConfigError if the task has no such rows."""
    if positions == "masked" and task != "masked-lm":
        raise ConfigError(f"positions=masked needs the task masked-lm; the task is {task}")
    return POSITIONS[positions]


def options(text: str, known: Sequence[str], what: str) -> dict[str, Any]:
    """Parse "k=64,dtype=int8" into a dict; ConfigError for an unknown name or no value."""
    found: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        one_of(f"option of {what}", key.strip(), known)
        if not equals or not value.strip():
            raise ConfigError(f"{what}: option {key!r} needs a value, as in {key}=...")
        if key.strip() in found:
            raise ConfigError(f"{what}: option {key.strip()!r} is given twice")
        found[key.strip()] = value.strip()
    return found
