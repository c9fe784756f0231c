"""Cases of the ops between the tokens of each document: relations by KL, attention by squares."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import kdcache_kernels as kernels
from kdcache.bench import rivals_pairs as r
from kdcache.bench import rivals_pairs_lean as lean
from kdcache.bench.kernels_case import Case, plain
from kdcache.bench.kernels_inputs import Formula, Size, Tensors
from kdcache.bench.rivals_pairs import KINDS, heads_of

LENGTH = 128  # tokens of a document
SHORT = 32  # tokens of a short one; the shortest of documents of unlike lengths


def documents_of(size: Size, length: int = LENGTH) -> tuple[int, int]:
    """Documents, and the tokens of the longest: as many documents whatever their length."""
    return max(2, size.rows // LENGTH), min(length, size.rows + 5)


def lengths_of(size: Size, length: int, ragged: bool) -> list[int]:
    """Tokens of each document: all as many, or from a quarter of that on."""
    count, longest = documents_of(size, length)
    if not ragged:
        return [longest] * count
    shortest = -(-longest * SHORT // LENGTH)
    return [shortest + (longest - shortest) * i // (count - 1) for i in range(count)]


def _draw(
    size: Size,
    dtype: torch.dtype,
    device: torch.device,
    dense: bool,
    *,
    kinds: tuple[str, ...],
    length: int,
    ragged: bool,
) -> Tensors:
    """A student's vectors in `dtype` near a teacher's, [B, L, H], pads behind; lengths [B]."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (*documents_of(size, length), size.hidden)
    x: Tensors = {}
    for kind in kinds:
        teacher = 1.5 * torch.randn(shape, generator=generator, device=device)
        noise = torch.randn(shape, generator=generator, device=device)
        x |= {kind: (teacher + noise).to(dtype), f"teacher_{kind}": teacher}
    return {**x, "lengths": torch.tensor(lengths_of(size, length, ragged))}


def _packed(x: Tensors) -> Tensors:
    """The vectors of all tokens, one document after the other, without the pads."""
    sides = {name: v for name, v in x.items() if v.dim() == 3}
    rows = _real(x, next(iter(sides.values())))
    return {**x, **{name: v.flatten(0, 1)[rows] for name, v in sides.items()}}


def _real(x: Tensors, padded: Tensor) -> Tensor:
    """Which of all places of documents [B, L, ...] have a token, [tokens]."""
    places = torch.arange(padded.shape[1]) < x["lengths"][:, None]
    return places.flatten().nonzero().squeeze(1).to(padded.device)


def _unpacked(x: Tensors, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The loss and gradients of packed vectors as of padded ones; others as they are."""
    padded = next(v for v in x.values() if v.dim() == 3)
    if out[1].dim() == 3:
        return out
    shape, rows = (padded.shape[0] * padded.shape[1], padded.shape[2]), _real(x, padded)
    whole = (g.new_zeros(shape).index_copy(0, rows, g).view(padded.shape) for g in out[1:])
    return out[0], *whole


def _tokens(x: Tensors) -> Tensors:
    """The vectors of all tokens, where there are no pads or they are packed."""
    return {name: v.flatten(0, 1) if v.dim() == 3 else v for name, v in x.items()}


def _relation_kl(x: Tensors, *, heads: int) -> Tensor:
    own = _tokens(x)
    losses = [
        kernels.relation_kl(
            own[kind], own[f"teacher_{kind}"], x["lengths"], heads=heads_of(own[kind], heads)
        )
        for kind in KINDS
    ]
    return torch.stack(losses).sum()


def _attention_mse(x: Tensors, *, heads: int, of: str) -> Tensor:
    own = _tokens(x)
    return kernels.attention_mse(
        own["query"],
        own["teacher_query"],
        x["lengths"],
        student_keys=own["key"],
        teacher_keys=own["teacher_key"],
        heads=heads_of(own["query"], heads),
        of=of,
    )


def _case(
    op: str,
    variant: str,
    ours: Formula,
    formula: Formula,
    plainly: Formula,
    by_hand: Formula,
    *,
    kinds: tuple[str, ...],
    products: int,
    length: int = LENGTH,
    ragged: bool = False,
) -> Case:
    """`products` are those of tokens with tokens that value and gradients take."""

    def flops(size: Size) -> int:
        return 2 * products * size.hidden * sum(n * n for n in lengths_of(size, length, ragged))

    def moved(size: Size, item: int) -> int:
        tokens = sum(lengths_of(size, length, ragged))
        return len(kinds) * tokens * size.hidden * (2 * item + 4)

    return Case(
        op=op,
        variant=variant,
        ours=ours,
        oracle=formula,
        draw=partial(_draw, kinds=kinds, length=length, ragged=ragged),
        leaves=kinds,
        outputs=("loss", *kinds),
        sizes=("rows", "hidden"),
        bytes=moved,
        flops=flops,
        view=_unpacked if ragged else lambda x, out: out,
        laid=_packed if ragged else lambda x: x,
        rivals=plain(plainly, by_hand),
    )


def relations(variant: str, heads: int, *, length: int = LENGTH, ragged: bool = False) -> Case:
    """Three relations, of queries, keys and values each with themselves."""
    return _case(
        "relation_kl",
        variant,
        partial(_relation_kl, heads=heads),
        partial(r.relation_kl, heads=heads),
        partial(r.relation_kl, heads=heads, padded=ragged),
        partial(lean.relation_kl, heads=heads, padded=ragged),
        kinds=KINDS,
        products=3 * 4,
        length=length,
        ragged=ragged,
    )


def attention(variant: str, *, of: str = "scores", length: int = LENGTH) -> Case:
    """Attention of one layer, of 12 heads."""
    return _case(
        "attention_mse",
        variant,
        partial(_attention_mse, heads=12, of=of),
        partial(r.attention_mse, heads=12, of=of),
        partial(r.attention_mse, heads=12, of=of),
        partial(lean.attention_mse, heads=12, of=of),
        kinds=KINDS[:2],
        products=4,
        length=length,
    )


PAIRS = (
    relations("12 heads", 12),
    relations("48 heads", 48),
    relations("12 heads, short", 12, length=SHORT),
    relations("48 heads, short", 48, length=SHORT),
    relations("12 heads, ragged", 12, ragged=True),
    relations("48 heads, ragged", 48, ragged=True),
    attention("scores"),
    attention("scores, short", length=SHORT),
    attention("probabilities", of="probabilities"),
)
