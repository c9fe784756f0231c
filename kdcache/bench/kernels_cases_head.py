"""The cases of the losses that are fused with a language model's head."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kdcache_kernels as kernels
from kdcache.bench import rivals as r
from kdcache.bench import rivals_lean as lean
from kdcache.bench.head_parts import FP32, HeadShape, head_flops, head_parts, least_bytes
from kdcache.bench.kernels_case import Case, Rival, needs_liger, needs_torch_2_13, plain
from kdcache.bench.kernels_inputs import Size, Tensors, draw_linear
from kdcache.bench.report import Json
from kdcache_kernels._head import product_dtype
from kdcache_kernels._linear import chunk_rows


def _linear_topk_kl(x: Tensors, *, temperature: float) -> Tensor:
    return kernels.linear_topk_kl(
        x["hidden"],
        x["head"],
        x["bias"],
        x["ids"],
        x["logprobs"],
        tail_logmass=x["tail_logmass"],
        tail_stat=x["tail_stat"],
        temperature=temperature,
    )


def _linear_kl(x: Tensors, **options: Any) -> Tensor:
    sides = (x["hidden"], x["head"], x["teacher_hidden"], x["teacher_head"])
    loss: Tensor = kernels.linear_kl(*sides, **options)
    return loss


def _shape(size: Size, item: int, chunk: int, *, both: bool) -> HeadShape:
    """Sizes of a call: with `both` of `linear_kl`, which has no bias here."""
    return HeadShape(
        rows=size.rows,
        classes=size.vocab,
        width=size.hidden,
        item=item,
        chunk=chunk,
        teacher_width=size.hidden if both else 0,
        k=0 if both else size.k,
        bias=not both,
    )


def _parts(size: Size, dtype: torch.dtype, device: torch.device, *, both: bool) -> Json:
    """The parts of a call as it is cut into chunks on a device with memory to spare."""
    made = product_dtype(dtype, device.type)
    chunk = chunk_rows(size.rows, size.vocab, made, device, 0)
    parts = head_parts(_shape(size, made.itemsize, chunk, both=both))
    return {name: asdict(part) for name, part in parts.items()}


def _work(*, both: bool) -> dict[str, Any]:
    """What a case says of bytes and operations."""

    def whole(size: Size, item: int = FP32) -> HeadShape:
        return _shape(size, item, size.rows, both=both)

    return {
        "bytes": lambda size, item: least_bytes(whole(size, item)),
        "flops": lambda size: head_flops(whole(size)),
        "parts": partial(_parts, both=both),
    }


def linear(variant: str, temperature: float) -> Case:
    """The KL to stored soft labels of the logits that a head makes of hidden states."""
    oracle = partial(r.linear_bucket, temperature=temperature)
    eager = partial(lean.linear_bucket, temperature=temperature)
    by_hand = partial(lean.linear_bucket_by_hand, temperature=temperature)
    chunked = Rival(name="axolotl", formula=r.axolotl_chunked, oracle=r.linear_axolotl)
    dense = Rival(
        name="F.linear_cross_entropy",
        formula=r.torch_linear_cross_entropy,
        oracle=r.linear_cross_entropy,
        missing=needs_torch_2_13,
        dense=True,
    )
    return Case(
        op="linear_topk_kl",
        variant=variant,
        ours=partial(_linear_topk_kl, temperature=temperature),
        oracle=oracle,
        draw=partial(draw_linear, temperature=temperature),
        leaves=("hidden", "head", "bias"),
        outputs=("loss", "hidden", "head", "bias"),
        sizes=("rows", "vocab", "k", "hidden"),
        **_work(both=False),
        rivals=(*plain(eager, by_hand), *((chunked, dense) if temperature == 1 else ())),
    )


def both_heads(variant: str, *, temperature: float = 1.0, divergence: str = "forward") -> Case:
    """The divergence of the logits that two heads make of hidden states."""
    js = divergence == "js"
    oracle = r.linear_dense_js if js else partial(r.linear_dense_kl, temperature=temperature)
    eager = partial(lean.linear_kl, temperature=temperature)
    by_hand = partial(lean.linear_kl_by_hand, temperature=temperature)
    torchs = Rival(
        name="F.linear_cross_entropy",
        formula=lean.linear_kl_by_torch,
        missing=needs_torch_2_13,
    )
    liger = Rival(
        name="Liger fused_linear_jsd",
        formula=partial(r.liger_fused_linear_jsd, beta=r.BETA[divergence]),
        missing=needs_liger,
    )
    return Case(
        op="linear_kl",
        variant=variant,
        ours=partial(_linear_kl, temperature=temperature, divergence=divergence),
        oracle=oracle,
        draw=partial(draw_linear, temperature=1.0),
        leaves=("hidden", "head"),
        outputs=("loss", "hidden", "head"),
        sizes=("rows", "vocab", "hidden"),
        **_work(both=True),
        rivals=(
            *(plain(oracle) if js else plain(eager, by_hand)),
            *([] if js or temperature != 1 else [torchs]),
            *([liger] if temperature == 1 else []),
        ),
    )
