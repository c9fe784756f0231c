"""Relational distillation (Park et al. 2019)."""

from kdcache.losses import RKD, Pair
from kdcache.losses.rkd import relation_losses
from tests.methods import Found, Given, layer_rows, one_each, value


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
