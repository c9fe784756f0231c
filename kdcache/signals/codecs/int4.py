"""Four bits a value: a table of 16 levels, one signed 8-bit scale for each group of values.

The levels are the quantiles of a normal distribution (NF4 of Dettmers et al. 2023,
arXiv:2305.14314) as whole numbers of 127ths, so that a decoded row is int8 codes times scales, as
`hidden_mse` takes them. NF4 has one level more above zero than below: a negative scale turns it
around. Of several scales near the largest value the one with the least squared error is kept.
"""

from __future__ import annotations

import torch

from kdcache.manifest import Json

LEVELS = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
STEPS = 6  # scales per octave
LEAST, MOST = -50, 77  # of a group's largest value, in steps: from 0.003 up to 7,300
SEARCH = range(-1, 2)  # around the scale that maps the largest value to the last level
CODE_ATTRIBUTES: Json = {"bits": 4, "first": "low", "levels": [v / 127 for v in LEVELS]}
SCALE_ATTRIBUTES: Json = {
    "scale": "2 ** (((code & 127) + least) / steps), negative from code 128 on",
    "least": LEAST,
    "steps": STEPS,
}
BLOCK_VALUES = 1 << 22  # of a block of rows: about ten buffers of it live at once


def pack(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [N, H] to codes, uint8 [N, H / 2], and scales, uint8 [N, H / group].

    The first of two values lies in the low half of its byte. `group` is even and divides H.

    Raises ValueError, naming the row, where a value is not finite or too large.
    """
    step = max(1, BLOCK_VALUES // x.shape[1])
    blocks = [_pack(block.float(), group) for block in x.split(step)]
    codes, scales = (torch.cat(pieces) for pieces in zip(*blocks, strict=True))
    bad = (scales == NONE).any(1).nonzero()
    if len(bad):
        raise ValueError(
            f"magnitudes must be finite and at most {2 ** (MOST / STEPS):.0f}; "
            f"row {int(bad[0])} is not"
        )
    nibbles = codes.unflatten(1, (-1, 2))
    return nibbles[..., 0] | (nibbles[..., 1] << 4), scales.to(torch.uint8)


NONE = 256  # marks a group that no scale fits


def _pack(x: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.unflatten(1, (-1, group))
    top = values.abs().amax(-1, keepdim=True)
    nearest = (top.clamp(min=1e-30).log2() * STEPS).round()
    least = torch.full_like(top, torch.inf)
    codes, scales = torch.zeros_like(values, dtype=torch.uint8), torch.zeros_like(top)
    table = torch.tensor(LEVELS, dtype=torch.float32, device=x.device)
    edges = (table[1:] + table[:-1]) / 2
    for more in SEARCH:
        step = (nearest + more).clamp(LEAST, MOST)
        for side in (1, -1):
            scale = side * _size(step)
            found = torch.bucketize(values / scale, edges)
            error = (table[found] * scale - values).square().sum(-1, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            codes = torch.where(better, found.to(torch.uint8), codes)
            scales = torch.where(better, step - LEAST + (0 if side > 0 else 128), scales)
    misfit = ~(nearest <= MOST)  # NaN too
    return codes.flatten(1), torch.where(misfit, float(NONE), scales).squeeze(-1)


def _size(step: torch.Tensor) -> torch.Tensor:
    # A power in float32 has a last bit that depends on where in the tensor it stands.
    power = torch.exp2((step.float() / STEPS).double())
    return power.float() / 127


def unpack(codes: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What was packed as int8 codes [N, H] and float32 scales [N, groups]: values are products."""
    nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(1)
    table = torch.tensor(LEVELS, dtype=torch.int8, device=codes.device)
    size = _size((scales & 127).float() + LEAST)
    return table[nibbles.long()], torch.where(scales >= 128, -size, size)
