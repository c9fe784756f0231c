"""Slices of a corpus: its documents by what a column says of them, or by their length."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kdcache.corpora.documents import Corpus
from kdcache.corpora.readers import name_of
from kdcache.errors import ConfigError, CorpusError
from kdcache.labels.base import Array
from kdcache.plans import Plan
from kdcache.progress import Progress

LENGTH = "length"
"""What cuts documents by their tokens, where no column is called so."""
BANDS = 4
MOST = 1000  # slices of a column: beyond, it tells documents apart


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The documents of a corpus by what one column says of them.

    Attributes:
        column: its name.
        names: of the slices; None that of documents of which the column says nothing.
        codes: [documents of the corpus], the slice of each: its place in `names`; -1 is none.
    """

    column: str
    names: tuple[str | None, ...] = ()
    codes: Array = field(default_factory=lambda: np.empty(0, np.int32), repr=False)

    def name(self, document: int) -> str | None:
        """The slice of a document, by its number in the corpus."""
        code = int(self.codes[document])
        return None if code < 0 else self.names[code]


def read_cuts(corpus: Corpus, by: Sequence[str], source: Any) -> list[Cut]:
    """What columns say of every document; of one that `by_length` makes, the name alone.

    Raises ConfigError for a column that is not there, CorpusError for one that makes no slices.
    """
    columns = list(dict.fromkeys(by))
    for name in columns:
        if name not in corpus.columns and name != LENGTH:
            raise ConfigError(
                f"{name_of(source)} has no column {name!r} to slice by; its columns are "
                f"{', '.join(corpus.columns)}, and {LENGTH} slices by tokens"
            )
    readers = {name: _Reader(name) for name in columns if name in corpus.columns}
    if readers:
        for where, row in corpus.rows(*readers):
            for name, reader in readers.items():
                reader.add(row.get(name), where)
    return [readers[n].cut(source) if n in readers else Cut(column=n) for n in columns]


class _Reader:
    """Numbers the values of a column in the order they come."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.seen: dict[str | None, int] = {}
        self.numbers: dict[str, float] = {}
        self.codes = array("i")

    def add(self, value: Any, where: str) -> None:
        name = self._name(value, where)
        code = self.seen.setdefault(name, len(self.seen))
        if code >= MOST:
            raise CorpusError(
                f"{where}: column {self.column!r} has more than {MOST:,} values: it tells "
                "documents apart, not slices; slice by a column with fewer, such as bands of it"
            )
        self.codes.append(code)

    def _name(self, value: Any, where: str) -> str | None:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            number = float(value)
            name = str(int(value)) if number.is_integer() else str(value)
            self.numbers[name] = number
            return name
        if value is None or value != value:  # what is missing in tables of numbers is NaN
            return None
        if not isinstance(value, (str, bool)):
            raise CorpusError(
                f"{where}: column {self.column!r} holds {type(value).__name__}: slices are told "
                "apart by a text, a number or a truth value; slice by another column"
            )
        return str(value).strip() or None

    def cut(self, source: Any) -> Cut:
        """Slices by value where all are numbers, else by name; what has none comes last."""
        if self.seen.keys() <= {None}:
            raise CorpusError(
                f"{name_of(source)}: column {self.column!r} is empty: no document of it is in a "
                "slice; slice by another"
            )
        names = sorted(self.seen, key=self._place)
        order = np.empty(len(names), np.int32)
        order[[self.seen[name] for name in names]] = np.arange(len(names))
        codes = order[np.asarray(self.codes, np.int32)]
        return Cut(column=self.column, names=tuple(names), codes=codes)

    def _place(self, name: str | None) -> tuple[bool, float, str]:
        return name is None, self.numbers.get(name or "", np.inf), name or ""


def with_lengths(cuts: Sequence[Cut], plan: Plan, progress: Progress) -> list[Cut]:
    """The same, those by length cut by the tokens that the model reads of each document."""
    return [cut if cut.names else _by_length(cut, plan, progress) for cut in cuts]


def _by_length(cut: Cut, plan: Plan, progress: Progress) -> Cut:
    documents = plan.config.corpus["documents"]
    ids, lens = (plan.per_document[name][plan.docs] for name in ("doc_id", "doc_len"))
    tokens = np.bincount(ids, lens, minlength=documents).astype(np.int64)
    read = tokens > 0
    places = np.full(documents, -1, np.int32)
    places[read] = bands(tokens[read], BANDS)
    names = tuple(_tokens(tokens[places == place]) for place in np.unique(places[read]))
    progress.say(
        f"no column is called {LENGTH}: documents are cut into {len(names)} bands by their tokens"
    )
    return replace(cut, names=names, codes=places)


def _tokens(held: Array) -> str:
    low, high = held.min(), held.max()
    return f"{low} tokens" if low == high else f"{low}-{high} tokens"


def bands(tokens: Array, count: int) -> Array:
    """The band of each of N documents by its tokens: quantiles of them, [N] from 0.

    Documents of one length are in one band, so there may be fewer than `count`.
    """
    inner = np.linspace(0, 1, count + 1)[1:-1]
    quantiles = np.quantile(tokens, inner, method="inverted_cdf") if count > 1 else np.empty(0)
    places = np.searchsorted(np.unique(quantiles), tokens, side="left")
    found: Array = np.unique(places, return_inverse=True)[1]
    return found
