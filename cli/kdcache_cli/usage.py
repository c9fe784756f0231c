"""Arguments before Typer sees them, and Typer's complaints as one line."""

from __future__ import annotations

from collections.abc import Sequence

GLOBAL = ("--debug", "--quiet")


def hoist(arguments: Sequence[str]) -> list[str]:
    """Move the options of the whole program to the front: they work after a command too."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    ours = [option for option in GLOBAL if option in given[:end]]
    return [*ours, *(a for a in given[:end] if a not in ours), *given[end:]]


def usage_message(error: Exception) -> str | None:
    """One line for a usage error of Typer's, with the nearest name; None for any other error."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    near = getattr(error, "possibilities", None)
    text = str(getattr(error, "message", "")) if near else str(describe())
    line = " ".join(text.split()).replace(". Did you mean", "; did you mean").rstrip(".")
    if near:
        line += f"; did you mean {near[0]}?"
    elif not line.endswith("?"):
        line += _help(error)
    return line[:1].lower() + line[1:]


def _help(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"; `{context.command_path} --help` shows how" if context is not None else ""
