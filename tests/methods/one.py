"""ONE (Lan et al. 2018): branches, and their ensemble by a gate."""

import torch

from kdcache.losses import ONE, Hard, Pair, hard_loss
from kdcache.losses.one import ensemble, ensemble_rows
from tests.methods import Found, Given, one_each, value


def branches(given: Given) -> Found:
    """The gate is the file's; where it counts alike, the loss is that of the recipe."""
    logits, gate, labels = given["s_logits"], given["gate"], given["labels"]
    sizes = one_each(len(labels))
    of_each = [
        value(Hard(), [Pair(ours, labels)], sizes, space="document", labels=labels)
        for ours in logits
    ]
    together = ensemble(logits, gate)
    nats = torch.stack(of_each).sum() + hard_loss(together, labels)
    kd = sum(ensemble_rows(ours, together, 3.0).mean() for ours in logits)
    parts = {"out_cross_entropy": nats, "out_kd": torch.as_tensor(kd)}
    check_even(given)
    return Found(loss=nats + given.number("rampup") * kd, parts=parts)


def check_even(given: Given) -> None:
    """Each student in turn, its peers constants, has the gradients of the whole."""
    logits, labels = given["s_logits"].detach(), given["labels"]
    leaf, sizes = logits.clone().requires_grad_(), one_each(len(labels))
    loss = ONE(consistency=given.number("rampup"))
    for place, ours in enumerate(leaf):
        peers = [peer for i, peer in enumerate(logits) if i != place]
        pairs = [Pair(ours, peers), Pair(ours, labels)]
        value(loss, pairs, sizes, labels=labels).backward(retain_graph=True)
    whole = logits.clone().requires_grad_()
    together = ensemble(whole)
    kd = sum(ensemble_rows(ours, together, 3.0).mean() for ours in whole)
    (hard_loss(together, labels) + given.number("rampup") * kd).backward()
    torch.testing.assert_close(leaf.grad, whole.grad, rtol=1e-5, atol=1e-7)


CASES = {"nine.one": branches}
