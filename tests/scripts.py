"""Scripts of benchmarks/, as modules."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script_of(name: str) -> Any:
    """The script of that name, whose neighbours it imports by name; the path is left as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)
