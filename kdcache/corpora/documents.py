"""A corpus: documents in files, folders, globs or a `datasets` dataset, read as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, get_args

from kdcache.corpora.columns import (
    LABEL_COLUMNS,
    Sample,
    as_noted,
    guess_label,
    guess_texts,
    guess_words,
    is_known,
    label_columns,
    require_plain,
    require_used,
)
from kdcache.corpora.readers import Unit as Unit
from kdcache.corpora.readers import name_of, tables_of
from kdcache.corpora.tables import Row, Table
from kdcache.corpora.words import tags_of, text_of_words
from kdcache.errors import ConfigError, CorpusError, one_of
from kdcache.labels import Cells

PEEK = 1000  # rows that decide on the columns


class Document(NamedTuple):
    """One row of a corpus; `where` is the file and line to name in an error."""

    text: str
    pair: str | None
    label: Any
    where: str

    @property
    def words(self) -> list[str]:
        """Of a document of words: these are lines of its text."""
        return self.text.split("\n") if self.text else []

    @property
    def content(self) -> bytes:
        """What a digest of the corpus is made of."""
        return repr(self[:3]).encode()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where documents stand and which of their columns are text and label.

    Iterating yields `Document`s in file order; `limit` keeps the first ones.

    Attributes:
        class_names: what the corpus calls the numbers of its label column, where it says.
        labelled: whether documents are to have labels; else they need not have the column.
        columns: all of them, of the first 1,000 rows.
        unused: columns that are neither text nor label, of the first 1,000 rows.
        late: further ones, as they come up while iterating.
        words: whether documents are lists of words, with a list of labels each.
    """

    tables: Sequence[Table] = field(repr=False)
    text_columns: tuple[str, ...]
    label_columns: tuple[str, ...] = ()
    limit: int | None = None
    class_names: tuple[str, ...] | None = None
    labelled: bool = True
    columns: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    late: dict[str, str] = field(default_factory=dict)
    words: bool = False
    _known: frozenset[str] | None = None

    @property
    def label_column(self) -> str | list[str] | None:
        """The column of the labels, or all of them where there are several, as plans note it."""
        return as_noted(self.label_columns)

    def __iter__(self) -> Iterator[Document]:
        return (self.document(where, row) for where, row in self.rows())

    def rows(self, *more: str) -> Iterator[Row]:
        """What `document` makes documents of, with the columns of `more` besides."""
        wanted = list(dict.fromkeys([*self.text_columns, *self.label_columns, *more]))
        return islice(
            (row for table in self.tables for row in self._rows(table, wanted)), self.limit
        )

    def _rows(self, table: Table, wanted: Sequence[str]) -> Iterator[Row]:
        known = self._known if table.columns is None else None
        for where, row in table.rows(wanted):
            if known is not None and not row.keys() <= known:
                self._note_late(where, row, known)
            yield where, row

    def _note_late(self, where: str, row: Mapping[str, Any], known: frozenset[str]) -> None:
        for column in row.keys() - known:
            if is_known(column, self.text_columns, labelled=self.labelled):
                raise CorpusError(
                    f"{where}: column {column!r} comes up here, after {PEEK:,} rows without it: "
                    "name the columns with --text-column and --label-column, or leave it out with "
                    f"--ignore-columns {column}"
                )
            self.late.setdefault(column, where)

    def document(self, where: str, row: Mapping[str, Any]) -> Document:
        """The document of a row."""
        read = self._words if self.words else self._text
        texts = [read(where, row, column) for column in self.text_columns]
        labels = [self._label(where, row, column) for column in self.label_columns]
        label = Cells(labels) if len(labels) > 1 else labels[0] if labels else None
        if self.words and labels:
            label = tags_of(where, label, texts[0], self.label_columns[0])
        return Document(texts[0], texts[1] if len(texts) > 1 else None, label, where)

    def _label(self, where: str, row: Mapping[str, Any], column: str) -> Any:
        if self.labelled:
            _require(where, row, column, "; write null where a document has no label")
        return row.get(column)

    @staticmethod
    def _words(where: str, row: Mapping[str, Any], column: str) -> str:
        _require(where, row, column)
        return text_of_words(where, row[column], column)

    @staticmethod
    def _text(where: str, row: Mapping[str, Any], column: str) -> str:
        found = row.get(column)
        if type(found) is str and found.isascii():
            return found
        _require(where, row, column)
        if not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise CorpusError(
                f"{where}: column {column!r} must hold text; got {kind}; name another column with "
                "--text-column, or make it text"
            )
        text = str(row[column])
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise CorpusError(f"{where}: column {column!r} is no text: {error.reason}") from error
        return text


