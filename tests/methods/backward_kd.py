"""Backward-pass distillation (Jafari et al. 2023): points, and what is learnt there."""

import torch

from kdcache.losses import LogitMSE, Pair
from kdcache.models.ascent import Says, ascended
from tests.methods import Found, Given, dense, one_each, value


def classifier(given: Given, side: str, link: torch.Tensor | None = None) -> Says:
    """The classifier of the files, which reads the mean of all tokens into each."""
    first, second, last = (given[f"{side}_w{place}"] for place in (1, 2, 3))
    mask = torch.arange(given["emb"].shape[1])[None] < given.lengths[:, None]
    share = (mask.to(given.dtype) / given.lengths[:, None])[..., None]

    def says(states: torch.Tensor) -> torch.Tensor:
        read = states if link is None else states @ link.T
        inner = torch.tanh(read @ first.T)
        outer = torch.tanh((inner * (1 + (share * inner).sum(1, keepdim=True))) @ second.T)
        return (share * outer).sum(1) @ last.T

    return says


def at_points(given: Given) -> Found:
    """Squared error at the texts and at points a step up its gradient; the teacher says both."""
    student, teacher = classifier(given, "s"), classifier(given, "t", given["link"])
    emb, eta = given["emb"], given.number("eta")
    points = ascended(emb, student, teacher, eta=eta)
    both = [
        value(
            LogitMSE(),
            [Pair(student(states), dense(teacher(states)))],
            one_each(len(emb)),
            space="document",
        )
        for states in (emb, points)
    ]
    parts = {
        "out_input_gradient": (points - emb) / eta,
        "out_perturbed": points,
        "out_t_logits": teacher(emb),
        "out_t_logits_perturbed": teacher(points),
    }
    return Found(loss=torch.stack(both).sum(), parts=parts)


CASES = {"backward_kd": at_points}
