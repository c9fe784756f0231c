"""Reports on stdout: JSON for programs, tables for people."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from kdcache.rendering import both as both
from kdcache.rendering import show as show
from kdcache.rendering import size as size

PIPED_WIDTH = 100
BAR_WIDTH = 30


def print_json(report: Any) -> None:
    """Print JSON alone; figures that are not finite become null, which every reader knows."""
    print(json.dumps(_finite(report), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def print_title(text: str) -> None:
    """Print a heading with a blank line above."""
    print(f"\n{text}")


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print a name and a value per line; fields that are None are left out."""
    print_table((), [(name, value) for name, value in fields.items() if value is not None])


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[int] = ()
) -> None:
    """Print aligned columns, those numbered in `right` to the right; colour on terminals only."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(width=width, highlight=False)
    cells = [[Text(show(cell)) for cell in row] for row in rows]
    titled = bool(header)
    table = Table(box=SIMPLE_HEAD if titled else None, show_header=titled, pad_edge=False)
    aligned = set(right)
    for index in range(max([len(header), *map(len, cells)])):
        side: Literal["left", "right"] = "right" if index in aligned else "left"
        table.add_column(header[index] if titled else "", justify=side, overflow="fold")
    for row in cells:
        table.add_row(*row)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    print("\n".join(lines).strip("\n"))


def bar(share: float) -> str:
    """A bar that is full at a share of 1; it shows as soon as there is anything."""
    mark = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    return mark * max(math.ceil(share * BAR_WIDTH), 0)
