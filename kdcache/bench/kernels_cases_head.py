"""The cases of the losses that are fused with a language model's head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

import kdcache_kernels as kernels
from kdcache.bench import rivals as r
from kdcache.bench import rivals_lean as lean
from kdcache.bench.kernels_case import Case, Rival, needs_liger, needs_torch_2_13, plain
from kdcache.bench.kernels_inputs import Size, Tensors, draw_linear


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


def _linear_bytes(size: Size, item: int) -> int:
    return 2 * item * size.hidden * (size.rows + size.vocab)


def _products(count: int) -> Callable[[Size], int]:
    return lambda size: count * 2 * size.rows * size.vocab * size.hidden


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
        bytes=_linear_bytes,
        flops=_products(3),
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
        bytes=_linear_bytes,
        flops=_products(4),
        rivals=(
            *(plain(oracle) if js else plain(eager, by_hand)),
            *([] if js or temperature != 1 else [torchs]),
            *([liger] if temperature == 1 else []),
        ),
    )
