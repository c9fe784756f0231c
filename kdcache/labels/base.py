"""What a label kind is: how labels are read, stored, learnt from, scored and told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.manifest import Json
from kdcache.tasks import IGNORE_INDEX, Task
from kdcache.tasks.summed import Summed

if TYPE_CHECKING:
    import torch

    from kdcache.labels.reader import LabelReader

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
LabelType = Literal["auto", "class", "float", "multi-label", "vector"]
Activation = Literal["softmax", "sigmoid", "none"]
MAX_CLASSES = 65_536  # far beyond any classifier: more is a column of ids or of text


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of the outputs that labels are for, before a label is looked at.

    Attributes:
        kind: of the teacher's outputs; None: it is not known.
        names: of the teacher's outputs; None: they have none.
        count: how many there are; None: no teacher is known.
        corpus: what the corpus itself calls its numbers, as a `datasets.ClassLabel` does.
        new: there is no teacher yet, and its classes will be those of the labels.
        guess: the kind is not named: the labels decide.
        columns: names of the label columns, where there are several.
    """

    kind: LabelKind | None = None
    names: tuple[str, ...] | None = None
    count: int | None = None
    corpus: tuple[str, ...] | None = None
    new: bool = False
    guess: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """What is known of the outputs of a model that classifies or scores documents.

    Attributes:
        names: of the outputs; None: they have none.
        count: how many there are; None: there is no such model.
        kind: of the labels they are for; None: it is not known.
    """

    names: list[str] | None = None
    count: int | None = None
    kind: LabelKind | None = None


UNKNOWN = Outputs()


@dataclass(frozen=True)
class Labels:
    """The labels of N documents.

    Attributes:
        kind: name of their kind.
        classes: names of the outputs they are for; None where they have none.
        rows: [N, ...], a label each; IGNORE_INDEX, or NaN, where there is none.
        notes: what was guessed and what was taken as no label, a line each.
    """

    kind: str
    classes: list[str] | None
    rows: Array = field(repr=False)
    notes: tuple[str, ...] = ()

    @property
    def labelled(self) -> int:
        """How many documents have a label."""
        return int(known(self.rows).sum())


def no_label_of(dtype: npt.DTypeLike) -> float | int:
    """What stands for no label in an array of a dtype."""
    return float("nan") if np.dtype(dtype).kind == "f" else IGNORE_INDEX


def known(rows: Array) -> Bools:
    """Which of N labels, [N, ...], there are: [N]. What is not there is so in all its values."""
    there: Bools = np.isfinite(rows) if rows.dtype.kind == "f" else rows != IGNORE_INDEX
    if rows.ndim > 1:
        there = np.asarray(there.reshape(len(rows), -1).all(1))
    return there


def known_rows(labels: torch.Tensor) -> torch.Tensor:
    """`known` of the labels of a batch, on their device."""
    there = labels.isfinite() if labels.is_floating_point() else labels != IGNORE_INDEX
    return there.flatten(1).all(1) if there.dim() > 1 else there


