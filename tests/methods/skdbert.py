"""SKDBERT (Ding et al. 2023): one teacher for each step."""

import torch

from kdcache.losses import Hard, Pair, SoftKL
from kdcache.losses.teachers import drawn
from tests.methods import Found, Given, dense, one_each, value


def sampled(given: Given) -> Found:
    """The sum over the steps whose teachers some uniform numbers draw."""
    student, labels, alpha = given["s_logits"], given["labels"], given.number("alpha")
    sizes = one_each(len(labels))
    places = drawn(tuple(given.arrays["probability"]), given.arrays["uniform"])
    soft = SoftKL(temperature=given.number("temperature"))
    divergence = torch.stack(
        [
            value(soft, [Pair(student, dense(given["t_logits"][place]))], sizes, space="document")
            for place in places
        ]
    )
    hard = value(Hard(), [Pair(student, labels)], sizes, space="document", labels=labels)
    return Found(
        loss=(alpha * divergence + (1 - alpha) * hard).sum(),
        parts={
            "out_teacher": torch.from_numpy(places),
            "out_kd": divergence,
            "out_hard": hard,
        },
    )


CASES = {"skdbert": sampled}
