"""Run every case of some ops, or of all, and print what each computes, as a hash of its bits.

    python every_case.py [-r] [OP ...]

With `-r` in the order reversed. `make test` compiles the kernels by it.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from kdcache.bench.kernels_cases import CASES
from kdcache.bench.kernels_inputs import Size

SIZES = (
    Size(rows=40, vocab=601, k=16, hidden=45),
    Size(rows=9, vocab=5003, k=70, hidden=768),
)


def bits(tensors: Iterable[Tensor]) -> str:
    """A hash of tensors' bits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def main(ops: list[str], step: int) -> None:
    """Print a line for every case, dtype and size."""
    for case in CASES[::step]:
        for dtype, size in itertools.product(case.dtypes, SIZES):
            if case.op in ops or not ops:
                x = case.draw(size, dtype, torch.device("cpu"), False)
                out = case.run(case.ours, case.fresh(case.ours, x))
                print(case.op, case.variant, dtype, size, bits(out), sep="|")


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if word != "-r"], -1 if "-r" in sys.argv else 1)
