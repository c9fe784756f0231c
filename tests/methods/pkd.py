"""Patient distillation (Sun et al. 2019), and what else is made of the same losses."""

import torch

from kdcache.losses import Hard, HiddenMSE, Pair, SoftKL
from tests.methods import Found, Given, dense, layer_rows, one_each, value


def patient(given: Given) -> Found:
    """Soft and hard labels, [CLS] of some layers."""
    layers = [[int(layer) for layer in given[f"{side}_layers"]] for side in ("student", "teacher")]
    ours, theirs = given["s_hidden"][layers[0], :, 0], given["t_hidden"][layers[1], :, 0]
    return of_three(given, ours, theirs, "element")


def pea(given: Given) -> Found:
    """The same of Pea-KD (Cho and Kang 2022), whose divergence is a mean over documents alone."""
    return of_three(given, given["s_cls"].transpose(0, 1), given["t_cls"].transpose(0, 1), "row")


def of_three(given: Given, ours: torch.Tensor, theirs: torch.Tensor, reduction: str) -> Found:
    """Vectors are [layers, B, H], those that are held against each other."""
    alpha, beta, sizes = given.number("alpha"), given.number("beta"), one_each(ours.shape[1])
    soft, hard = outputs(given, reduction)
    pairs = [Pair(of, layer_rows(to)) for of, to in zip(ours, theirs, strict=True)]
    patience = value(HiddenMSE(positions="cls", normalize="l2"), pairs, sizes, space="document")
    return Found(
        loss=alpha * soft + (1 - alpha) * hard + beta * patience,
        parts={"out_kd": soft, "out_hard": hard, "out_patience": patience},
    )


def outputs(given: Given, reduction: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence from the teacher's outputs, and cross-entropy on the labels."""
    logits, labels = given["s_logits"], given["labels"]
    loss = SoftKL(temperature=given.number("temperature"), reduction=reduction)
    sizes = one_each(len(logits))
    soft = value(loss, [Pair(logits, dense(given["t_logits"]))], sizes, space="document")
    return soft, value(Hard(), [Pair(logits, labels)], sizes, space="document", labels=labels)


def hinton(given: Given) -> Found:
    """Soft labels beside hard ones (Hinton et al. 2015)."""
    soft, hard = outputs(given, "row")
    return Found(
        loss=given.number("w_soft") * soft + given.number("w_hard") * hard,
        parts={"out_kd": soft, "out_hard": hard},
    )


CASES = {"pkd": patient, "peakd.a": pea, "peakd.b": pea, "nine.hinton": hinton}
