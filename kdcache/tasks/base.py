"""What a task is: all that differs between the purposes a teacher is run for, in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kdcache.models import Tokenizer
    from kdcache.plans import PlanConfig

Space = Literal["example", "token", "masked"]
"""`example`: a row per document; `token`: a row per token; `masked`: a row per masked position."""


@dataclass(frozen=True)
class Subset:
    """A `fraction` of the rows of a space, spread over every document: see `Plan.sampled_rows`."""

    of: Space
    fraction: float

    def __str__(self) -> str:
        return f"{self.of}:fraction={self.fraction}"


RowSpace = Space | Subset
"""What the rows of an array belong to."""

ROW_AXIS: dict[Space, str] = {"example": "document", "token": "token", "masked": "masked"}


def axis_of(space: RowSpace) -> str:
    """Name of the dimension that the rows of a space make: arrays with one name share rows."""
    if isinstance(space, Subset):
        return f"{ROW_AXIS[space.of]}_fraction_{space.fraction}"
    return ROW_AXIS[space]


IGNORE_INDEX = -100
"""Label of a row without a hard label, as in torch's cross-entropy."""

Ids = npt.NDArray[np.int64]
NONE: Ids = np.empty(0, np.int64)


class Entry(NamedTuple):
    """A tokenised document, or a window or view of one: what the plan has a row for.

    Attributes:
        doc: its number in the corpus.
        window: its number among the windows of the document.
        view: its number among the views of the window.
        tokens: ids, as the teacher is fed them.
        pair_start: where the second text begins.
        positions: of the selected tokens, rising; none where a task selects none.
        labels: of each of them.
    """

    doc: int
    window: int
    view: int
    tokens: Ids
    pair_start: int
    positions: Ids = NONE
    labels: Ids = NONE


Views = Callable[[Entry, "Tokenizer", "PlanConfig"], Iterable[Entry]]


def single(entry: Entry, tokenizer: Tokenizer, config: PlanConfig) -> Iterator[Entry]:
    """A document as it is, once."""
    yield entry


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a teacher is run for.

    It is looked up once by its name, in `TASKS`; what differs between tasks is read from here.

    Attributes:
        name: as `--task` and manifests have it.
        auto: the class of transformers that loads its models.
        heads: what the names of its models' classes end with.
        rows: what its logits have a row for.
        kinds: kinds of labels it can have.
        signals: what is stored by default.
        pipeline: the pipeline of transformers that serves its models, and the tag of their cards.
        call: a call of that pipeline, `pipe`.
        measured: under which name the table of measured errors tells of its like.
        pairs: whether a document may be two texts.
        windows: whether long documents are cut into windows; else what is too long is cut off.
        causal: whether a row's label is the token that follows, which the model must not see.
        options: options of a plan that only some tasks have.
        ids: ids of the tokenizer that its plans name beyond those of all.
        views: the entries that the plan gets of a tokenised document, with what is selected of it.
        taught: whether `teach` makes its teachers.
        shipped: whether `ship` makes ONNX of its models.
        predicted: whether `evaluate` writes predictions.
    """

    name: str
    auto: str
    heads: tuple[str, ...]
    rows: Space
    kinds: tuple[str, ...]
    signals: tuple[str, ...]
    pipeline: str
    call: str
    measured: str
    pairs: bool = False
    windows: bool = False
    causal: bool = False
    options: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    views: Views = single
    taught: bool = False
    shipped: bool = False
    predicted: bool = False

    @property
    def labelled(self) -> bool:
        """Whether the corpus says what its outputs are: else they are tokens of a vocabulary."""
        return "tokens" not in self.kinds

    @property
    def selects(self) -> bool:
        """Whether it has rows of selected tokens."""
        return self.rows == "masked"

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces its rows may lie in."""
        return ("example", "token", *(("masked",) if self.selects else ()))

    def own(self, values: Any) -> dict[str, Any]:
        """Those options of a plan that only some tasks have, read from its configuration."""
        return {name: getattr(values, name) for name in self.options}

    def __str__(self) -> str:
        return self.name
