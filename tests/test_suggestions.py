"""Whatever a message suggests is accepted: fields, options and commands."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
import typer

from kdcache.errors import ConfigError, near
from kdcache.training.arguments import MEANT, TAKEN, known_fields, meant_fields, training_arguments
from kdcache.training.recipe import load_recipe
from kdcache_cli.app import app
from kdcache_cli.usage import MEANT as MEANT_FLAGS
from kdcache_cli.usage import usage_message

ROOT = Path(__file__).parents[1]
SUGGESTED = re.compile(r"did you mean '([\w.]+)'")
PIP = (
    "--dest --disable-pip-version-check --hash --no-binary --no-build-isolation --no-deps "
    "--no-input --require-hashes --requirement --retries"
)
OTHERS = {"--force-reinstall", "--no-deps", "--nproc-per-node", "--pair", *PIP.split()}
"""Options of other programs that texts name: torchrun's, a shipped infer.py's, pip's."""

commands: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def flags_of(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in parameter.opts if flag[:2] == "--"}


def every_flag() -> set[str]:
    found = {"--help", "--quiet", "--debug", "--version"}
    for command in commands.values():
        for inner in (command, *getattr(command, "commands", {}).values()):
            found |= flags_of(inner)
    return found


def accepted(path: str, folder: Path) -> None:
    """Set the field to the value it has anyway; an error if kdcache does not take its name."""
    section, _, name = path.rpartition(".")
    assert section == "training"
    value = getattr(transformers.TrainingArguments(output_dir=str(folder)), name)
    recipe = load_recipe("kd", [f"{path}={value if value is not None else 'x'}"])
    assert name in recipe.training
    if isinstance(value, bool | int | float):
        training_arguments(recipe, folder)


@pytest.mark.parametrize("name", MEANT)
def test_a_name_that_people_try_suggests_a_field_that_is_accepted(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as bare:
        load_recipe("kd", [f"{name}=1"], meant_fields())
    with pytest.raises(ConfigError) as full:
        training_arguments(load_recipe("kd", [f"training.{name}=1"]), tmp_path)
    for caught in (bare, full):
        (suggested,) = SUGGESTED.findall(str(caught.value))
        assert suggested == f"training.{MEANT[name]}"
    accepted(suggested, tmp_path)


def test_no_field_that_is_taken_is_ever_suggested(tmp_path: Path) -> None:
    assert not set(known_fields()) & set(TAKEN)
    assert set(MEANT.values()) <= set(known_fields())
    for name in TAKEN:
        wrong = f"{name}x"
        with pytest.raises(ConfigError, match="unknown field") as caught:
            training_arguments(load_recipe("kd", [f"training.{wrong}=1"]), tmp_path)
        for suggested in re.findall(r"'training\.(\w+)'", str(caught.value))[1:]:
            assert suggested in known_fields()


def test_what_stands_in_for_a_taken_field_exists() -> None:
    for text in TAKEN.values():
        for flag in re.findall(r"--[a-z-]+", text):
            assert flag in flags_of(commands["train"]), text
        for path in re.findall(r"\b(?:data|training|losses)\.[\w.]+", text):
            name = path.rpartition(".")[2]
            assert name in load_recipe("kd").to_json()["data"], text


def test_options_of_other_programs_lead_to_options_of_ours() -> None:
    for flag, meant in MEANT_FLAGS.items():
        havers = [command for command in commands.values() if meant in flags_of(command)]
        assert havers, meant
        assert flag not in every_flag()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--learning-rate", "1"], "no such option: --learning-rate; did you mean --lr?"),
        (["build", "--output-dir", "1"], "did you mean --out?"),
        (["train", "--weight-decay", "1"], "did you mean --set training.weight_decay=...?"),
        (["build", "--batch-size", "1"], "did you mean --batch-tokens?"),
        (["build", "--qqq", "1"], "`kdcache build --help` shows how"),
        (["plan", "--max", "1"], "did you mean --max-length?"),
        (["train", "--init", "1"], "did you mean --init-from-teacher?"),
        (["evaluate", "--batch", "1"], "did you mean --batch-size?"),
        (["export", "--out", "1"], "it is given without a name: kdcache export CACHE OUT"),
        (["verify", "--cache", "1"], "it is given without a name: kdcache verify CACHE"),
        (["inspect", "--zzz", "1"], "`kdcache inspect --help` shows how"),
    ],
)
def test_an_unknown_option_leads_to_the_right_one(arguments: list[str], says: str) -> None:
    with pytest.raises(Exception) as caught, _context(arguments):  # noqa: PT011 - Typer's own
        pass
    message = usage_message(caught.value)
    assert message is not None
    assert message.endswith(says)


def _context(arguments: list[str]) -> Any:
    name, *rest = arguments
    program = typer.main.get_command(app)
    parent = program.make_context("kdcache", [name], resilient_parsing=True)
    return commands[name].make_context(name, rest, parent=parent)


FLAG = r"(?<![\w-])(?<!var\()--[a-z][a-z0-9-]+(?![\w-]*(?:\{|:\S))"
"""An option, which a variable of a style sheet is not."""


def _texts() -> Iterator[tuple[str, str]]:
    """Every text in the sources, docstrings among them, and the file it stands in."""
    for folder in ("kdcache", "kernels", "cli"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield str(file), node.value


def test_every_option_and_command_that_a_text_names_exists() -> None:
    flags = every_flag() | OTHERS | set(MEANT_FLAGS)
    for file, text in _texts():
        for flag in re.findall(FLAG, text):
            assert flag in flags, (file, text)
        for command in re.findall(r"`kdcache ([a-z]+)", text):
            assert command in commands, (file, text)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("pkd", ["pkd-last", "pkd-skip"]),
        ("PKD_SKIP", ["pkd-skip"]),
        ("last", ["pkd-last"]),
        ("hiden", ["hidden"]),
        ("", []),
        ("q", []),
    ],
)
def test_near_names(value: str, names: list[str]) -> None:
    assert near(value, ["hidden", "kd", "pkd-last", "pkd-skip"]) == names
