"""A policy that keeps documents or leaves them out, and learns from scores of the student."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from kdcache.errors import ConfigError
from kdcache.losses.base import check_number
from kdcache.manifest import Json

BETAS, EPS = (0.9, 0.999), 1e-8
"""Of Adam (Kingma and Ba 2015, arXiv:1412.6980)."""


class Selector(nn.Module):
    """A linear policy over features of documents, trained by policy gradient.

    A document of features f is kept with probability sigmoid(w f + b). When the student is scored,
    all decisions since its last score get what that score is over the baseline for a reward
    (`policy_loss`), and Adam takes a step. The first score is the first baseline. What it knows
    lies in buffers, so in checkpoints; decisions follow from numbers that it is given.

    Source: L2A, Feng et al. 2021, arXiv:2101.08106.

    Args:
        features: how many a document has.
        keep: the probability of every document before the first step, in (0, 1).
        rate: learning rate of the policy.
        memory: share of the baseline in the next one, in [0, 1); the score has the rest.

    Attributes:
        policy: [features + 1] float64: w, and b behind it.
        trace: [features + 1] float64: gradients of the log-probabilities of the decisions since the
            last score, added up.
        decisions: how many these are.
        baseline: what scores are held against.
        scores: how many there were; `updates` of them moved the policy.
        moments: [2, features + 1] float64: Adam's means of gradients and of their squares.
        pending: [features + 2] float64 on the host: gradients and number of the decisions that are
            not in `trace` yet, of this process alone.
    """

    policy: torch.Tensor
    trace: torch.Tensor
    decisions: torch.Tensor
    baseline: torch.Tensor
    scores: torch.Tensor
    updates: torch.Tensor
    moments: torch.Tensor

    def __init__(self, features: int, *, keep: float, rate: float, memory: float) -> None:
        super().__init__()
        check_number("rate of a selector", rate, positive=True)
        if not 0 < keep < 1:
            raise ConfigError(f"keep of a selector is a probability above 0, below 1; got {keep}")
        if not 0 <= memory < 1:
            raise ConfigError(f"memory of a selector is a share from 0 to below 1; got {memory}")
        self.rate, self.memory = rate, memory
        policy = torch.zeros(features + 1, dtype=torch.float64)
        policy[-1] = math.log(keep / (1 - keep))
        floating = {
            "policy": policy,
            "trace": torch.zeros_like(policy),
            "moments": policy.new_zeros(2, features + 1),
            "baseline": policy.new_zeros(()),
        }
        counts = ("decisions", "scores", "updates")
        counted = {name: torch.zeros((), dtype=torch.int64) for name in counts}
        for name, buffer in (floating | counted).items():
            self.register_buffer(name, buffer)
        self.forget()

    def forget(self) -> None:
        """Take back decisions that no step is made of."""
        self.pending = torch.zeros(len(self.policy) + 1, dtype=torch.float64)
        self._on_host: torch.Tensor | None = None

    def decide(self, features: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Which of B documents are kept, [B] float64 of 1 and 0.

        Args:
            features: [B, features], on the host.
            uniform: [B] in [0, 1): a document is kept where it is below its probability.
        """
        if self._on_host is None:  # a device is waited for after a score alone
            self._on_host = self.policy.detach().cpu()
        with torch.enable_grad():
            policy = self._on_host.clone().requires_grad_()
            logits = policy_logits(features, policy)
            kept = (uniform < logits.sigmoid()).double()
            loss = policy_loss(logits, kept, advantage=1.0)
            (gradient,) = torch.autograd.grad(loss, policy)
        self.pending[:-1] -= len(kept) * gradient
        self.pending[-1] += len(kept)
        return kept

    def take(self, sums: Sequence[float]) -> None:
        """Add to the trace what was pending on all ranks, added up, of a step."""
        *trace, decisions = sums
        self.trace += torch.tensor(trace, dtype=torch.float64).to(self.trace.device)
        self.decisions += int(decisions)
        self.pending.zero_()

    def reward(self, score: float) -> None:
        """Learn from a score of the student, of which more is better; nothing from one that is no
        number, and of the first one the baseline alone."""
        if not math.isfinite(score):
            return
        first = not int(self.scores)
        if not first and int(self.decisions):
            self._update(-(score - self.baseline) * self.trace / self.decisions)
        share = 0.0 if first else self.memory
        self.baseline.mul_(share).add_((1 - share) * score)
        self.scores += 1
        self.trace.zero_()
        self.decisions.zero_()

    def _update(self, gradient: torch.Tensor) -> None:
        """A step of Adam against a gradient of the policy."""
        self.updates += 1
        of_gradient, of_square = self.moments
        of_gradient.lerp_(gradient, 1 - BETAS[0])
        of_square.lerp_(gradient.square(), 1 - BETAS[1])
        mean, square = (
            moment / (1 - beta ** int(self.updates))
            for moment, beta in zip(self.moments, BETAS, strict=True)
        )
        self.policy -= self.rate * mean / (square.sqrt() + EPS)
        self._on_host = None

    def told(self, names: Sequence[str]) -> Json:
        """What it has come to, for people: the weights of features of these names are named, of
        what lies behind them there are too many."""
        *weights, bias = self.policy.tolist()
        return {
            "scores": int(self.scores),
            "baseline": float(self.baseline),
            "policy": {**dict(zip(names, weights, strict=False)), "bias": bias},
        }


def policy_logits(features: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """Logits [B] of the probabilities with which documents of features [B, F] are kept.

    `policy` is [F + 1], weights and bias.
    """
    return features.to(policy.dtype) @ policy[:-1] + policy[-1]


def policy_loss(logits: torch.Tensor, kept: torch.Tensor, advantage: float) -> torch.Tensor:
    """-advantage times the mean log-probability of decisions, in nats: its gradient is REINFORCE's
    (Williams 1992).

    Args:
        logits: [B] of the probabilities of being kept.
        kept: [B] of 1 and 0, the decisions.
        advantage: the reward of all of them over a baseline.
    """
    chances = kept * logsigmoid(logits) + (1 - kept) * logsigmoid(-logits)
    return -advantage * chances.mean()
