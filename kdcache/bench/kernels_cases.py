"""The table of what is measured: a new variant is one entry of `CASES`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import kdcache_kernels as kernels
from kdcache.bench import rivals as r
from kdcache.bench import rivals_lean as lean
from kdcache.bench.kernels_case import Case, Rival, needs_liger, plain
from kdcache.bench.kernels_cases_documents import PAIR_DISTANCES
from kdcache.bench.kernels_cases_head import both_heads, linear
from kdcache.bench.kernels_cases_layers import LAYER_COSTS
from kdcache.bench.kernels_cases_pairs import PAIRS
from kdcache.bench.kernels_inputs import (
    Size,
    Tensors,
    draw_hidden,
    draw_soft,
    draw_states,
    stacked,
)

GROUP = 128  # columns of a hidden state that share a scale
LAYERS = 6  # hidden states compared in one call
HARD = 0.5  # weight of the hard labels, where there are any


def _topk_kl(x: Tensors, *, hard_weight: float = 0.0, **options: Any) -> Tensor:
    loss: Tensor = kernels.topk_kl(
        x["logits"],
        x["ids"],
        x["logprobs"],
        tail_logmass=x["tail_logmass"],
        tail_stat=x["tail_stat"],
        labels=x["labels"] if hard_weight else None,
        hard_weight=hard_weight,
        **options,
    )
    return loss


def _soft(
    variant: str,
    *,
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    inplace: bool = False,
    divergence: str = "forward",
) -> Case:
    ours: dict[str, Any] = {"temperature": temperature, "hard_weight": hard_weight}
    others = {"reverse": r.bucket_reverse, "js": r.bucket_js}
    oracle = others.get(divergence) or partial(r.bucket, **ours)
    forms = {**ours, "between": lean.BETWEEN[divergence]}
    eager, by_hand = (partial(form, **forms) for form in (lean.bucket, lean.bucket_by_hand))
    if inplace:
        ours["inplace"] = True
    return Case(
        op="topk_kl",
        variant=variant,
        ours=partial(_topk_kl, **ours, divergence=divergence),
        oracle=oracle,
        draw=partial(draw_soft, temperature=temperature),
        leaves=("logits",),
        outputs=("loss", "logits"),
        sizes=("rows", "vocab", "k"),
        bytes=lambda size, item: size.rows * (2 * size.vocab * item + 8 * size.k),
        rivals=(*plain(eager, by_hand), *_soft_rivals(temperature, hard_weight, divergence)),
        own=inplace,
        dtypes=(torch.float32, torch.bfloat16, *(() if inplace else (torch.float16,))),
    )


def _soft_rivals(temperature: float, hard_weight: float, divergence: str) -> list[Rival]:
    liger: dict[str, Any] = {"missing": needs_liger, "dense": True}
    if divergence != "forward":
        jsd = partial(r.liger_jsd, beta=r.BETA[divergence])
        dense = {"reverse": r.dense_reverse, "js": r.dense_js}[divergence]
        return [Rival(name="Liger jsd", formula=jsd, oracle=dense, **liger)]
    whole = partial(r.axolotl, temperature=temperature, hard_weight=hard_weight)
    tail = partial(r.trl, temperature=temperature, hard_weight=hard_weight)
    found = [
        Rival(name="TRL", formula=tail),
        Rival(name="axolotl", formula=whole, oracle=whole),
    ]
    if not hard_weight:
        kl_div = partial(r.liger_kl_div, temperature=temperature)
        dense = partial(r.dense_kl, temperature=temperature)
        found.append(Rival(name="Liger kl_div", formula=kl_div, oracle=dense, **liger))
    if not hard_weight and temperature == 1:
        jsd = partial(r.liger_jsd, beta=r.BETA["forward"])
        found.append(Rival(name="Liger jsd", formula=jsd, oracle=r.dense_kl, **liger))
    return found


def _hidden_mse(x: Tensors, **options: Any) -> Tensor:
    return kernels.hidden_mse(x["student"], x["codes"], x["scale"], **options)


def _hidden(
    variant: str, *, normalize: str = "none", grouped: bool = False, layers: int = 0
) -> Case:
    def draw(size: Size, dtype: torch.dtype, device: torch.device, dense: bool) -> Tensors:
        groups = max(1, size.hidden // GROUP) if grouped else 0
        x = draw_hidden(size, dtype, device, groups=groups)
        return stacked(x, layers) if layers else x

    oracle = partial(r.hidden_mse, normalize=normalize)
    return Case(
        op="hidden_mse",
        variant=variant,
        ours=partial(_hidden_mse, normalize=normalize),
        oracle=oracle,
        draw=draw,
        leaves=("student",),
        outputs=("loss", "student"),
        sizes=("rows", "hidden"),
        bytes=lambda size, item: (layers or 1) * size.rows * size.hidden * (2 * item + 1),
        rivals=plain(oracle, lean.hidden_mse_by_hand if normalize == "none" else None),
    )


def _logits_alone(size: Size, dtype: torch.dtype, device: torch.device, dense: bool) -> Tensors:
    x = draw_soft(size, dtype, device, False, temperature=1.0)
    return {"logits": x["logits"], "ids": x["ids"]}  # of the ids only their number is used


def _encode(x: Tensors) -> tuple[Tensor, ...]:
    return kernels.topk_encode(x["logits"], x["ids"].shape[1])


def _encode_plainly(x: Tensors) -> tuple[Tensor, ...]:
    return r.topk_and_tail(x, k=x["ids"].shape[1])


def _encode_leanly(x: Tensors) -> tuple[Tensor, ...]:
    return lean.topk_and_tail(x, k=x["ids"].shape[1])


def _encoded(x: Tensors, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Any of equal logits may be kept: look at the logits that the ids name, not at the ids."""
    return (x["logits"].gather(1, out[0].long()), *out[1:])


