"""What the tests of dense divergences share: their formula in torch, and how near is near."""

import math

import torch
from torch.nn import functional


def divergence_rows(student, teacher, temperature, kind):
    """T^2 D of rows of logits by torch.nn.functional.kl_div."""
    lq, lp = ((x / temperature).log_softmax(1) for x in (student, teacher))
    lm = torch.logaddexp(lp, lq) - math.log(2)

    def kl(a, b):
        each = functional.kl_div(b, a, reduction="none", log_target=True)
        return each.masked_fill(a == -torch.inf, 0).sum(1)

    found = {
        "forward": lambda: kl(lp, lq),
        "reverse": lambda: kl(lq, lp),
        "js": lambda: (kl(lp, lm) + kl(lq, lm)) / 2,
    }
    return temperature**2 * found[kind]()


def assert_near(got, want, tol=3e-6):
    assert (got.double() - want.double()).abs().max() <= tol * (1 + want.double().abs().max())
