"""What CONTRIBUTING promises: a signal and a codec of anybody's own are a line in a table each.

A module that is written here and imported adds them, through the tables alone; commands and
functions take them from a plan to a repaired and merged cache.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdcache
from kdcache.building.budget import propose
from kdcache.errors import ConfigError
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.models import TAPS
from kdcache.signals import LOGITS, SIGNALS, TAP_KINDS, Tap, parse_all
from kdcache_cli.main import main
from tests.conformance.conftest import SIZES, Caches
from tests.damage import copy_of, files_of, flip

MODULE = '''
"""The mean of all layers as a signal, and logits as how far each is from the largest."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdcache.models.hooks import TAPS, Reader
from kdcache.signals import LOGITS, SIGNALS, TAP_KINDS, ArraySpec, SoftLabels, TapKind
from kdcache.signals.base import logits_space
from kdcache.signals.features import vectors
from kdcache.signals.soft_labels import SoftLabelCodec, divergence, kl_stats, kl_summary

TAP_KINDS["average"] = TapKind(per="token")
TAPS["average"] = Reader(take=lambda forward: {None: sum(forward.out.hidden_states)}, hidden=True)
SIGNALS["average"] = {"average": vectors("average")}


@dataclass(frozen=True, kw_only=True)
class Below(SoftLabelCodec):
    codec: ClassVar[str] = "below"
    steps: int = 64

    def to_json(self):
        return {"codec": self.codec, "steps": self.steps}

    def check(self, task, shape):
        logits_space(self.codec, task, 1.0)

    def arrays(self, task, shape):
        space, row = logits_space(self.codec, task, 1.0), (shape.outputs,)
        axes = ("output",)
        return [ArraySpec(name="steps", space=space, row_shape=row, axes=axes, dtype="int16")]

    def encode(self, activations):
        logits = activations[LOGITS]
        below = logits.amax(-1, keepdim=True) - logits
        return {"steps": (below * self.steps).round().clamp(max=32767).short()}

    def soft(self, arrays, outputs):
        values = arrays["steps"].float() / -self.steps
        ids = torch.arange(outputs).expand(values.shape)
        return SoftLabels(ids=ids, logprobs=values.log_softmax(-1), values=values)

    def measure(self, activations, encoded, rows):
        exact, soft = activations[LOGITS][rows].double(), self.soft(
            {name: values[rows] for name, values in encoded.items()}, activations[LOGITS].shape[1]
        )
        kl = divergence(exact.log_softmax(-1), soft.logprobs.double())
        return kl_stats("kl", kl, exact.argmax(-1) == soft.logprobs.argmax(-1))

    def summarise(self, stats):
        return kl_summary("kl", stats)


SIGNALS["logits"]["below"] = Below
'''
SIGNALS_OF_IT = ["logits:below,steps=50", "mine=average:positions=all,dtype=fp32"]
TASK: Any = "masked-lm"


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    """The module, imported; the tables are what they were afterwards."""
    tables: list[dict[str, Any]] = [SIGNALS, SIGNALS["logits"], TAPS, TAP_KINDS]
    before = [dict(table) for table in tables]
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield path
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("module")
def test_a_signal_and_a_codec_of_ones_own_go_all_ways(caches: Caches, tmp_path: Path) -> None:
    teacher, plan = caches.teachers[TASK], caches.plan(TASK)
    told = planned(caches)
    cache = kdcache.build(
        str(plan),
        teacher=teacher,
        task=TASK,
        out=tmp_path / "cache",
        signals=SIGNALS_OF_IT,
        batch_tokens=128,
    )
    docs = cache.plan.docs
    for array in ("logits/steps", "mine/codes"):
        assert told["arrays"][array] == cache.bytes[array]
    assert cache.manifest["signals"]["mine"]["kind"] == "average"
    states = kdcache.build(
        str(plan),
        teacher=teacher,
        task=TASK,
        out=tmp_path / "states",
        signals=["hidden:layers=0-1-2-3-4,positions=all,dtype=fp32", "logits:dense"],
        batch_tokens=128,
    )
    layers = [states.hidden(layer, docs).dense() for layer in range(5)]
    mine = cache.stored(docs, Tap("average")).dense()
    np.testing.assert_allclose(mine, sum(layers), rtol=1e-5, atol=1e-5)
    exact, soft = states.soft_labels(docs), cache.soft_labels(docs)
    np.testing.assert_allclose(soft.logprobs, exact.logprobs, atol=0.03)
    assert cache.holder(LOGITS) == "logits"

    columns = kdcache.export(cache, tmp_path / "out", form="parquet")
    assert len(columns.files) == cache.plan.parts
    assert set(cache.columns(docs, "mine")) == {"values"}
    spot = spot_check(cache.path, 4)
    assert spot.findings == []
    assert {figure.signal for figure in spot.figures} == {"logits", "mine"}

    root = copy_of(cache, tmp_path)
    whole = files_of(root)
    for array in cache.layouts:
        flip(next(p for p in (root / array / "c").rglob("*") if p.is_file()), 77)
    assert repair(root).left == ()
    assert files_of(root) == whole

    inspected = told_by("inspect", str(cache.path))
    assert inspected["signals"] == cache.manifest["signals"]
    wanted = {"mine": parse_all(SIGNALS_OF_IT)["mine"]}
    found = propose(cache.plan, cache.shape, 10**9, wanted)
    assert all(any(text.startswith("mine=average:") for text in one.signals) for one in found)
    with pytest.raises(ConfigError, match=r"nothing was measured of the logits wanted .*below"):
        propose(cache.plan, cache.shape, 10**9, parse_all(SIGNALS_OF_IT))
    other = kdcache.build(
        str(plan), teacher=teacher, task=TASK, out=tmp_path / "x", signals=["pure=logits:dense"]
    )
    kdcache.merge([cache.path, other.path], tmp_path / "merged")
    assert set(kdcache.open_cache(tmp_path / "merged").signals) == {"logits", "mine", "pure"}


def planned(caches: Caches) -> Any:
    """What `kdcache plan` says of the bytes of the signals."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    for text in SIGNALS_OF_IT:
        options += ["--signal", text]
    command = ["plan", str(caches.corpora[TASK]), "--tokenizer", str(caches.teachers[TASK])]
    out = ["--out", str(caches.plan(TASK)), "--task", TASK, "--quiet"]
    return told_by(*command, *out, *options)["bytes"]


def told_by(*command: str) -> Any:
    """What a command prints as JSON."""
    with redirect_stdout(StringIO()) as out:
        assert main([*command, "--json"]) == 0
    return json.loads(out.getvalue())
