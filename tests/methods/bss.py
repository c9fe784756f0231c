"""Samples that support the boundary (Heo et al. 2019): points, and what is learnt there."""

import numpy as np

from kdcache.losses import Pair, SoftKL
from kdcache.models.ascent import supporting
from tests.methods import Found, Given, dense, entropy, one_each, value
from tests.methods.backward_kd import classifier


def at_boundary(given: Given) -> Found:
    """Cross-entropy at a temperature, without its square, where the teacher's class changes."""
    student, teacher = classifier(given, "s"), classifier(given, "t")
    temperature, emb = given.number("temperature"), given["emb"]
    points = supporting(
        emb,
        teacher,
        eta=float(np.float32(given.number("step_alpha"))),  # as the code keeps its step
        steps=int(given.number("num_steps")),
        target=given["target"],
        limit=2.5,
    )
    said = teacher(points)
    apart = value(
        SoftKL(temperature=temperature, t_squared=False),
        [Pair(student(points), dense(said))],
        one_each(len(emb)),
        space="document",
    )
    loss = apart + entropy(said, temperature).mean()
    return Found(loss=loss, parts={"out_adversarial": points})


CASES = {"nine.bss": at_boundary}
