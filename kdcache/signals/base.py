"""What a signal is: one kind of teacher output, and the arrays it is stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.codecs.linear_file import Linear
from kdcache.signals.positions import POSITIONS, positions_of
from kdcache.signals.taps import ModelSizes, Tap
from kdcache.tasks import TASKS, RowSpace, Space, Subset, Task, axis_of

Arrays = dict[str, torch.Tensor]
Columns = dict[str, torch.Tensor]
Stats = dict[str, float]

SAMPLED_ROWS = "kept"
"""What a batch calls, under a signal's name, the numbers of the rows that a fraction keeps."""

Rows = TypeVar("Rows")

Packing = Literal["", "zstd", "columns"]
"""How an inner chunk is compressed: not at all; by zstd; by zstd, column after column."""


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a signal: `row_shape` values of `dtype` for each row of `space`.

    A signal names its arrays as if it were alone (`codes`, `L2/codes`); in a cache they lie under
    the name that the signal has there.

    Attributes:
        axes: names of the axes of a row; arrays of one group whose axes have one name have one
            length there.
        chunk_rows: rows of an inner chunk, the least that is read and checked at once.
        packing: how inner chunks are compressed.
        taps: what it is read for; none: for whatever the signal says.
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
    taps: tuple[Tap, ...] = ()
    expected: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.row_shape), f"{self.name}: an axis without a name"

    def read_for(self, tap: Tap) -> bool:
        """Whether it is read where the signal is asked for a tap."""
        return not self.taps or tap in self.taps

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all its dimensions, that of the rows first."""
        return axis_of(self.space), *self.axes


class Signal(Protocol):
    """A frozen dataclass that writes itself into the manifest and reads itself back."""

    kind: ClassVar[str]
    codec: ClassVar[str]

    def to_json(self) -> Json:
        """The configuration as JSON values."""
        ...

    def check(self, task: Task, shape: ModelSizes) -> None:
        """Raise ConfigError if a teacher of this shape cannot give this signal."""
        ...

    def arrays(self, task: Task, shape: ModelSizes) -> list[ArraySpec]:
        """The arrays this signal is stored in."""
        ...

    def taps(self) -> tuple[Tap, ...]:
        """What it is made of: the teacher is run for that."""
        ...

    def values(self, activations: Activations) -> Mapping[Tap, torch.Tensor]:
        """The rows [rows, width] that it stores, by tap, before they are encoded."""
        ...

    def gives(self) -> tuple[Tap, ...]:
        """What `decode` can be asked for."""
        ...

    def encode(self, activations: Activations) -> Arrays:
        """What a teacher computed to array rows, on its device."""
        ...

    def decode(self, arrays: Arrays, tap: Tap, sizes: ModelSizes) -> Any:
        """Stored rows as losses take them: soft labels, or rows of codes with their scale.

        Args:
            arrays: rows of its arrays, by their names without the signal's; those of `tap` will do.
            tap: one of `gives`.
            sizes: those of the teacher.
        """
        ...

    def columns(self, arrays: Arrays, sizes: ModelSizes) -> Columns:
        """Stored rows as numbers that need no explanation, by name: for export, and for people."""
        ...

    def measure(self, activations: Activations, encoded: Arrays, rows: torch.Tensor) -> Stats:
        """Distance between teacher and decoded values over sampled `rows`, as sums and maxima."""
        ...

    def summarise(self, stats: Stats) -> Json:
        """Fidelity figures from merged stats."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArtifactSources:
    """What a signal's artifacts are made of, each computed when it is asked for.

    Attributes:
        token_counts: how often each id occurs in the plan, [V] int64.
        head: the linear output layer of the teacher: weight [V, H] and bias [V] or None.
        projections: of a layer's attention, by query, key and value: weight [width, H] and bias
            [width] or None.
        classifier: weight [C, H] and bias [C] or None of the teacher's classifier, if it is one
            linear layer on what the tap `pooled` is.
    """

    token_counts: Callable[[], npt.NDArray[np.int64]]
    head: Callable[[], Linear]
    projections: Callable[[int], Mapping[str, Linear]]
    classifier: Callable[[], Linear | None] = lambda: None


