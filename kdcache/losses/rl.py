"""Several teachers, of whom a learned policy chooses for each document, rewarded by the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdcache.errors import ConfigError, one_of
from kdcache.labels import known_rows
from kdcache.losses.base import LABELS, Match, Over, Pair, Step, check_number, exact, safe
from kdcache.losses.between_documents import VECTORS
from kdcache.losses.kl import SoftKL
from kdcache.plans.subsample import uniforms
from kdcache.signals import LOGITS, ModelSizes, SoftUse, Tap
from kdcache.tasks import IGNORE_INDEX

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class RL:
    """Reinforced selection among teachers, RL-KD (Yuan et al. 2021, arXiv:2012.06048).

    For each document the policy gives every teacher a probability, from a vector of the document,
    the teachers' cross-entropies on its label and their logits; each is drawn by its own, and the
    student learns from the soft labels of those that were. What the student then costs, with its
    sign turned, rewards the draws of the batch before (REINFORCE): the policy is a layer that is
    trained with the student, at the learning rate times `rate`, and thrown away.

    A batch is a step of one process, for draws are rewarded by the batch that follows, or the next
    that has a label. What is kept from one to the next is as large as the policy, not as the batch:
    the gradient of what was drawn, which the reward multiplies.

    | convention        | paper      | third-party code (GLMKD) |
    |-------------------|------------|--------------------------|
    | `form`            | log        | plain                    |
    | `mean`            | selected   | all                      |

    Attributes:
        weight: factor in the objective, of the policy's part too; 0 leaves the loss out.
        temperature: of the soft labels; T^2 is in the loss. The code takes 10.
        reward: "labels", the student's cross-entropy on labels with its sign turned, or
            "labels-and-teacher", less the last teacher's, as in the code.
        form: whose gradient is rewarded: the "log" of the probability of what was drawn, or
            the probability itself ("plain"), which is no estimate of the reward's gradient.
        mean: over the "selected" teachers of each document, or "all".
        semantic: the document's vector, of the first teacher: "cls", "mean" or "pooled".
        baseline: share of the former mean in the running mean of rewards, which is taken off each;
            0: none, as in the paper, whose rewards are all below 0.
        rate: factor of the policy's own learning rate.
        signal: name of the soft labels, of a cache that has several such; "": the first.
    """

    kind: ClassVar[str] = "rl"
    over: ClassVar[Over] = "batch"
    weight: float = 1.0
    temperature: float = 1.0
    reward: str = "labels"
    form: str = "log"
    mean: str = "selected"
    semantic: str = "pooled"
    baseline: float = 0.0
    rate: float = 1.0
    signal: str = ""

    def __post_init__(self) -> None:
        check_number("weight of an rl loss", self.weight)
        check_number("temperature of rl", self.temperature, positive=True)
        check_number("rate of rl", self.rate, positive=True)
        one_of("reward of rl", self.reward, REWARDS)
        one_of("form of rl", self.form, FORMS)
        one_of("mean of rl", self.mean, MEANS)
        one_of("semantic of rl", self.semantic, VECTORS)
        if not 0 <= self.baseline < 1:
            raise ConfigError(f"baseline of rl is 0 or more and below 1; got {self.baseline}")

    def matches(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """The teacher's logits, and the labels beside them."""
        use = SoftUse(temperature=self.temperature, raw=True)
        return (Match(LOGITS, LOGITS, signal=self.signal, use=use), Match(LOGITS, LABELS))

    def beside(self, student: ModelSizes, teacher: ModelSizes) -> tuple[Match, ...]:
        """Of the first teacher: the vectors of documents."""
        if self.semantic == "pooled":
            return (Match(LOGITS, Tap("pooled"), any_width=True),)
        tap = Tap("hidden", teacher.layers)
        return (Match(LOGITS, tap, positions=self.semantic, any_width=True),)

    def learned(self, student: ModelSizes, *teachers: ModelSizes) -> nn.Module:
        """The policy."""
        return self._policy(student, teachers)

    def _policy(self, student: ModelSizes, teachers: Sequence[ModelSizes]) -> Policy:
        name = "pooled" if self.semantic == "pooled" else "hidden"
        return Policy(teachers[0].width(name), len(teachers), student.outputs)

    def state(self, student: ModelSizes, *teachers: ModelSizes) -> State:
        """The gradient and the sum of what was drawn, and the running mean of rewards."""
        policy = self._policy(student, teachers)
        slopes = {f"slope{n}": torch.zeros_like(p) for n, p in enumerate(policy.weights)}
        return {**slopes, "drawn": torch.zeros(()), "baseline": torch.zeros(2)}

    def value(self, pairs: Sequence[Pair], step: Step) -> torch.Tensor:
        """What it comes to with one teacher."""
        return self.together({"": pairs}, step)

    def together(self, taught: Mapping[str, Sequence[Pair]], step: Step) -> torch.Tensor:
        """Sum over documents of the divergences from the teachers that are drawn, and the policy's
        part, whose gradient is the policy's alone; `taught` has the pairs of each teacher.
        """
        docs = step.batch["docs"]
        uniform = numbers(step.seed, step.number, docs, len(taught))
        return self.drawn_by(uniform, list(taught.values()), step)

    def drawn_by(
        self, uniform: torch.Tensor, taught: Sequence[Sequence[Pair]], step: Step
    ) -> torch.Tensor:
        """The same for numbers [B, K] in [0, 1): a teacher is drawn below its probability."""
        policy, (first, labels, vector) = step.learned, taught[0]
        assert isinstance(policy, Policy), "the objective has made it"
        logits = torch.stack([exact(pairs[0].teacher.values) for pairs in taught])
        nats = torch.stack([label_nats(each, labels.teacher) for each in logits], 1)
        with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            likely = policy(vector.teacher.dense(), nats, logits)
            chosen = uniform.to(likely) < likely
            counted = (step.weight > 0)[:, None]
            of_drawn = torch.where(chosen, likely, 1 - likely)
            drawn = (FORMS[self.form](of_drawn) * counted).sum()
            slopes = torch.autograd.grad(drawn, policy.weights)
        shares = MEANS[self.mean](chosen.to(likely.dtype).detach())
        loss = SoftKL(temperature=self.temperature)
        parts = [
            loss.value(pairs[:1], replace(step, share=share))
            for pairs, share in zip(taught, shares.unbind(1), strict=True)
        ]
        cost = step.labels.hard_rows(exact(first.student.detach()), labels.teacher)
        weight = step.weight * known_rows(labels.teacher)
        total = weight.sum()
        said = (nats * weight.to(nats)[:, None]).sum(0) / safe(total)
        reward = REWARDS[self.reward]((cost * weight).sum() / safe(total), said)
        rewarded = self._rewarded(reward, total > 0, policy, step.state)
        for name, value in (*((f"slope{n}", s) for n, s in enumerate(slopes)), ("drawn", drawn)):
            waiting = torch.where(total > 0, 0.0, step.state[name])  # for a reward still to come
            step.state[name] = (waiting + value).detach()
        return torch.stack(parts).sum() + rewarded

    def _rewarded(
        self, reward: torch.Tensor, told: torch.Tensor, policy: Policy, state: State
    ) -> torch.Tensor:
        """The policy's part: the draws of the batch before, by the reward of this one, if it has
        labels that have `told` it.
        """
        mean, seen = state["baseline"].to(reward.dtype).unbind()
        before = torch.where(seen > 0, mean, reward)
        known = before if self.baseline else torch.zeros_like(reward)
        after = torch.stack([before + (1 - self.baseline) * (reward - before), seen + 1])
        state["baseline"] = torch.where(told, after, torch.stack([mean, seen]))
        advantage = torch.where(told, reward - known, 0.0)
        parameters = enumerate(policy.weights)
        along = torch.stack([(state[f"slope{n}"] * p).sum() for n, p in parameters]).sum()
        # Linear in the policy, so that its gradient is that of the draws: `along` adds no value.
        found: torch.Tensor = -advantage * (state["drawn"] + along - along.detach())
        return found


