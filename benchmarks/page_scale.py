"""Rows about scale: the same figure where something is small and where it is large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from page_parts import Json, Row, result

SCALE_HEAD = ("what", "small", "there", "large", "there", "result")


def scale_rows() -> Iterator[Row]:
    """Memory by documents, time by students, bytes and speed by vocabulary, batches by rows."""
    yield from _memory()
    yield from _students()
    yield from _vocabulary()


def _memory() -> Iterator[Row]:
    small, *_, large = result("memory")["sizes"]
    for what, title in (("build", "most memory of a build"), ("train", "of 600 steps of training")):
        figures = [
            (f"{size['documents']:,} sentences", f"{size[f'{what}_peak_bytes'] / 1e9:.2f} GB")
            for size in (small, large)
        ]
        yield _row(title, figures, "memory")


def _students() -> Iterator[Row]:
    totals = result("amortised")["totals"]
    for how, title in (("cached", "students from a cache"), ("in_the_loop", "teacher in the loop")):
        (few, first), *_, (many, last) = totals[how]
        figures = [
            (_students_text(number), f"{seconds / 60:.1f} min")
            for number, seconds in ((few, first), (many, last))
        ]
        yield _row(title, figures, "amortised")


def _students_text(number: int) -> str:
    return "1 student" if number == 1 else f"{number} students"


def _vocabulary() -> Iterator[Row]:
    signal = "logits:topk,k=50"
    sizes = [
        (f"{size:,} tokens", f"{_of(name, 'signal', signal)['bytes_per_row']:.0f} bytes")
        for size, name in ((30522, "fidelity"), (128256, "fidelity_wide"))
    ]
    yield _row(f"a row of `{signal}`", sizes, "fidelity")
    rows = [row for row in result("kernels_h100")["rows"] if row["op"] == "topk_kl"]
    shares = [
        (f"{row['vocab']:,} tokens", f"{100 * row['share_of_limit']:.0f}% of a copy's speed")
        for row in rows
        if row["variant"] == "T=1"
    ]
    yield _row("`topk_kl` on an H100", shares, "kernels_h100")


def _of(name: str, field: str, value: str) -> Json:
    found: dict[str, Any] = next(row for row in result(name)["rows"] if row[field] == value)
    return found


def _row(title: str, figures: list[tuple[str, str]], source: str) -> Row:
    (small, there), (large, here) = figures
    return title, small, there, large, here, f"`{source}.json`"
