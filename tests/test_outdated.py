"""What earlier versions got wrong is told of the caches they made, and of no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdcache
from kdcache.building.builder import build
from kdcache.maintenance.outdated import FAULTS, outdated
from kdcache.models.families import decodes, sways
from kdcache.plans.identity import FUNCTION
from kdcache.store import Cache, open_cache
from kdcache.store.contents import _write_file
from kdcache.store.format.zarr_metadata import create_group
from kdcache.store.io.check_object import object_fingerprint
from kdcache.tasks import TASKS
from kdcache_cli.main import main
from tests.conftest import write_csv
from tests.damage import copy_of, forge_manifest, forge_plan

ONE, PAD, MASK, MEAN, ORDER, DROPPED = FAULTS


def age(root: Path) -> None:
    """Make a cache one of the second format, but for the names of its dimensions."""

    def change(record: dict[str, Any]) -> None:
        record["format"] = 2
        for name in FUNCTION:
            del record["teacher"][name]

    forge_manifest(root, change)


def configure(root: Path, scratch: Path, **changes: Any) -> None:
    """Change the configuration of the teacher that a cache keeps."""
    values = json.loads(open_cache(root).file("teacher/config.json"))
    create_group(scratch, {})
    _write_file(scratch, "teacher/config.json", json.dumps({**values, **changes}).encode(), False)
    shutil.rmtree(root / "files/teacher/config.json")
    shutil.copytree(scratch / "files/teacher/config.json", root / "files/teacher/config.json")
    made = [p for p in (root / "files/teacher/config.json").rglob("*") if p.is_file()]
    contents = {str(p.relative_to(root)): p.read_bytes() for p in made}
    forge_plan(
        root, lambda kept: kept.update({k: object_fingerprint(k, v) for k, v in contents.items()})
    )


def teacher(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["teacher"].update(changes)


def test_a_cache_of_several_classes_at_once(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    configure(root, tmp_path / "new", problem_type="multi_label_classification")
    assert outdated(root) == [], "a new store is made as it should be"
    age(root)
    assert outdated(root) == [f"{root}: {ONE}; build it anew"]
    for kind, found in (("regression", 1), ("single_label_classification", 0)):
        configure(root, tmp_path / kind, problem_type=kind)
        assert len(outdated(root)) == found


def test_training_says_so_too(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_of(cache, tmp_path)
    configure(root, tmp_path / "new", problem_type="multi_label_classification")
    age(root)
    kdcache.train(
        root,
        recipe="kd",
        out=tmp_path / "s",
        init_from_teacher=[1],
        overrides=["training.max_steps=1"],
    )
    assert f"{root}: {ONE}; build it anew" in caplog.messages


def test_a_decoder_that_was_given_another_pad(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    age(root)
    pad = cache.plan.config.tokenizer["pad_id"]
    for number, (family, named, found) in enumerate(
        [("llama", pad + 9, 1), ("llama", pad, 0), ("llama", None, 0), ("bert", pad + 9, 0)]
    ):
        configure(root, tmp_path / str(number), model_type=family, pad_token_id=named)
        assert len(outdated(root)) == found
        assert all(PAD in line for line in outdated(root))


def test_a_teacher_without_a_mask(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    age(root)
    assert outdated(root) == []
    forge_manifest(root, teacher(**{"class": "FNetForSequenceClassification"}))
    assert outdated(root) == [f"{root}: {MASK}; build it anew"]


def test_families_are_known_by_name() -> None:
    assert all(map(decodes, ("llama", "gpt2", "qwen3", "mistral")))
    assert not any(map(decodes, ("bert", "roberta", "modernbert", "no such family", "None")))
    assert not sways("LlamaForCausalLM", "llama", TASKS["causal-lm"])
    assert not sways("NoSuchClass", "no such family", TASKS["causal-lm"])
    assert not sways("XLNetLMHeadModel", "xlnet", TASKS["causal-lm"])
    assert sways("XLNetForSequenceClassification", "xlnet", TASKS["text-classification"])
    assert sways("FNetForMaskedLM", "fnet", TASKS["masked-lm"])


def test_means_summed_in_half_precision(tmp_path: Path, prose_file: Path, masked_lm: Path) -> None:
    signals = ["hidden:layers=2,positions=mean,dtype=fp32"]
    made = build(
        prose_file,
        teacher=masked_lm,
        task="masked-lm",
        out=tmp_path / "c",
        signals=signals,
        limit=6,
    )
    age(tmp_path / "c")
    assert outdated(made.path) == []
    forge_manifest(tmp_path / "c", teacher(dtype="bf16"))
    assert outdated(made.path) == [f"{made.path}: {MEAN}; build it anew"]


def test_labels_in_the_order_of_text(cache: Cache, tmp_path: Path) -> None:
    root = copy_of(cache, tmp_path)
    age(root)
    for names, found in ((range(12), 0), (sorted(range(12), key=str), 1)):
        classes = [f"LABEL_{number}" for number in names]
        forge_manifest(root, lambda m, c=classes: m["plan"]["config"]["corpus"].update(classes=c))
        assert outdated(root) == [f"{root}: {ORDER}; build it anew"] * found


def test_values_that_were_dropped(tmp_path: Path, regressor: Path) -> None:
    rows = [("a text of some words", 0.5), ("another one", ""), ("and a third one", 1.5)]
    path = write_csv(tmp_path / "values.csv", rows)
    made = build(path, teacher=regressor, task="text-classification", out=tmp_path / "c")
    age(tmp_path / "c")
    assert outdated(made.path) == [f"{made.path}: {DROPPED}; build it anew"]


def test_verify_warns_in_a_line_and_exits_as_ever(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(cache, tmp_path)
    age(root)
    forge_manifest(root, teacher(**{"class": "FNetForSequenceClassification"}))
    for more in ([], ["--full"]):
        assert main(["verify", str(root), "--quiet", *more]) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"warning: {root}: {MASK}; build it anew"
    assert main(["verify", str(root), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == outdated(root)
    (root / "zarr.json").write_bytes(b"{")
    assert main(["verify", str(root), "--quiet", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["warnings"] == []
