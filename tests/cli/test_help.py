"""--help: examples, width, start-up, and options that are the library's."""

from __future__ import annotations

import inspect
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from kdcache.building.planner import PlanOptions
from kdcache.corpora.documents import Unit
from kdcache.labels import LabelType
from kdcache.models.teacher import DTYPES
from kdcache_cli import bench, options, planning
from kdcache_cli.app import COMMANDS, GROUPS, app

ROOT = Path(__file__).parents[2]
HEAVY = {"datasets", "numba", "sklearn", "torch", "transformers", "zarr"}
Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize(
    "command", [*COMMANDS, *GROUPS, *(f"bench {name}" for name in bench.COMMANDS)]
)
def test_help_of_every_command_fits_80_columns_and_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    example = result.stdout.partition("Example:\n")[2]
    assert example.startswith(f"    kdcache {command}")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\b" not in result.stdout


def test_help_offers_what_a_command_takes_and_tells_all_it_does() -> None:
    told = {
        name: " ".join(CliRunner().invoke(app, [name, "--help"]).stdout.split())
        for name in ("teach", "evaluate")
    }
    assert "of one class, several, or values a document" in told["teach"]
    assert "masked-lm" not in told["teach"]
    assert "Score and time this teacher" in told["evaluate"]


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["bare", "help"])
def test_the_program_lists_its_commands_whole(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    listed = out.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines()] == [*COMMANDS, *GROUPS]
    assert "..." not in listed


def test_help_imports_nothing_heavy(start: Start) -> None:
    code = "import sys; from kdcache_cli.main import main; main(['--help']); print(*sys.modules)"
    out, err = start("-c", code).communicate(timeout=60)
    assert "Usage" in out, err
    assert HEAVY & set(out.split()) == set()


@pytest.mark.parametrize("command", ["plan", "build"])
def test_plan_and_build_take_every_option_of_a_plan(command: str) -> None:
    parameters = inspect.signature(COMMANDS[command]).parameters
    assert set(options.PLAN_OPTIONS) <= set(parameters)
    assert set(options.PLAN_OPTIONS.values()) == set(PlanOptions.__annotations__)


def test_the_named_values_of_options_are_the_librarys() -> None:
    assert get_args(Unit) == options.UNITS
    assert get_args(LabelType) == options.LABEL_TYPES
    assert tuple(DTYPES) == options.DTYPES


def test_defaults_of_build_are_the_librarys() -> None:
    from kdcache.building.builder import build

    library = inspect.signature(build).parameters
    for name, parameter in inspect.signature(planning.build).parameters.items():
        if name in ("device", "dtype", "batch_tokens", "keep_teacher_weights"):
            assert parameter.default == library[name].default
