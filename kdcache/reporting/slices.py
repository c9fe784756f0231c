"""Scores slice by slice, a column for each model that was scored on the same documents."""

from __future__ import annotations

from collections.abc import Iterator

from kdcache.evaluation.score_tables import called, with_bounds
from kdcache.evaluation.told import NO_VALUE
from kdcache.manifest import Json
from kdcache.rendering import Part, Table, Text
from kdcache.reporting.groups import Group


def slice_parts(group: Group) -> Iterator[Part]:
    """A table for every column that documents were sliced by."""
    columns = dict.fromkeys(c for side in group.sides.values() for c in side.get("slices") or {})
    for column in columns:
        told = {
            name: side["slices"][column]
            for name, side in group.sides.items()
            if column in (side.get("slices") or {})
        }
        metric = next(iter(told.values())).get("metric", "score")
        yield Text(f"By `{column}`: {called(metric)}, with 95% intervals, on {group.where}.")
        yield _table(column, told)


def _table(column: str, told: dict[str, Json]) -> Table:
    """Rows of slices; a teacher that was run on them has a column, and what is lost to it."""
    sliced = {name: {_name(row): row for row in one["rows"]} for name, one in told.items()}
    teacher = any("teacher" in row for rows in sliced.values() for row in rows.values())
    names = dict.fromkeys(name for rows in sliced.values() for name in rows)
    rows = [_row("all", {model: one["all"] for model, one in told.items()}, teacher=teacher)]
    for name in names:
        found = {model: rows_[name] for model, rows_ in sliced.items() if name in rows_}
        rows.append(_row(name, found, models=tuple(told), teacher=teacher))
    lost = [cell for model in told for cell in (model, *(["lost"] if teacher else []))]
    head = (column, "documents", *(["teacher"] if teacher else []), *lost)
    return Table(head, tuple(rows), figures=True)


def _name(row: Json) -> str:
    return NO_VALUE if row.get("slice") is None else str(row["slice"])


def _row(
    name: str, found: dict[str, Json], *, teacher: bool, models: tuple[str, ...] = ()
) -> tuple[str, ...]:
    first = next(iter(found.values()))
    cells = [name, f"{first['documents']:,}"]
    if teacher:
        cells.append(_cell(first.get("teacher")))
    for model in models or found:
        cells.append(_cell(found.get(model)))
        if teacher:
            cells.append(_cell((found.get(model) or {}).get("drop")))
    return tuple(cells)


def _cell(told: Json | None) -> str:
    if not told or told.get("value") is None:
        return "-"
    return with_bounds(told["value"], told.get("interval"))
