"""kdcache teach: what it prints, for people and for machines."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from kdcache.store import open_cache
from kdcache.teaching import teach
from kdcache.teaching.settings import ClassWeights
from kdcache_cli import teaching

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--epochs", 1, "--lr", "1e-3", "--max-length", 32, "--quiet")


def test_the_table_has_every_epoch_and_the_next_command(
    run: Run, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "my teacher", shutil.copy(corpus, tmp_path / "my corpus.csv")
    options = ("--out", out, "--dev-split", "20%", "--eval", corpus, "--label-column", "label")
    code, text, err = run("teach", masked_lm, mine, *options, *QUICK)
    assert (code, err) == (0, "")
    rows = [line.split() for line in text.splitlines() if " to 0" in line or "to 1." in line]
    assert [row[0] for row in rows] == ["the", "0.001"]
    assert sum(row[-1] == "chosen" for row in rows) == 1
    seen = "240 documents (240 of them taught or chosen on)"
    assert f"On sentences.csv, {seen}: accuracy 0." in text
    _, _, command = text.splitlines()[-1].partition("Next: kdcache ")
    assert run(*shlex.split(command), "--quiet")[0] == 0
    built = open_cache(f"{out}.cache").plan.config
    assert (built.max_length, built.corpus["label_column"]) == (32, "label")


@pytest.mark.slow
def test_json_is_the_result(run: Run, masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher"
    code, text, _ = run("teach", masked_lm, corpus, "--out", out, *QUICK, "--json")
    assert code == 0
    found = json.loads(text)
    assert found["folder"] == str(out)
    assert found["metrics"] == json.loads((out / "metrics.json").read_text("utf-8"))


def test_defaults_of_teach_are_the_librarys() -> None:
    library = inspect.signature(teach).parameters
    for name, parameter in inspect.signature(teaching.teach).parameters.items():
        if name in ("task", "epochs", "class_weights", "batch_size", "max_length", "seed"):
            assert parameter.default == library[name].default
    assert get_args(ClassWeights) == teaching.CLASS_WEIGHTS
