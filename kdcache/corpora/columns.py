"""Which columns of a corpus are text and label, and which are left unused."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kdcache.errors import ConfigError

TEXT_COLUMNS = ("text", "sentence", "content", "document", "review", "question", "query", "string")
PAIR_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "doc"),
    ("query", "text"),
    ("query", "positive"),
    ("query", "answer"),
    ("query1", "query2"),
    ("claim", "evidence"),
    ("context", "response"),
    ("prompt", "response"),
    ("anchor", "positive"),
    ("text", "text_pair"),
    ("text", "hypothesis"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("texta", "textb"),
    ("sentence_a", "sentence_b"),
    ("sent1", "sent2"),
    ("string1", "string2"),
    ("s1", "s2"),
    ("#1 String", "#2 String"),
)
LABEL_COLUMNS = ("label", "labels", "category", "class", "intent", "quality", "target", "score")
MANY_WORDS = 3  # a column of so many words a value is text
LONG_NAME = 6  # words of a header that reads like a document


@dataclass
class Sample:
    """The columns of the first rows of a corpus, in order, and how many words their texts have."""

    where: str = ""
    rows: int = 0
    columns: dict[str, None] = field(default_factory=dict)
    _texts: dict[str, int] = field(default_factory=dict)
    _words: dict[str, int] = field(default_factory=dict)

    def note(self, columns: Iterable[str]) -> None:
        """Take in columns that are there whether rows tell or not."""
        self.columns |= dict.fromkeys(columns)

    def add(self, where: str, row: Mapping[str, object]) -> None:
        """Take in a row."""
        self.where = self.where or where
        self.rows += 1
        self.note(row)
        for column, value in row.items():
            if isinstance(value, str) and value.strip():
                self._texts[column] = self._texts.get(column, 0) + 1
                self._words[column] = self._words.get(column, 0) + len(value.split())

    def words(self, column: str) -> float:
        """Mean number of words of a column's texts, blank ones left out; 0 if it has none."""
        return self._words.get(column, 0) / max(1, self._texts.get(column, 0))


def guess_texts(columns: Sequence[str]) -> tuple[str, ...]:
    """The text column, or two of a known pair; ConfigError if no name is a known one."""
    by_name = {column.lower(): column for column in columns}
    for first, second in PAIR_COLUMNS:
        if first.lower() in by_name and second.lower() in by_name:
            return by_name[first.lower()], by_name[second.lower()]
    for name in TEXT_COLUMNS:
        if name in by_name:
            return (by_name[name],)
    if len(columns) == 1 and _may_be_text(columns[0]):
        return (columns[0],)
    raise ConfigError(
        f"cannot tell which column holds the text; name it with --text-column "
        f"(columns: {', '.join(columns)}; a table's first line must name them)"
    )


def _may_be_text(column: str) -> bool:
    """Whether the only column of a corpus is its text: no label, and no document by its length."""
    return column.strip().lower() not in LABEL_COLUMNS and len(column.split()) < LONG_NAME


def guess_words(columns: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The column of word lists; ConfigError if none has one of its known `names`."""
    by_name = {column.lower(): column for column in columns}
    found = [by_name[name] for name in names if name in by_name]
    if not found:
        raise ConfigError(
            f"no column holds lists of words ({' or '.join(names)}): name it with --text-column "
            f"(columns: {', '.join(columns)})"
        )
    return (found[0],)


def guess_label(
    columns: Sequence[str], texts: Collection[str], names: Sequence[str] = LABEL_COLUMNS
) -> str | None:
    """The column with a known name of labels, if there is one."""
    by_name = {column.lower(): column for column in columns if column not in texts}
    return next((by_name[name] for name in names if name in by_name), None)


def label_columns(named: str | Sequence[str] | None) -> tuple[str, ...]:
    """Label columns as they are named: none, one, or several."""
    return tuple(filter(None, [named] if isinstance(named, str) else named or ()))


def as_noted(columns: Sequence[str]) -> str | list[str] | None:
    """Label columns as plans note them: the name of one, those of several, or nothing."""
    return list(columns) if len(columns) > 1 else next(iter(columns), None)


def require_plain(where: str, columns: Iterable[str]) -> None:
    """ConfigError for a name that a known one may hide behind, such as " label"."""
    for column in columns:
        if column != column.strip() or not column.isprintable():
            raise ConfigError(
                f"{where}: column {column!r} has blanks around its name or characters that do not "
                f"print: rename it, or leave it out with --ignore-columns"
            )


def require_used(sample: Sample, texts: tuple[str, ...], unused: Sequence[str]) -> None:
    """ConfigError if a column that nobody named is text that a model should perhaps read."""
    why = {column: _why_read(sample, texts, column) for column in unused}
    left = [column for column, reason in why.items() if reason]
    if left:
        raise ConfigError(
            f"the text would be column {' and '.join(texts)}, but column {left[0]!r} "
            f"{why[left[0]]}: name the columns to read with --text-column (twice for pairs) and "
            f"--label-column, or pass --ignore-columns {','.join(left)}"
        )


def _why_read(sample: Sample, texts: tuple[str, ...], column: str) -> str:
    """Why a column may be one to read, in words; empty if it is none."""
    chosen = " and ".join(texts)
    if any(_are_pair(text, column) for text in texts):
        return f"makes a pair with {chosen}"
    # "passages" is a list of what the pair has one of: nothing else is left of the second text.
    if len(texts) == 1 and _are_pair(chosen, column.strip().lower().removesuffix("s")):
        return f"holds what makes pairs with {chosen}"
    words = sample.words(column)
    if words >= MANY_WORDS:
        return f"holds text, too ({words:.0f} words a value), and is no part of it"
    return ""


def is_known(column: str, texts: Iterable[str], *, labelled: bool) -> bool:
    """Whether a column's name is one of texts or, if `labelled`, labels, or completes a pair."""
    name = column.strip().lower()
    return (
        name in TEXT_COLUMNS
        or (labelled and name in LABEL_COLUMNS)
        or any(_are_pair(text, column) for text in texts)
    )


def _are_pair(one: str, other: str) -> bool:
    names = one.strip().lower(), other.strip().lower()
    return any(pair in (names, names[::-1]) for pair in _pairs())


def _pairs() -> Iterator[tuple[str, str]]:
    return ((first.lower(), second.lower()) for first, second in PAIR_COLUMNS)