def _quantize(x: Tensors) -> tuple[Tensor, ...]:
    return kernels.quantize_rows(x["states"])


def _decoded(x: Tensors, out: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    codes, scale = out
    return codes.double() * scale.double()[:, None], scale


CASES: tuple[Case, ...] = (
    _soft("T=1"),
    _soft("T=2", temperature=2.0),
    _soft("labels", hard_weight=HARD),
    _soft("inplace", inplace=True),
    _soft("reverse", divergence="reverse"),
    _soft("js", divergence="js"),
    linear("T=1", 1.0),
    linear("T=2", 2.0),
    both_heads("T=1"),
    both_heads("T=2", temperature=2.0),
    both_heads("js", divergence="js"),
    _hidden("row scale"),
    _hidden(f"scale per {GROUP}", grouped=True),
    _hidden(f"{LAYERS} layers", layers=LAYERS),
    _hidden("l2", normalize="l2"),
    _hidden("layernorm", normalize="layernorm"),
    LAYER_COSTS,
    PAIR_DISTANCES,
    *PAIRS,
    Case(
        op="topk_encode",
        variant="",
        ours=_encode,
        oracle=_encode_plainly,
        draw=_logits_alone,
        leaves=(),
        outputs=("top logits", "logprobs", "tail_logmass", "tail_stat"),
        sizes=("rows", "vocab", "k"),
        bytes=lambda size, item: size.rows * (size.vocab * item + 12 * size.k + 8),
        view=_encoded,
        rivals=plain(_encode_leanly),
    ),
    Case(
        op="quantize_rows",
        variant="",
        ours=_quantize,
        oracle=r.round_rows,
        draw=lambda size, dtype, device, dense: draw_states(size, dtype, device),
        leaves=(),
        outputs=("decoded", "scale"),
        sizes=("rows", "hidden"),
        bytes=lambda size, item: size.rows * size.hidden * (item + 1),
        view=_decoded,
        rivals=plain(lean.round_rows),
    ),
)

OPS = tuple(dict.fromkeys(case.op for case in CASES))
RIVALS = tuple(dict.fromkeys(rival.name for case in CASES for rival in case.rivals))
