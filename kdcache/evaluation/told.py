"""What evaluation found, as a person reads it: scores, and a table for each column that slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdcache.manifest import Json

NO_VALUE = "(none)"
"""What the slice is called whose documents have no value in the column."""
DROP = "drop"


class Scores(dict[str, Any]):
    """The report of `evaluate`: a dict that JSON takes, and that shows itself as tables."""

    def __repr__(self) -> str:
        lines = [f"<Scores of {self.get('task')}>"]
        plain = {name: self[name] for name in self if name != "slices"}
        lines += [f"  {name}: {_cell(value)}" for name, value in plain.items()]
        for column, told in self.get("slices", {}).items():
            rows = [tuple(header_of(column, told)), *rows_of(told)]
            widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
            lines += ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]
            lines += worst_of(column, told)
        return "\n".join(lines)


def header_of(column: str, told: Json) -> list[str]:
    """The names of the columns of a table of slices."""
    metric = str(told["metric"]).replace("_", " ")
    more = ["teacher", "drop", "95% interval of it"] if "drop" in told["all"] else []
    return [column, "documents", metric, "95% interval", *more]


def rows_of(told: Json, most: int | None = None) -> list[tuple[str, ...]]:
    """The rows of the table: all documents, then each slice, or the `most` that score worst."""
    rows = told["rows"]
    if most is not None and len(rows) > most:
        sign = 1 if told["higher_is_better"] else -1
        scored = [row for row in rows if row["value"] is not None]
        rows = sorted(scored, key=lambda row: float(sign * row["value"]))[:most]
    return [_row("all", told["all"]), *(_row(name_of(row["slice"]), row) for row in rows)]


def _row(name: str, row: Json) -> tuple[str, ...]:
    """What of the documents has a label is told where it is not all of them."""
    count, labelled = row["documents"], row["labelled"]
    documents = f"{count:,}" if count == labelled else f"{count:,} ({labelled:,} labelled)"
    cells = [_cell(row["value"]), between(row["interval"])]
    if "drop" in row:
        drop = row["drop"]
        cells += [_cell(row["teacher"]["value"]), _cell(drop["value"]), between(drop["interval"])]
    return (name, documents, *cells)


def name_of(name: str | None) -> str:
    """What a slice is called, in a line."""
    return NO_VALUE if name is None else " ".join(name.split())


def between(interval: Sequence[float] | None) -> str:
    """An interval in words."""
    return "-" if interval is None else "{} to {}".format(*map(_cell, interval))


def worst_of(column: str, told: Json) -> Iterator[str]:
    """A line on the slice that scores worst, and on the one that loses most."""
    for key, what, whole in (
        ("worst", told["metric"], told["all"]),
        ("worst_drop", DROP, told["all"].get("drop")),
    ):
        if key in told:
            yield _line(f"{key.replace('_', ' ')} by {column}", what, told[key], whole)


def _line(head: str, what: str, worst: Json | None, whole: Json) -> str:
    if worst is None:
        return f"{head}: no slice has a score"
    if what == DROP and worst["value"] <= 0:
        return f"{head}: none, the student is worse on no slice"
    count = worst["labelled"]
    told = (
        f"{head}: {name_of(worst['slice'])}, {what.replace('_', ' ')} {_cell(worst['value'])} "
        f"({between(worst['interval'])}) of {count:,} document{'s' if count != 1 else ''}"
    )
    of_all = _cell(whole["value"])
    if worst["apart"]:
        return f"{told}; {of_all} of all"
    return f"{told}, which may be chance: the interval holds the {of_all} of all"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
