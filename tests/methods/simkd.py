"""SimKD (Chen et al. 2022): features by way of a projector, and the teacher's classifier."""

import torch
from torch.nn.functional import linear

from kdcache.losses import Pair, SimKD
from kdcache.losses.simkd import Projector
from kdcache.signals import ModelSizes
from tests.methods import Found, Given, layer_rows, one_each, value


def features(given: Given) -> Found:
    """The 3 x 3 convolution of the code sees one point: its middle is a linear map."""
    ours, theirs = given["s_feature"], given["t_feature"]
    student, teacher = (ModelSizes(outputs=0, hidden=f.shape[1], layers=1) for f in (ours, theirs))
    loss = SimKD(projector="bottleneck", factor=int(given.number("factor")), relu=True)
    projector = loss.learned(student, teacher)
    assert isinstance(projector, Projector)
    maps = given["w1"], given["w2"][:, :, 1, 1], given["w3"]
    for place, weight in enumerate(maps):
        put(projector.maps[place], "weight", weight)
        put(projector.gains, str(place), given[f"g{place + 1}"])
        put(projector.shifts, str(place), given[f"c{place + 1}"])
    state = loss.state(student, teacher)
    pairs, sizes = [Pair(ours, layer_rows(theirs))], one_each(len(ours))
    found = value(loss, pairs, sizes, space="document", learned=projector, state=state)
    share = torch.full((len(ours),), 1 / len(ours), dtype=ours.dtype)
    projected = projector(ours, share, dict(state))
    logits = linear(projected, given["t_cls_weight"], given["t_cls_bias"])
    return Found(loss=found, parts={"out_projected": projected, "out_logits": logits})


def put(module: torch.nn.Module, name: str, values: torch.Tensor) -> None:
    """Let a parameter be a tensor that is the leaf of a case."""
    del module._parameters[name]
    setattr(module, name, values)


CASES = {"simkd": features}
