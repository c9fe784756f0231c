"""The policy over teachers: what rewards its draws, and what waits for a reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcache.losses import RL, Pair
from kdcache.losses.rl import Policy
from kdcache.signals import ModelSizes
from kdcache.tasks import IGNORE_INDEX
from tests.methods import dense, layer_rows, one_each, value
from tests.methods.rl_kd import Drawn

WIDTH, TEACHERS, OUTPUTS, DOCS = 5, 2, 3, 4
SIZES = ModelSizes(outputs=OUTPUTS, hidden=WIDTH, layers=1)


class Batches:
    """One policy, and batches of given labels that it draws for."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.loss = RL(temperature=2.0, baseline=0.5, **options)
        self.policy = Policy(WIDTH, TEACHERS, OUTPUTS).double()
        shapes = [(DOCS, OUTPUTS), (TEACHERS, DOCS, OUTPUTS), (DOCS, WIDTH), (DOCS, TEACHERS)]
        self.given = [torch.rand(shape, dtype=torch.float64) for shape in shapes]
        self.state = {
            name: kept.double()
            for name, kept in self.loss.state(SIZES, *[SIZES] * TEACHERS).items()
        }

    def step(self, labels: list[int]) -> None:
        count = len(labels)
        ours, theirs, vectors, uniform = self.given
        answers = torch.tensor(labels)
        taught = [
            [Pair(ours[:count], dense(t[:count])), Pair(ours[:count], answers)] for t in theirs
        ]
        taught[0].append(Pair(ours[:count], layer_rows(vectors[:count])))
        drawn: Any = Drawn(self.loss, uniform[:count], taught)
        value(drawn, taught[0], one_each(count), learned=self.policy, state=self.state)


@pytest.mark.parametrize("reward", ["labels", "labels-and-teacher"])
def test_documents_without_a_label_reward_nothing(reward: str) -> None:
    some, all_of_them = Batches(reward=reward), Batches(reward=reward)
    some.step([0, 2, 1, IGNORE_INDEX])
    all_of_them.step([0, 2, 1])
    torch.testing.assert_close(some.state["baseline"], all_of_them.state["baseline"])


def test_what_was_drawn_waits_over_a_batch_without_labels() -> None:
    batches, alone = Batches(), Batches()
    batches.step([0, 2, 1, 1])
    first = dict(batches.state)
    batches.step([IGNORE_INDEX] * DOCS)
    alone.step([IGNORE_INDEX] * DOCS)
    kept = [name for name in first if name != "baseline"]
    for name in kept:
        torch.testing.assert_close(batches.state[name], first[name] + alone.state[name])
    torch.testing.assert_close(batches.state["baseline"], first["baseline"])
    fresh = Batches()
    fresh.step([0, 2, 1, 1])
    batches.step([0, 2, 1, 1])
    for name in kept:  # the reward has been given: what waits is of this batch alone
        torch.testing.assert_close(batches.state[name], fresh.state[name])
