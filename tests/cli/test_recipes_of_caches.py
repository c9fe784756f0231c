"""`--for RECIPES` of plan and build, and `recipes --cache`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from kdcache.store import Cache
from kdcache.training.recipe import load_recipe
from kdcache.training.wanted_signals import signals_of_teacher
from kdcache_cli.shipped import read_recipes

TASK = "text-classification"


def test_the_plan_for_recipes_tells_the_bytes_of_their_signals(
    run: Callable[..., tuple[int, str, str]], corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    given = f"plan {corpus} --tokenizer {classifier} --task {TASK} --json"
    code, out, err = run(*f"{given} --out {tmp_path / 'a'} --for fitnet,rkd".split())
    assert code == 0
    texts = signals_of_teacher([load_recipe("fitnet"), load_recipe("rkd")], classifier, TASK)
    assert all(f"--signal {text}" in err for text in texts)
    named = [word for text in texts for word in ("--signal", text)]
    _, other, _ = run(*f"{given} --out {tmp_path / 'b'}".split(), *named)
    assert json.loads(out)["bytes"] == json.loads(other)["bytes"]


def test_recipes_of_a_cache_are_listed_with_what_serves_the_others(
    run: Callable[..., tuple[int, str, str]], cache: Cache
) -> None:
    code, out, _ = run("recipes", "--cache", str(cache.path), "--student-layers", "1", "--json")
    assert code == 0
    found = {one["recipe"]: one for one in json.loads(out)}
    assert found.keys() == set(read_recipes())
    assert all(one["served"] != bool(one["why"]) for one in found.values())
    code, out, _ = run("recipes", "--cache", str(cache.path), "--student-layers", "1")
    assert code == 0
    assert "train from" in out.splitlines()[-1]
