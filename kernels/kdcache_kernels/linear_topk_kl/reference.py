"""linear_topk_kl in plain torch: the logits made whole. The oracle of the fused op."""

from typing import TypedDict

import torch
from torch import Tensor

from kdcache_kernels._checks import compute_dtype
from kdcache_kernels.topk_kl import reference
from kdcache_kernels.topk_kl.spec import Spec, Teacher


class Inputs(TypedDict):
    """Tensors that `linear_topk_kl` takes, as `make_inputs` draws them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    ids: Tensor
    logprobs: Tensor
    tail_logmass: Tensor
    tail_stat: Tensor
    labels: Tensor
    row_weight: Tensor


def make_inputs(
    n: int,
    v: int,
    h: int,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 2.0,
    pads: int = 0,
    seed: int = 0,
) -> Inputs:
    """Draw a head and its input, whose logits have unit variance, and a teacher's exact top-k."""
    sparse = reference.make_inputs(n, v, k, temperature=temperature, pads=pads, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    return {
        "hidden": torch.randn(n, h, generator=g).to(dtype),
        "weight": (torch.randn(v, h, generator=g) / h**0.5).to(dtype),
        "bias": (0.1 * torch.randn(v, generator=g)).to(dtype),
        "ids": sparse["ids"],
        "logprobs": sparse["logprobs"],
        "tail_logmass": sparse["tail_logmass"],
        "tail_stat": sparse["tail_stat"],
        "labels": sparse["labels"],
        "row_weight": sparse["weight"],
    }


def linear_topk_kl(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Teacher,
    row_weight: Tensor,
    labels: Tensor | None,
    spec: Spec,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss and the gradients of `hidden`, `weight` and `bias`, all of one dtype.

    In float64 for float64 inputs. Rows of `row_weight` 0 may hold NaN.
    """
    dtype = compute_dtype(hidden)
    x, w = hidden.to(dtype).masked_fill((row_weight == 0)[:, None], 0), weight.to(dtype)
    logits = x @ w.t() if bias is None else x @ w.t() + bias.to(dtype)
    g = torch.empty_like(logits)
    loss, _, _ = reference.topk_kl(
        logits, teacher, row_weight.to(dtype), labels, spec, out=g, check=True
    )
    return loss, g @ w, g.t() @ x, g.sum(0)