class Told(NamedTuple):
    """What predictions are written as: a row of cells for each document.

    Attributes:
        columns: names of the cells.
        rows: theirs, document by document: texts, numbers, lists of texts; None for no label.
    """

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How a teacher of a kind is made.

    Attributes:
        fit: weight [C, H] and bias [C] of a head, of what it reads [N, H], labels and whether it
            has a bias; None: that of classes, which may weigh more or less.
        by: the score that decides.
        strata: a number for each document; a split has some of each number on both sides.
        scale: by which costs are divided, so that one learning rate suits whatever unit labels
            have: a number, or one for each output.
    """

    fit: Callable[[Floats, Array, bool], tuple[Floats, Floats]] | None = None
    by: str
    strata: Callable[[Array], Array] = lambda labels: np.zeros(len(labels), np.int64)
    scale: Callable[[Array], Array] | None = None


@dataclass(frozen=True, kw_only=True)
class LabelKind:
    """A kind of label, and all that is decided by it. Functions take arrays of N documents.

    Labels and outputs are [N, C] where a document has several values, labels else [N].

    Attributes:
        name: what a plan's configuration calls it.
        label_type: what a person who asks for it calls it; "": it cannot be asked for.
        called: what a model of such outputs is called.
        problem_type: what transformers calls it.
        means: whether outputs of a model are of this kind, by its `problem_type` and their number.
        column: the array of a plan's document space that holds the labels; "": the task makes them.
        dtype: of that array.
        wide: whether it has a value for every output, rather than one.
        numbered: whether a label is the number of one class, which another model may number
            otherwise.
        activation: what makes probabilities of outputs: a softmax over all, a sigmoid of each, or
            nothing, as they are none.
        guess: whether labels of which nobody says what they are are of this kind.
        read: labels from what was read of a corpus; CorpusError for one that does not fit.
        sound: which labels, [N], can be; None: all can.
        hard_rows: what each row costs: of outputs [N, C] and labels, [N]; 0 without a label.
        divergence: of outputs of student and teacher, [N, C], at a temperature, the divergence of
            each row, [N], in nats and without T^2; None: that of a softmax, or none.
        no_divergence: why probabilities of the teacher say nothing; "": they do.
        compare: of outputs of a model and of its teacher, [N, C], whether both say the same,
            [N] (None: that is no question), and how far they are apart, [N]; None: they are
            probabilities of one class, and compared as such.
        scores: of outputs and labels, both of labelled documents, and the names of the outputs.
        metric: name of the score that models are chosen by, given the labels.
        summed: of outputs and labels of labelled rows, the score by which slices of documents are
            told apart, of what each row adds to it; None: slices are not. How it is made of its
            sums follows from the labels alone: a sweep keeps what is added, and no outputs.
        headline: name of the score that tells shipped models apart.
        predictions: what is written of outputs and labels, and the names of the outputs.
        teaching: how a teacher is made; None: `teach` makes none.
    """

    name: str
    label_type: LabelType | Literal[""] = ""
    called: str = ""
    problem_type: str = ""
    means: Callable[[str | None, int], bool] = lambda problem_type, outputs: False
    column: str = ""
    dtype: str = ""
    wide: bool = False
    numbered: bool = False
    activation: Activation = "softmax"
    guess: Callable[[LabelReader], bool] = lambda reader: False
    read: Callable[[LabelReader, Known], Labels] | None = None
    sound: Callable[[Array], Bools] | None = None
    hard_rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    divergence: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None
    no_divergence: str = ""
    compare: (
        Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor]] | None
    ) = None
    scores: Callable[[Floats, Array, Sequence[str]], Json] | None = None
    metric: Callable[[Array], str] | None = None
    summed: Callable[[Floats, Array], Summed] | None = None
    headline: str = ""
    predictions: Callable[[Floats, Array, Sequence[str]], Told] | None = None
    teaching: Teaching | None = None

    def serves(self, task: Task) -> bool:
        """Whether a task can have such labels."""
        return self.name in task.kinds or (not task.kinds and bool(self.column))

    def of(self, per_document: Mapping[str, Array], docs: Array) -> Array:
        """The labels of documents, by their rows in a plan's document space."""
        return per_document[self.column][docs]

    def fill(self) -> float | int:
        """What stands for no label."""
        return no_label_of(self.dtype)


def probabilities(names: Sequence[str]) -> list[str]:
    """What the columns of predictions are called that hold the probability of each class."""
    return [f"probability: {name}" for name in names]


def output_names(names: Sequence[str] | None, outputs: int) -> list[str]:
    """A name for each output: what is not named goes by its number."""
    found = list(names) if names else [str(i) for i in range(outputs)]
    return found + [f"LABEL_{i}" for i in range(len(found), outputs)]
