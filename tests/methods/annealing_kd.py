"""Annealing-KD (Jafari et al. 2021): its first stage, over steps and over epochs."""

import torch

from kdcache.losses import LogitMSE, Moment, Pair, Schedule
from kdcache.losses.schedules import numbers
from tests.methods import Found, Given, dense, one_each, value


def growing(given: Given) -> Found:
    """The sum over some steps, or all epochs, of the loss at their scale."""
    per = "epoch" if "epochs" in given else "step"
    levels = int(given.number("max_temperature"))
    scale = Schedule(start=1 / levels, stop=1.0, levels=levels, per=per)
    total = int(given.number("epochs" if per == "epoch" else "total_steps"))
    places = range(total) if per == "epoch" else given["steps"].tolist()
    scales = [scale.at(Moment(i, total, i, total)) for i in places]
    pair = Pair(given["s_logits"], dense(given["t_logits"]))
    sizes = one_each(len(given["s_logits"]))
    steps = torch.stack(
        [
            value(numbers(LogitMSE(), {"scale": phi}), [pair], sizes, space="document")
            for phi in scales
        ]
    )
    parts = {"out_phi": torch.tensor(scales, dtype=given.dtype), "out_per_step": steps}
    return Found(loss=steps.sum(), parts={k: parts[k] for k in parts if k in given})


CASES = {"annealing_kd": growing}
