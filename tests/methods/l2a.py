"""L2A (Feng et al. 2021): documents that a policy keeps, and what moves the policy."""

import torch

from kdcache.losses import Pair, SoftKL
from kdcache.losses.selector import policy_logits, policy_loss
from tests.methods import Found, Given, dense, one_each, value


def selected(given: Given) -> Found:
    """The mean over the documents that are kept, and REINFORCE on the decisions."""
    policy = torch.cat([given["w"], given["b"].reshape(1)])
    logits = policy_logits(given["features"], policy)
    kept = (given["uniform"] < logits.sigmoid()).to(given.dtype)
    pair = Pair(given["s_logits"], dense(given["t_logits"]))
    student = value(SoftKL(), [pair], one_each(len(kept)), space="document", weights=kept.double())
    advantage = given.number("reward") - given.number("baseline")
    part = policy_loss(logits, kept, advantage)
    parts = {
        "out_policy": logits.sigmoid(),
        "out_action": kept,
        "out_student_part": student,
        "out_policy_part": part,
    }
    return Found(loss=student + part, parts=parts)


CASES = {"l2a": selected}