@runtime_checkable
class HasArtifacts(Protocol):
    """A signal that needs files of the cache, its artifacts, to encode and decode."""

    def artifacts(
        self, task: Task, shape: ModelSizes, sources: ArtifactSources
    ) -> dict[str, bytes]:
        """The files to keep in the cache under `files/`, by name; made before the teacher runs."""
        ...

    def artifact_bytes(self, shape: ModelSizes) -> dict[str, int]:
        """The most each of those files takes, by name."""
        ...

    def with_artifacts(self, shape: ModelSizes, read: Callable[[str], bytes]) -> Signal:
        """This signal, ready to encode and decode with the files that `read` gives.

        Raises DamageError if they are not what was stored.
        """
        ...


@runtime_checkable
class Differentiated(Protocol):
    """A signal that is a gradient: the teacher takes longer to say it than to be run."""

    def forwards(self, shape: ModelSizes) -> float:
        """About how many forwards without gradients it takes, the forward itself included."""
        ...


@runtime_checkable
class AsksLabels(Protocol):
    """A signal that may be of the label of each document, which all then need to have."""

    def asks_labels(self, shape: ModelSizes) -> bool:
        """Whether it is, of a teacher of this shape."""
        ...


def of_signal(rows: Mapping[str, Rows], name: str) -> dict[str, Rows]:
    """Those of some rows that are of a signal, by the names it has for its arrays."""
    start = f"{name}/"
    return {
        array.removeprefix(start): values
        for array, values in rows.items()
        if array.startswith(start) and array != f"{start}{SAMPLED_ROWS}"
    }


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


def check_fraction(what: str, fraction: float) -> None:
    """Raise ConfigError, naming `what`, for a fraction that is none."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction of {what} must be more than 0 and at most 1; got {fraction}")


def check_topk(what: str, k: int, draws: int) -> None:
    """Raise ConfigError, naming `what`, for numbers of ids that cannot be."""
    if not 1 <= k <= 65536:
        raise ConfigError(f"k of {what} must lie in [1, 65536]; got {k}")
    if not 0 <= draws <= 65536:
        raise ConfigError(f"draws of {what} must lie in [0, 65536]; got {draws}")


def check_outputs(what: str, k: int, draws: int, shape: ModelSizes) -> None:
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
    if space == "document":
        raise ConfigError(
            f"fraction={fraction:g} of {what} is for rows of tokens or selected positions; here a "
            "document has a single row: leave fraction out"
        )
    return Subset(space, fraction)


def logits_space(codec: str, task: Task, fraction: float) -> RowSpace:
    """Where a `fraction` of the logits is kept; ConfigError for that of a classifier's."""
    return row_space(f"logits:{codec}", task.rows, fraction)


def settings(values: Json) -> Json:
    """A configuration for the manifest, which is silent on a fraction of all, on no draws and on
    a softmax.
    """
    silent = (("fraction", 1), ("draws", 0), ("activation", "softmax"))
    return {name: value for name, value in values.items() if (name, value) not in silent}


def check_positions(positions: str, task: Task) -> Space:
    """The row space of `positions`; ConfigError if the task has no such rows."""
    if POSITIONS[positions] not in task.spaces:
        able = ", ".join(name for name, task in TASKS.items() if task.selects)
        raise ConfigError(
            f"positions={positions} needs a task that selects tokens ({able}); the task is {task}"
        )
    return POSITIONS[positions]


def settings_text(values: Mapping[str, Any], between: str = ",") -> str:
    """Settings as `--signal` takes them, such as layers=2-4,dtype=int8; None is left out."""
    given = {name: value for name, value in values.items() if value is not None}
    if "positions" in given:
        given["positions"] = positions_of(given["positions"])
    return between.join(
        f"{name}={'-'.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in given.items()
    )


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
