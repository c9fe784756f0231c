"""What the losses of soft and hard labels take, checked and put together."""

import math

import torch
from torch import Tensor

from kdcache_kernels._checks import (
    FLOATS,
    IDS,
    constant,
    require_device,
    require_dtype,
    require_matrix,
    require_shape,
)
from kdcache_kernels.topk_kl.spec import DIVERGENCES, TAILS, Spec, Teacher


def checked_teacher(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    tail_logmass: Tensor | None,
    tail_stat: Tensor | None,
    labels: Tensor | None,
    spec: Spec,
) -> Teacher:
    """The sparse teacher of `logits`, as constants.

    Raises ValueError or TypeError unless it, the labels and the numbers of the loss go together.
    """
    require_matrix("logits", logits)
    require_dtype("logits", logits, FLOATS)
    _check_support(logits, ids, logprobs)
    check_labels(labels, logits, "logits")
    check_numbers(spec.temperature, spec.divergence, spec.hard_weight, labels)
    _check_tail(spec, whole=ids.shape[1] == logits.shape[1])
    rest = _rest(logits, ids, tail_logmass, tail_stat, spec)
    return Teacher(ids, constant(logprobs), rest)


def check_numbers(
    temperature: float, divergence: str, hard_weight: float, labels: Tensor | None
) -> None:
    """Raise ValueError unless there is such a loss."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite; got {temperature}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    if hard_weight != 0 and labels is None:
        raise ValueError(f"hard_weight={hard_weight} needs labels; got none: pass labels [N]")


def check_labels(labels: Tensor | None, like: Tensor, owner: str) -> None:
    """Raise ValueError or TypeError unless `labels` are those of the rows of `like`."""
    if labels is not None:
        require_shape("labels", labels, (like.shape[0],))
        require_dtype("labels", labels, (torch.int64,))
        require_device("labels", labels, like, owner)


def _check_support(logits: Tensor, ids: Tensor, logprobs: Tensor) -> None:
    require_matrix("ids", ids)
    require_dtype("ids", ids, IDS)
    n, v = logits.shape
    if ids.shape[0] != n or not 1 <= ids.shape[1] <= v:
        raise ValueError(
            f"ids must be [N, K] with N = {n} rows like logits and 1 <= K <= V = {v}; "
            f"got {tuple(ids.shape)}"
        )
    require_shape("logprobs", logprobs, tuple(ids.shape))
    require_dtype("logprobs", logprobs, FLOATS)
    require_device("ids", ids, logits, "logits")
    require_device("logprobs", logprobs, logits, "logits")


def _check_tail(spec: Spec, whole: bool) -> None:
    if spec.tail not in TAILS:
        raise ValueError(f"tail must be one of {', '.join(TAILS)}; got {spec.tail!r}")
    if spec.divergence != "forward" and spec.tail != "bucket" and not whole:
        raise ValueError(
            f"divergence={spec.divergence!r} needs the student's mass outside the support: "
            f"use tail='bucket'; got tail={spec.tail!r}"
        )


def _rest(
    logits: Tensor, ids: Tensor, logmass: Tensor | None, stat: Tensor | None, spec: Spec
) -> Tensor | None:
    """Choose the statistic that this mode needs at this T; None where there is no tail."""
    for name, x in (("tail_logmass", logmass), ("tail_stat", stat)):
        if x is not None:
            require_shape(name, x, (logits.shape[0],))
            require_dtype(name, x, FLOATS)
            require_device(name, x, logits, "logits")
    tail, temperature = spec.tail, spec.temperature
    if tail == "renormalize" or (tail == "truncate" and temperature == 1):
        return None
    name, x = ("tail_logmass", logmass) if temperature == 1 else ("tail_stat", stat)
    if x is None and ids.shape[1] != logits.shape[1]:
        what = "sum of p" if temperature == 1 else f"sum of p^(1/{temperature:g})"
        raise ValueError(
            f"tail={tail!r} at temperature {temperature:g} needs {name} [N], the log of the {what} "
            "outside the support; got None: pass it, or choose tail='renormalize'"
        )
    return None if x is None else constant(x)
