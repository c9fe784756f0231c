"""torch.compile changes what a step costs, and nothing of what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kdcache
from tests.test_module_students import HIDDEN, QUICK, steps, undropped
from tests.test_trainer import log_of

COMPILED = ["training.torch_compile=true", "training.torch_compile_backend=eager"]
BERT = {"init_from_teacher": [1]}
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "documents": ("cache", "kd", BERT, ()),
    "masked tokens": ("masked_cache", "mlm-kd", BERT, ()),
    "tokens": ("causal_cache", "causal-kd", BERT, ()),
    "module": ("cache", "kd", {}, HIDDEN),
}
"""A cache, a recipe, whose student, and what is set besides."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "documents" else pytest.mark.slow) for n in CASES],
)
def test_a_compiled_student_learns_what_a_plain_one_does(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of batches whose masks, and the rows that they have, differ."""
    place, recipe, student, more = CASES[name]
    logs = []
    for out, extra in (("plain", []), ("compiled", COMPILED)):
        folder = kdcache.train(
            request.getfixturevalue(place),
            recipe=recipe,
            out=tmp_path / out,
            overrides=[*steps(3), *more, *extra],
            **(student or {"student": undropped()}),
            **{**QUICK, "batch_size": 4},
        ).folder
        logs.append(log_of(folder))
    assert len(logs[0]) == len(logs[1]) == 3
    for plain, found in zip(*logs, strict=True):
        for key in ("loss", "grad_norm"):
            assert found.get(key) == pytest.approx(plain.get(key), rel=1e-4)
