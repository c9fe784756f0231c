"""RL-KD (Yuan et al. 2021), by a third-party code: draws are rewarded by the batch that follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from kdcache.losses import RL, Hard, Pair
from kdcache.losses.rl import Policy, label_nats
from kdcache.signals import ModelSizes
from tests.methods import Found, Given, dense, layer_rows, one_each, value
from tests.methods.simkd import put

REWARDS = {1: "labels", 2: "labels-and-teacher"}


@dataclass(frozen=True)
class Drawn:
    """The loss as it draws by the numbers of the file."""

    loss: RL
    uniform: torch.Tensor
    taught: Sequence[Sequence[Pair]]
    over: ClassVar[str] = "batch"

    def value(self, pairs: Sequence[Pair], step: Any) -> torch.Tensor:
        """What is drawn there costs, and what was drawn before is rewarded."""
        return self.loss.drawn_by(self.uniform, self.taught, step)


def two_batches(given: Given) -> Found:
    """The same batch twice: nothing is rewarded at first, and then its own draws are."""
    ours, labels, alpha = given["s_logits"], given["labels"], given.number("alpha")
    code = {"form": "plain", "mean": "all"}
    student, both, state = taken(given, **code)
    _, logged, _ = taken(given, form="log", mean="all")
    paper, _, _ = taken(given, form="log", mean="selected")
    hard = value(Hard(), [Pair(ours, labels)], one_each(len(labels)), space="document")
    likely = policy_of(given)(given["semantic"], nats_of(given), given["t_logits"])
    return Found(
        loss=alpha * both + (1 - alpha) * hard,
        parts={
            "out_policy": likely,
            "out_action": (given["uniform"] < likely).to(given.dtype),
            "out_student_part": alpha * student + (1 - alpha) * hard,
            "out_policy_part": both - student,
            "out_policy_part_log": logged - student,
            "out_student_part_paper": alpha * paper + (1 - alpha) * hard,
            "out_reward": state["baseline"][0],
        },
    )


def taken(
    given: Given, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """What both steps come to, and what is kept behind the second."""
    ours, labels, teachers = given["s_logits"], given["labels"], given["t_logits"]
    loss = RL(
        temperature=given.number("temperature"),
        reward=REWARDS[int(given.number("reward"))],
        **options,
    )
    taught = [[Pair(ours, dense(theirs)), Pair(ours, labels)] for theirs in teachers]
    taught[0].append(Pair(ours, layer_rows(given["semantic"])))
    sizes = ModelSizes(outputs=ours.shape[1], hidden=given["semantic"].shape[1], layers=1)
    state = dict(loss.state(sizes, *[sizes] * len(teachers)))
    drawn: Any = Drawn(loss, given["uniform"], taught)
    first, second = (
        value(drawn, taught[0], one_each(len(labels)), learned=policy_of(given), state=state)
        for _ in range(2)
    )
    return first, second, state


def policy_of(given: Given) -> Policy:
    """The policy of the file's weights."""
    teachers, _, outputs = given["t_logits"].shape
    policy = Policy(given["semantic"].shape[1], teachers, outputs)
    for layer, name in ((policy.semantic, "sem"), (policy.soft, "soft")):
        put(layer, "weight", given[f"w_{name}"])
        put(layer, "bias", given[f"b_{name}"])
    return policy


def nats_of(given: Given) -> torch.Tensor:
    """Cross-entropy of each teacher on the labels, [B, K]."""
    return torch.stack([label_nats(each, given["labels"]) for each in given["t_logits"]], 1)


CASES = {"rl_kd": two_batches}
