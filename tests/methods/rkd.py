"""Relational distillation (Park et al. 2019)."""

import torch

from kdcache.losses import RKD, Pair
from kdcache_kernels import pair_distances
from tests.methods import Found, Given, layer_rows, one_each, value


def relation_losses(
    student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """That of distances, and that of angles."""
    distance = pair_distances(student, teacher, weight=weight, angle=0.0)
    return distance, pair_distances(student, teacher, weight=weight, distance=0.0)


def relations(given: Given) -> Found:
    """Distances and angles between documents."""
    student, teacher = given["s_feature"], given["t_feature"]
    loss = RKD(distance=given.number("w_d"), angle=given.number("w_a"))
    pair = Pair(student, layer_rows(teacher))
    distance, angle = relation_losses(student, teacher)
    return Found(
        loss=value(loss, [pair], one_each(len(student)), space="document"),
        parts={"out_distance": distance, "out_angle": angle},
    )


CASES = {"nine.rkd": relations}
