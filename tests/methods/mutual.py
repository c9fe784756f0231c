"""Students that are trained together: DML (Zhang et al. 2018) and with a teacher."""

import torch

from kdcache.losses import Hard, Mutual, Pair, SoftKL
from tests.methods import Found, Given, dense, one_each, value


def together(given: Given) -> Found:
    """Labels and peers, and in some cases a teacher: students in turn, their peers constants."""
    students, labels = given["s_logits"], given["labels"]
    sizes = one_each(len(labels))
    temperature = given.number("temperature") if "temperature" in given else 1.0
    found = []
    for place, ours in enumerate(students):
        peers = [peer.detach() for i, peer in enumerate(students) if i != place]
        parts = [
            value(Hard(), [Pair(ours, labels)], sizes, space="document", labels=labels),
            value(Mutual(temperature=temperature), [Pair(ours, peers)], sizes, space="document"),
        ]
        if "t_logits" in given:
            loss = SoftKL(temperature=temperature)
            parts.append(
                value(loss, [Pair(ours, dense(given["t_logits"]))], sizes, space="document")
            )
        found.append(torch.stack(parts).sum())
    each = torch.stack(found)
    parts = {"out_per_student": each} if "out_per_student" in given else {}
    return Found(loss=each.sum(), parts=parts)


CASES = {"nine.dml": together, "mutual": together}
