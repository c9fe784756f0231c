"""Tensors to run an op on, drawn on its own device: sizes of a GPU take minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = dict[str, Tensor]

Formula: TypeAlias = Callable[[Tensors], Tensor | tuple[Tensor, ...]]
"""From named inputs to a loss; or to (loss, gradients), flat; or to the outputs of an encoder."""

SHARED = ("head", "bias", "teacher_head")
"""Inputs that belong to all rows; every other one has a row for each."""

BLOCK = 1 << 27  # elements drawn at once
SPREAD = 2.5  # standard deviation of the teacher's logits: 64 of 30,522 classes hold about 30%


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Rows N, classes V, support K and width of the hidden states H."""

    rows: int
    vocab: int
    k: int
    hidden: int


def rows_of(x: Tensors, rows: Tensor) -> Tensors:
    """The same inputs with some rows only."""
    return {
        name: value if name in SHARED else value[rows.to(value.device)] for name, value in x.items()
    }


def draw_soft(
    size: Size, dtype: torch.dtype, device: torch.device, dense: bool, *, temperature: float
) -> Tensors:
    """Student logits near a teacher's, the teacher's top-k, its tails and labels.

    logits [N, V] in `dtype`; ids [N, K] int32 and ids64; logprobs [N, K] float32 at temperature 1,
    `tempered` [N, K] at `temperature`, tail_logmass [N], tail_stat [N] at `temperature`, in nats;
    labels [N] int64; with `dense` the teacher's log-probabilities at `temperature`, [N, V] in
    `dtype`, ready made for those who cannot do without.
    """
    generator = torch.Generator(device).manual_seed(0)
    step = max(1, BLOCK // size.vocab)
    blocks = []
    for start in range(0, size.rows, step):
        shape = (min(step, size.rows - start), size.vocab)
        logits = SPREAD * torch.randn(shape, generator=generator, device=device)
        noise = torch.randn(shape, generator=generator, device=device)
        blocks.append({"logits": noise.add_(logits).to(dtype), **_cut(logits, size.k, temperature)})
        if dense:
            blocks[-1]["dense"] = torch.log_softmax(logits / temperature, 1).to(dtype)
    return _joined(blocks)


def _joined(blocks: list[Tensors]) -> Tensors:
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def _cut(logits: Tensor, k: int, temperature: float) -> Tensors:
    """What the soft-label inputs say of a teacher with these logits."""
    logp = torch.log_softmax(logits, 1)
    logprobs, ids = logp.topk(min(k, logp.shape[1]), 1)
    rest = logp.scatter(1, ids, float("-inf"))
    stat = (rest / temperature).logsumexp(1)
    total = torch.logaddexp((logprobs / temperature).logsumexp(1), stat)
    return {
        "ids": ids.int(),
        "ids64": ids,
        "logprobs": logprobs,
        "tempered": logprobs / temperature - total[:, None],
        "tail_logmass": rest.logsumexp(1),
        "tail_stat": stat,
        "labels": ids[:, -1].clone(),
    }


def draw_linear(
    size: Size, dtype: torch.dtype, device: torch.device, dense: bool, *, temperature: float
) -> Tensors:
    """Hidden states, head and bias of a student near its teacher, and what the teacher says.

    hidden [N, H], head [V, H], bias [V], teacher_hidden [N, H], teacher_head [V, H], all in
    `dtype`; the teacher's soft labels as `draw_soft` names them, from its own head; with `dense`
    its `probabilities` at temperature 1, [N, V] in `dtype`.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(shape, generator=generator, device=device)

    hidden = draw(size.rows, size.hidden, scale=1.0)
    head = draw(size.vocab, size.hidden, scale=SPREAD / size.hidden**0.5)
    x = {
        "hidden": hidden + draw(size.rows, size.hidden, scale=0.3),
        "head": head + draw(size.vocab, size.hidden, scale=0.3 / size.hidden**0.5),
        "bias": draw(size.vocab, scale=0.1),
        "teacher_hidden": hidden,
        "teacher_head": head,
    }
    blocks = []
    for rows in hidden.split(max(1, BLOCK // size.vocab)):
        logits = rows @ head.t()
        blocks.append(_cut(logits, size.k, temperature))
        if dense:
            blocks[-1]["probabilities"] = torch.softmax(logits, 1).to(dtype)
    return {**{name: value.to(dtype) for name, value in x.items()}, **_joined(blocks)}


def draw_hidden(
    size: Size, dtype: torch.dtype, device: torch.device, *, groups: int = 0
) -> Tensors:
    """Student hidden states [N, H] in `dtype` near a teacher's int8 codes, with their scales.

    scale is float16, [N] or with `groups` [N, groups].
    """
    generator = torch.Generator(device).manual_seed(0)
    n, h = size.rows, size.hidden
    codes = torch.randint(-127, 128, (n, h), generator=generator, device=device).to(torch.int8)
    width = groups or 1
    scale = 0.01 + 0.02 * torch.rand(n, width, generator=generator, device=device)
    scale = scale.half()
    exact = codes.float().view(n, width, -1) * scale.float()[..., None]
    noise = 0.5 * torch.randn(n, h, generator=generator, device=device)
    student = (exact.view(n, h) + noise).to(dtype)
    return {"student": student, "codes": codes, "scale": scale if groups else scale[:, 0]}


def stacked(x: Tensors, layers: int) -> Tensors:
    """The same inputs for several layers, [layers, N, ...]."""
    return {name: value.expand(layers, *value.shape).contiguous() for name, value in x.items()}


def draw_states(size: Size, dtype: torch.dtype, device: torch.device) -> Tensors:
    """Hidden states [N, H] with the few large columns that transformers have."""
    generator = torch.Generator(device).manual_seed(0)
    states = torch.randn(size.rows, size.hidden, generator=generator, device=device)
    states[:, :: max(1, size.hidden // 3)] *= 20
    return {"states": states.to(dtype)}
