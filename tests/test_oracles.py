"""Every file of `oracles`, through the losses that recipes are made of: value, parts, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.methods import FOLDER, Found, Given, case_of, collected

NAMES = sorted(file.stem for file in FOLDER.glob("*.npz"))
BATCH = {"hidden": -3, "scores": -4}
"""By what the names of tensors end with, which axis has a place for each sequence."""
KINDS = ("code", "formula")

CLOSE = {torch.float64: (1e-9, 1e-12), torch.float32: (0.0, 1e-4)}
"""By dtype: relative tolerance, and absolute tolerance as a share of the largest entry."""


def close(found: torch.Tensor, wanted: Any, dtype: torch.dtype, what: str) -> None:
    """Hold a tensor against an array of a file."""
    wanted = np.asarray(wanted, np.float64)
    relative, absolute = CLOSE[dtype]
    np.testing.assert_allclose(
        found.detach().double().numpy(),
        wanted,
        rtol=relative,
        atol=absolute * np.abs(wanted).max(initial=0.0),
        err_msg=what,
    )


def gradients(given: Given, found: Found) -> dict[str, torch.Tensor]:
    """Those of all inputs of which the file has the gradient, by name."""
    leaves = {name: given[name] for name in given if f"grad_{name}" in given}
    if not leaves:  # of numbers that no student is part of
        return {}
    made = torch.autograd.grad(found.loss, list(leaves.values()), allow_unused=True)
    unused = [name for name, gradient in zip(leaves, made, strict=True) if gradient is None]
    assert not unused, f"the loss does not depend on {unused}"
    return dict(zip(leaves, made, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_the_losses_give_the_numbers_of_the_file(
    name: str, dtype: torch.dtype, record_property: Callable[[str, Any], None]
) -> None:
    given = Given(name, dtype)
    assert given.kind in KINDS
    found = case_of(name, collected())(given)
    left = [key for key in given.arrays if key.startswith("out_") and key not in found.parts]
    record_property("oracle", (name, given.kind, found.cut, left))
    for part, values in found.parts.items():
        close(values, given.arrays[part], dtype, part)
    moved = gradients(given, found)
    if not found.cut:
        close(found.loss, given.arrays["loss"], dtype, "loss")
        for leaf, gradient in moved.items():
            wanted = given[f"grad_{leaf}"]
            if leaf in found.sum_to_one:
                share = given[leaf].detach()
                gradient = share * gradient
                wanted = share * (wanted - (wanted * share).sum(-1, keepdim=True))
            close(gradient, wanted, dtype, leaf)
        return
    assert found.cut == len(given.lengths) - len(given.whole)
    held = {leaf: axis for leaf in moved if (axis := BATCH.get(leaf.rpartition("_")[2]))}
    assert held, "nothing of this case would be held against its file"
    more = len(given.lengths) / len(given.whole)  # the file's is a mean over all sequences
    for leaf, axis in held.items():
        ours, wanted = moved[leaf], given[f"grad_{leaf}"]
        ours, wanted = (x.index_select(axis, given.whole) for x in (ours, wanted))
        close(ours, more * wanted, dtype, leaf)


def test_a_case_that_no_method_claims_fails() -> None:
    with pytest.raises(AssertionError, match=r"no module of tests/methods claims unknown\.a"):
        case_of("unknown.a", collected())


def test_every_claim_has_a_case() -> None:
    claimed = {prefix for prefix in collected() if any(n.startswith(prefix) for n in NAMES)}
    assert claimed == collected().keys()
