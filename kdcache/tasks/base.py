"""What a task is: all that differs between the purposes a teacher is run for, in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kdcache.manifest import Json
from kdcache.tasks.summed import Summed

if TYPE_CHECKING:
    from kdcache.corpora.documents import Document
    from kdcache.models import Tokenizer
    from kdcache.plans import PlanConfig

Space = Literal["document", "token", "selected"]
"""A row per document, per token, or per token that the task selects."""

STORED: dict[Space, str] = {"document": "example", "token": "token", "selected": "masked"}
"""What manifests, and the identity of a plan, call the spaces: as their first version did."""


@dataclass(frozen=True)
class Subset:
    """A `fraction` of the rows of a space, spread over every document: see `Plan.sampled_rows`."""

    of: Space
    fraction: float

    def __str__(self) -> str:
        return f"{self.of}:fraction={self.fraction}"


RowSpace = Space | Subset
"""What the rows of an array belong to."""

ROW_AXIS: dict[Space, str] = {**STORED, "document": "document"}
"""What the dimension is called that the rows of a space make."""


def stored_name(space: RowSpace) -> str:
    """What exported files call a space."""
    name = STORED[space.of if isinstance(space, Subset) else space]
    return f"{name}:fraction={space.fraction}" if isinstance(space, Subset) else name


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
        labels: of each of them: a token, or where people label words the number of the word.
    """

    doc: int
    window: int
    view: int
    tokens: Ids
    pair_start: int
    positions: Ids = NONE
    labels: Ids = NONE


Encode = Callable[
    [Sequence["Document"], int, "Tokenizer", "PlanConfig"], tuple[Iterable[Entry], int]
]
"""Documents, the first of which has that number in the corpus, as entries of the plan, and how many
of them lost tokens to the longest length."""


def encode_texts(
    batch: Sequence[Document],
    first: int,
    tokenizer: Tokenizer,
    config: PlanConfig,
    *,
    windows: bool = False,
) -> tuple[list[Entry], int]:
    """Texts, or pairs of them, as they are: cut off where too long, or cut into `windows`."""
    pairs = [d.pair or "" for d in batch] if batch[0].pair is not None else None
    texts = [d.text for d in batch]
    encoded = tokenizer.encode(texts, pairs, config.max_length, windows=windows)
    entries = [Entry(first + e.document, e.window, 0, e.ids, e.pair_start) for e in encoded.windows]
    return entries, encoded.truncated


def no_scores(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> Json:
    """None beyond those of the kind of labels."""
    return {}


def not_summed(predicted: Ids, labels: Ids, counts: Ids, names: Sequence[str]) -> Summed | None:
    """None of its own: that of the kind of labels."""
    return None


def no_words(names: Sequence[str]) -> str:
    """Nothing to say beyond what its kind of labels tells."""
    return ""


def nothing_needed(names: Sequence[str]) -> None:
    """All that it needs is there."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a teacher is run for.

    It is looked up once by its name, in `TASKS`; what differs between tasks is read from here.

    Attributes:
        name: as `--task` and manifests have it.
        auto: the class of transformers that loads its models.
        heads: what the names of its models' classes end with.
        rows: what its logits have a row for.
        kinds: kinds of labels it can have; none: every kind that a document can have.
        signals: what is stored by default.
        pipeline: the pipeline of transformers that serves its models, and the tag of their cards.
        call: a call of that pipeline, `pipe`.
        measured: under which name the table of measured errors tells of its like.
        pairs: whether a document may be two texts.
        causal: whether a row's label is the token that follows, which the model must not see.
        options: options of a plan that only some tasks have.
        ids: ids of the tokenizer that its plans name beyond those of all.
        selected: what is selected of a document, in words; "": nothing is.
        words: names of columns of word lists, which are its documents; none: those are texts.
        tags: names of columns of lists with a label for each word.
        encode: what the plan has of documents, with what is selected of them.
        scores: scores beyond those of the kind of labels: of predicted and of right classes
            [rows], the rows of each document, and the names of the classes.
        metric: the score that students are chosen by, given the names of the classes; "": that of
            the kind of labels.
        summed: of the same, the score by which slices of documents are told apart, of what each
            document adds to it; None: that of the kind of labels.
        scored: in words what its scores are of, and why, given the names of the classes.
        require: given the names of the classes, raises MissingExtraError where a package that its
            scores need is missing, ModelError for names that cannot be scored.
        taught: whether `teach` makes its teachers.
        shipped: whether `ship` makes ONNX of its models.
        told: what people call the scores that it alone has.
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
    causal: bool = False
    options: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    selected: str = ""
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    encode: Encode = encode_texts
    scores: Callable[[Ids, Ids, Ids, Sequence[str]], Json] = no_scores
    metric: Callable[[Sequence[str]], str] = lambda names: ""
    summed: Callable[[Ids, Ids, Ids, Sequence[str]], Summed | None] = not_summed
    scored: Callable[[Sequence[str]], str] = no_words
    require: Callable[[Sequence[str]], None] = nothing_needed
    taught: bool = False
    shipped: bool = False
    told: tuple[tuple[str, str], ...] = ()
    predicted: bool = False

    @property
    def labelled(self) -> bool:
        """Whether the corpus says what its outputs are: else they are tokens of a vocabulary."""
        return "tokens" not in self.kinds

    @property
    def selects(self) -> bool:
        """Whether tokens of its documents are selected, and have labels."""
        return bool(self.selected)

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces its rows may lie in."""
        return ("document", "token", *(("selected",) if self.selects else ()))

    def own(self, values: Any) -> dict[str, Any]:
        """Those options of a plan that only some tasks have, read from its configuration."""
        return {name: getattr(values, name) for name in self.options}

    def labels_of(self, document: Document) -> Sequence[Any]:
        """What a document is labelled with: one label, or one for each word."""
        if not self.words:
            return [document.label]
        return document.label or [None] * len(document.words)

    def __str__(self) -> str:
        return self.name
