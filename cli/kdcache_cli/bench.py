"""The bench commands: what this machine reaches, and what got slower since an earlier report."""

from __future__ import annotations

from collections.abc import Callable

import typer

COMMANDS: dict[str, Callable[..., None]] = {}

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)
