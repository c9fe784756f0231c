"""Losses and gradients of the shipped recipes stay what they are: losses.npz, by make_losses.py.

In float64 to 1e-12 of the largest entry, in float32 to 1e-6, of the same float64 figures. The
outputs of student and teacher are arrays of the file: no model and no decoding, whose last bits
are a machine's. Reductions are compared after their sums: no order of summing is claimed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcache.training.recipe import shipped_recipes
from tests.frozen.make_losses import CASES, FILE, numbers, recipe_of, unflat
from tests.objectives import Array, evaluate

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
LOOSE = {"crd": 1e-4}
"""In float32: exponentials of products over 0.07, whose gradients cancel."""


@pytest.fixture(scope="module")
def frozen() -> dict[str, Array]:
    with np.load(FILE) as stored:
        return dict(stored)


def part(frozen: dict[str, Array], start: str) -> dict[str, Array]:
    return {n.removeprefix(start): x for n, x in frozen.items() if n.startswith(start)}


def test_every_shipped_recipe_has_a_batch(frozen: dict[str, Array]) -> None:
    lacking = set(shipped_recipes()) - {name.partition(".")[0] for name in CASES}
    assert not lacking, f"give {lacking} a batch in CASES of make_losses.py, and run that"
    assert {name.partition("/")[0] for name in frozen} == set(CASES)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_has_the_losses_and_gradients_it_had(
    frozen: dict[str, Array], name: str, dtype: torch.dtype
) -> None:
    given, wanted = unflat(part(frozen, f"{name}/given/")), part(frozen, f"{name}/found/")
    losses, options = recipe_of(name)
    found = numbers(evaluate(losses, given, dtype, **options))
    assert found.keys() == wanted.keys()
    tolerance = LOOSE.get(name, 0.0) if dtype == torch.float32 else 0.0
    tolerance = max(tolerance, TOLERANCE[dtype])
    for key, values in found.items():
        error = np.abs(values.astype(np.float64) - wanted[key]).max()
        assert error <= tolerance * np.abs(wanted[key]).max(), key


@pytest.mark.parametrize("name", CASES)
def test_no_divergence_is_so_small_that_float32_has_no_digits_of_it(
    frozen: dict[str, Array], name: str
) -> None:
    for key, value in part(frozen, f"{name}/found/term.").items():
        assert value > 0.01, key
