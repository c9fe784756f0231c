"""Arguments before Typer sees them, and Typer's complaints as one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from kdcache.errors import ConfigError, near
from kdcache_cli.shipped import training_fields

GLOBAL = ("--debug", "--quiet")


def hoist(arguments: Sequence[str]) -> list[str]:
    """Move the options of the whole program to the front: they work after a command too."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    ours = [option for option in GLOBAL if option in given[:end]]
    return [*ours, *(a for a in given[:end] if a not in ours), *given[end:]]


def require_values(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an empty argument, such as an unset variable of a shell leaves.

    As a path it would be the current folder. Only the column of labels can be none.
    """
    for before, given in pairwise(["", *arguments]):
        name, equals, value = given.partition("=")
        if given and not (name.startswith("--") and equals):
            continue
        option = name or (before if before.startswith("--") else "")
        if not value and option != "--label-column":
            raise ConfigError(
                f"{option or 'an argument'} is empty: give it a value; is a variable of the shell "
                "not set?"
            )


MEANT = {
    "--output": "--out",
    "--output-dir": "--out",
    "--output-file": "--out",
    "--learning-rate": "--lr",
    "--num-epochs": "--epochs",
    "--num-train-epochs": "--epochs",
    "--per-device-train-batch-size": "--batch-size",
    "--signals": "--signal",
    "--layers": "--init-from-teacher",
    "--max-seq-length": "--max-length",
    "--max-tokens": "--max-length",
    "--eval-file": "--eval",
    "--model": "--teacher",
}
"""Options of other programs, and what they are called here."""


def usage_message(error: Exception) -> str | None:
    """One line for a usage error of Typer's, with the nearest name; None for any other error."""
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    option = getattr(error, "option_name", None)
    if option is not None:
        return _no_option(str(option), error)
    commands = _commands_left_out(error)
    if commands:
        return f"missing command: {', '.join(commands)}{_help(error)}"
    line = " ".join(str(describe()).split()).replace(". Did you mean", "; did you mean").rstrip(".")
    if not line.endswith("?"):
        line += _help(error)
    return line[:1].lower() + line[1:]


def _commands_left_out(error: Any) -> list[str]:
    """The commands of a group that was called without one, which Typer answers with its help."""
    asked = type(error).__name__ == "NoArgsIsHelpError"
    return list(error.ctx.command.commands) if asked else []


def _no_option(option: str, error: Any) -> str:
    """What to say of an option that a command does not have."""
    given = f"no such option: {option}"
    parameters = error.ctx.command.params if error.ctx is not None else []
    unnamed = [p for p in parameters if p.param_type_name == "argument"]
    if option.lstrip("-") in {p.name for p in unnamed}:
        words = " ".join(str(p.metavar or p.name).upper() for p in unnamed)
        return f"{given}; it is given without a name: {error.ctx.command_path} {words}"
    known = [name for p in parameters if p not in unnamed for name in p.opts]
    field = option.lstrip("-").replace("-", "_")
    if MEANT.get(option) in known:
        names = [MEANT[option]]
    elif "--set" in known and field in training_fields():
        names = [f"--set training.{field}=..."]
    else:  # without the dashes, in which all options are alike
        names = [f"--{name}" for name in near(option.lstrip("-"), [k.lstrip("-") for k in known])]
    return f"{given}; did you mean {' or '.join(names)}?" if names else given + _help(error)


def _help(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"; `{context.command_path} --help` shows how" if context is not None else ""
