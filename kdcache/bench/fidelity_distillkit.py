"""DistillKit's record of top-k log-probabilities, by the arithmetic of its published source.

Source: arcee-ai/DistillKit, distillkit/compression (config.py at commit 897bd13, the functions of
monotonic_logprobs.py), sample_common.py for the file, its README for the settings it recommends:
without delta encoding and error diffusion. Everything is float32, as there.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bytes = npt.NDArray[np.uint8]

SEQUENCE = 1024  # rows, its default
LEAST_SINGULAR = 1e-5  # below it a singular value of the basis counts as 0


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Residuals of the first `number` fitted values, in `bits` each with a float16 scale a row."""

    bits: int
    number: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """`exact` log-probabilities in bfloat16, the rest a sum of powers of the rank in float32."""

    k: int
    exact: int
    powers: Sequence[float]
    bins: Sequence[Bins] = ()


def encode(ids: Tensor, logprobs: Tensor, setting: Setting, vocabulary: int) -> tuple[Bytes, Bytes]:
    """Bytes of log-probabilities and of packed ids of sorted rows [N, k]: [N, bytes] each."""
    first = logprobs[:, : setting.exact].bfloat16()
    rest = logprobs[:, setting.exact :].float()
    basis = _basis(setting)
    u, s, v = torch.linalg.svd(basis, full_matrices=False)
    inverse = torch.where(s > LEAST_SINGULAR, 1 / s, torch.zeros_like(s))
    coefficients = (v.T @ (inverse[:, None] * (u.T @ rest.T))).T.contiguous()
    left = rest - _fitted(basis, coefficients)
    pieces = [first.view(torch.uint8), coefficients.view(torch.uint8)]
    start = 0
    for bins in setting.bins:
        codes, scale = _quantised(left[:, start : start + bins.number], bins.bits)
        start += bins.number
        whole = torch.from_numpy(_packed(codes.numpy(), bins.bits))
        pieces += [scale.view(torch.uint8), whole]
    bits = (vocabulary - 1).bit_length()
    return torch.cat(pieces, 1).numpy(), _packed(ids.numpy(), bits)


def decode(data: Bytes, setting: Setting) -> Tensor:
    """Log-probabilities [N, k] float32 of `encode`'s bytes."""
    rows = torch.from_numpy(np.ascontiguousarray(data))
    first, rows = _cut(rows, 2 * setting.exact)
    coefficients, rows = _cut(rows, 4 * len(setting.powers))
    fitted = _fitted(_basis(setting), coefficients.view(torch.float32))
    start = 0
    for bins in setting.bins:
        scale, rows = _cut(rows, 2)
        packed, rows = _cut(rows, -(-bins.bits * bins.number // 8))
        codes = _unpacked(packed.numpy(), bins.bits, bins.number) - 2 ** (bins.bits - 1)
        off = torch.from_numpy(codes).float() * scale.view(torch.float16)
        fitted[:, start : start + bins.number] += off.bfloat16()  # as its exact values are
        start += bins.number
    return torch.cat([first.view(torch.bfloat16).float(), fitted], 1)


def parquet_bytes(columns: Sequence[Bytes]) -> int:
    """Bytes of the Parquet file of its capture: a list of byte vectors for each sequence.

    Without the column of token ids, as bytes of ours are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: list[Any] = []
    for column in columns:
        ends = pa.array(np.arange(len(column) + 1, dtype=np.int32) * column.shape[1])
        rows = pa.ListArray.from_arrays(ends, pa.array(column.reshape(-1)))
        cuts = np.append(np.arange(0, len(column), SEQUENCE, dtype=np.int32), len(column))
        arrays.append(pa.ListArray.from_arrays(pa.array(cuts.astype(np.int32)), rows))
    names = ["compressed_logprobs", "bytepacked_indices"]
    file = io.BytesIO()
    pq.write_table(pa.table(arrays, names=names), file)
    return file.tell()


def _basis(setting: Setting) -> Tensor:
    rank = torch.arange(setting.k - setting.exact, dtype=torch.float32)
    return torch.stack([rank**power for power in setting.powers], 1)


def _fitted(basis: Tensor, coefficients: Tensor) -> Tensor:
    return torch.stack([(basis * row).sum(1) for row in coefficients])


def _quantised(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes from 0 and the float16 scale [N, 1] of a bin."""
    half = 2 ** (bits - 1)
    largest = values.abs().amax(1, keepdim=True)
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / half).half()
    codes = (values / scale.float()).round().clamp(-half, half - 1) + half
    return codes.long(), scale


def _packed(values: npt.NDArray[Any], bits: int) -> Bytes:
    """Rows of numbers below 2**bits, bit after bit, to whole bytes."""
    spread = values.astype(np.int64)[..., None] >> np.arange(bits) & 1
    return np.packbits(spread.astype(np.uint8).reshape(len(values), -1), axis=1, bitorder="little")


def _unpacked(data: Bytes, bits: int, number: int) -> npt.NDArray[np.int64]:
    flags = np.unpackbits(data, axis=1, count=bits * number, bitorder="little")
    places = flags.reshape(len(data), number, bits).astype(np.int64)
    numbers: npt.NDArray[np.int64] = (places << np.arange(bits)).sum(-1)
    return numbers


def _cut(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return rows[:, :size].contiguous(), rows[:, size:]