class Policy(nn.Module):
    """The probability of each of K teachers: a sigmoid of linear maps of what is known.

    Args:
        width: of the document's vector.
        teachers: K.
        outputs: C, of each teacher.
    """

    def __init__(self, width: int, teachers: int, outputs: int) -> None:
        super().__init__()
        self.semantic = nn.Linear(width + teachers, teachers)
        self.soft = nn.Linear(teachers * outputs, teachers)

    @property
    def weights(self) -> list[torch.Tensor]:
        """All that is learned, in one order."""
        maps = (self.semantic, self.soft)
        return [tensor for each in maps for tensor in (each.weight, each.bias)]

    def forward(
        self, vectors: torch.Tensor, nats: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """From vectors [B, H], cross-entropies [B, K] and logits [K, B, C]: [B, K]."""
        dtype = self.soft.weight.dtype
        known = torch.cat([vectors.to(dtype), nats.to(dtype)], 1)
        said = logits.transpose(0, 1).flatten(1).to(dtype)
        found: torch.Tensor = (self.semantic(known) + self.soft(said)).sigmoid()
        return found


def label_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, C] on labels [B], in nats; of a document without a label that of
    a teacher that knows nothing."""
    nats = cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX)
    return torch.where(labels == IGNORE_INDEX, float(np.log(logits.shape[1])), nats)


def numbers(seed: int, step: int, docs: torch.Tensor, teachers: int) -> torch.Tensor:
    """In [0, 1) for each document and teacher, [B, K] float64, by seed, step and place."""
    places = docs.cpu().numpy()[:, None] * teachers + np.arange(teachers)
    found = uniforms(places.ravel(), seed, step).reshape(places.shape)
    return torch.from_numpy(found).to(docs.device)


REWARDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "labels": lambda cost, said: -cost,
    "labels-and-teacher": lambda cost, said: -cost - said[-1].to(cost),
}
"""From the mean cross-entropies on labels, the student's and each teacher's [K]."""

FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "log": lambda likely: likely.clamp(min=torch.finfo(likely.dtype).tiny).log(),
    "plain": lambda likely: likely,
}
"""Of the probabilities of what was drawn, whose sum is rewarded."""

MEANS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "selected": lambda chosen: chosen / chosen.sum(1, keepdim=True).clamp(min=1),
    "all": lambda chosen: chosen / chosen.shape[1],
}
"""From who was drawn, [B, K] of 0 and 1, to what each teacher counts for of each document."""