def open_corpus(
    source: Any,
    *,
    text_columns: Iterable[str] = (),
    label_column: str | Sequence[str] | None = None,
    ignore_columns: Iterable[str] = (),
    limit: int | None = None,
    unit: Unit = "line",
    labelled: bool = True,
    like: Sequence[str] = (),
    words: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> Corpus:
    """Find the files of `source` and its text and label columns, guessing those not named.

    `source` is a path, a folder, a glob, a list of those, a `datasets.Dataset` or a
    `pandas.DataFrame`. Pass the empty string as `label_column` for no labels,
    several names where a document has a label in each. What is guessed is
    guessed from the first 1,000 rows: where text columns are not named, a column that makes a pair
    with the text or holds text itself has to be among `ignore_columns`. Where all columns of `like`
    are there, they are the guess. Without `labelled`, labels are for nothing: a column of labels is
    one that is not used, and may be missing in places. With `words`, names of columns, documents
    are lists of words, and labels, in a column of `tags`, lists of as many.

    Raises CorpusError if there is nothing to read or files differ in their columns, ConfigError if
    a column is not there or it takes a person to choose.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more; got {limit}")
    one_of("unit", unit, get_args(Unit))
    tables = [
        table for table in tables_of(source, "words" if words else unit) if table.columns != ()
    ]
    sample = _sample(tables)
    if sample is None:
        raise CorpusError(f"{name_of(source)} holds no documents")
    named, ignored = _listed(text_columns), _listed(ignore_columns)
    columns = _without(tables, sample, ignored, [*named, *label_columns(label_column)])
    guessing = not named or label_column is None
    if guessing:
        require_plain(sample.where, columns)
        _require_alike(tables, ignored)
    texts = tuple(named) or (tuple(like) if like and set(like) <= set(columns) else None)
    texts = texts or (guess_words(columns, words) if words else guess_texts(columns))
    known = tags or LABEL_COLUMNS
    guessed = guess_label(columns, texts, known) if label_column is None else label_column
    labels = label_columns(guessed)
    _require_apart(texts, labels)
    _require_there(sample.where, columns, [*texts, *labels])
    if words and len(labels) > 1:
        raise ConfigError(
            f"tags of words are lists in one column, not in {', '.join(labels)}: name one "
            "(--label-column)"
        )
    labelled = labelled or bool(label_column)
    used = [*texts, *(labels if labelled else ())]
    unused = tuple(column for column in columns if column not in used)
    if not (named or words):
        require_used(sample, texts, unused)
    return Corpus(
        tables=tables,
        text_columns=texts,
        label_columns=labels,
        limit=limit,
        class_names=_class_names(tables, labels[0] if len(labels) == 1 else None),
        labelled=labelled,
        columns=tuple(sample.columns),
        unused=unused,
        words=bool(words),
        _known=frozenset([*sample.columns, *ignored]) if guessing else None,
    )


def columns_of(source: Any, unit: Unit = "line") -> list[str]:
    """The columns of the first 1,000 rows of `source`; none if it holds no documents."""
    sample = _sample(tables_of(source, unit))
    return list(sample.columns) if sample else []


def _listed(names: Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _sample(tables: Sequence[Table]) -> Sample | None:
    """The first rows; None if there are none."""
    sample = Sample()
    for table in tables:
        sample.note(table.columns or ())
        left = PEEK - sample.rows
        # Where no column can hold text, any will do to see whether there are rows.
        wanted = table.columns[:1] if table.texts == () and table.columns else table.texts
        for where, row in islice(table.rows(wanted) if left else (), left):
            sample.add(where, row)
    return sample if sample.rows else None


def _without(
    tables: Sequence[Table], sample: Sample, ignored: list[str], named: Iterable[str | None]
) -> list[str]:
    """The columns but for those ignored, which must not be named, too, and be there."""
    if all(table.columns is not None for table in tables):  # else later rows may have it
        _require_there(sample.where, list(sample.columns), ignored)
    both = [column for column in named if column in ignored]
    if both:
        raise ConfigError(f"column {both[0]!r} is named and to be ignored: choose one")
    return [column for column in sample.columns if column not in ignored]


def _require_apart(texts: Sequence[str], labels: Sequence[str]) -> None:
    if len(texts) > 2:
        raise ConfigError(f"one or two text columns, not {len(texts)}: {', '.join(texts)}")
    twice = [name for name, times in Counter([*texts, *labels]).items() if times > 1]
    if twice:
        raise ConfigError(
            f"column {twice[0]!r} is named twice: a pair has two columns of text, and labels have "
            "columns of their own"
        )


def _require_there(where: str, columns: Sequence[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in columns:
            raise ConfigError(f"{where} has no column {name!r}; its columns are {_all(columns)}")


def _require_alike(tables: Sequence[Table], ignored: Sequence[str]) -> None:
    """Raise if two files differ in their columns: one would be read as the other is meant."""
    known = [table for table in tables if table.columns is not None]
    for table in known[1:]:
        first, other = set(known[0].columns or ()), set(table.columns or ())
        if (first ^ other).difference(ignored):
            raise CorpusError(
                f"{table.name} has the columns {_all(table.columns or ())}; {known[0].name} has "
                f"{_all(known[0].columns or ())}: make them alike, name what to read with "
                "--text-column and --label-column, or leave the rest out with --ignore-columns"
            )


def _class_names(tables: Sequence[Table], label: str | None) -> tuple[str, ...] | None:
    """What the tables call the numbers of the label column; CorpusError if they do not agree."""
    found = [(table, table.class_names.get(label or "")) for table in tables]
    for table, names in found:
        if names != found[0][1]:
            raise CorpusError(
                f"{found[0][0].name} and {table.name} have other names for the numbers in column "
                f"{label!r}: {_all(found[0][1] or ('none',))} and {_all(names or ('none',))}"
            )
    return found[0][1]


def _require(where: str, row: Mapping[str, Any], column: str, hint: str = "") -> None:
    if column not in row:
        raise CorpusError(f"{where}: no column {column!r}; it has {_all(row)}{hint}")


def _all(columns: Iterable[str]) -> str:
    return ", ".join(column or "(unnamed)" for column in columns)
