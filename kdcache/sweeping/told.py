"""A sweep's table as pages and notebooks show it."""

from __future__ import annotations

from kdcache.evaluation.score_tables import called, with_bounds
from kdcache.rendering import Table, show, size
from kdcache.sweeping.record import Mean, Record, Row, Worst


def record_table(record: Record) -> Table:
    """A row for each setting and kind of weights, and the teacher's at the end."""
    sliced = bool(record.by)
    head = (
        "", "weights", f"dev {called(record.metric)}", "test",
        *(("worst slice", "drop there") if sliced else ()), "parameters", "size", "p50, ms",
        "nothing beats it in",
    )  # fmt: skip
    return Table(head, tuple(_row(row, sliced=sliced) for row in record.rows), figures=True)


def _row(row: Row, *, sliced: bool) -> tuple[str, ...]:
    return (
        f"{row.name}{' (picked)' if row.picked else ''}",
        row.kind,
        _mean(row.dev),
        _mean(row.eval),
        *(_worst(row.worst) if sliced else ()),
        show(row.parameters),
        "-" if row.bytes is None else size(row.bytes),
        show(row.p50_ms),
        ", ".join(row.front),
    )


def _mean(score: Mean | None) -> str:
    if score is None:
        return "-"
    spread = "" if score.sd is None else f" ± {score.sd:.2g} (of {score.n})"
    return f"{score.mean:.4g}{spread}"


def _worst(worst: Worst | None) -> tuple[str, str]:
    if worst is None:
        return "-", "-"
    return f"{worst.where} ({worst.size})", with_bounds(worst.drop, worst.interval)
