"""Every way of INPUTS: gradients, tokens apart, a place in recipes; and one of a user's own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kdcache.inputs import INPUTS, Asked
from kdcache.signals import SoftLabels
from kdcache.training.inputs import inputs_of
from kdcache.training.train import train
from tests.conformance.conftest import Caches
from tests.conformance.test_new_signals import TASK

MODULE = '''
"""Word embeddings that are shrunk: what a transformation of inputs has to have, and no more."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    kind: ClassVar[str] = "shrunk"
    asks: ClassVar[None] = None
    by: float = 0.5

    def embed(self, asked):
        return (1 - self.by) * asked.table[asked.ids]
'''


def asked(tokens: int, outputs: int = 11, k: int = 4) -> Asked:
    """Random tokens, table and words, in float64."""
    made = torch.Generator().manual_seed(tokens)
    logits = torch.randn(tokens, outputs, generator=made).double()
    logprobs, ids = logits.log_softmax(1).topk(k)
    return Asked(
        table=torch.randn(outputs, 3, generator=made).double().requires_grad_(),
        ids=torch.randint(outputs, (tokens,), generator=made),
        words=SoftLabels(ids=ids, logprobs=logprobs),
    )


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("tokens", [1, 7])
def test_a_token_is_embedded_by_itself_and_moves_the_table(kind: str, tokens: int) -> None:
    given, way = asked(tokens), INPUTS[kind]()
    made = way.embed(given)
    assert made.shape == (tokens, 3)
    assert made.dtype == given.table.dtype
    words = given.words
    assert words is not None
    last = given._replace(
        ids=given.ids[-1:], words=SoftLabels(ids=words.ids[-1:], logprobs=words.logprobs[-1:])
    )
    torch.testing.assert_close(way.embed(last)[0], made[-1])
    table = given.table.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: way.embed(given._replace(table=t)), table)


@pytest.mark.parametrize("kind", INPUTS)
def test_a_table_of_a_recipe_reads_back_equal(kind: str) -> None:
    chosen = inputs_of(kind)
    assert chosen is not None
    assert inputs_of(chosen.to_json()) == chosen == inputs_of(chosen)


def test_one_of_a_users_own_trains_a_student(
    caches: Caches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inputs_of_ours.py").write_text(MODULE, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module: Any = importlib.import_module("inputs_of_ours")
    monkeypatch.setitem(INPUTS, "shrunk", module.Shrunk)
    test_a_token_is_embedded_by_itself_and_moves_the_table("shrunk", 5)
    test_a_table_of_a_recipe_reads_back_equal("shrunk")
    cache = caches.build(TASK, ["logits:dense"])
    steps = ["training.max_steps=3", "training.logging_steps=1", "training.use_cpu=true"]
    inputs = "inputs={kind = 'shrunk', by = {start = 0, stop = 1}}"
    options: dict[str, Any] = {"recipe": "kd", "config": str(caches.teachers[TASK])}
    result = train(cache, out=tmp_path / "s", overrides=[*steps, inputs], **options)
    log = json.loads((result.folder / "training_log.json").read_text("utf-8"))
    assert [entry["inputs.by"] for entry in log if "loss" in entry] == [0.0, 0.5, 1.0]
    assert "shrunk (by=0 to 1)" in (result.folder / "README.md").read_text("utf-8")
