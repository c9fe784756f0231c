"""Weights of losses that are set by their gradients, so that terms start with stated shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.losses import Loss
from kdcache.losses.schedules import Schedules
from kdcache.manifest import Json
from kdcache.records import make

BY = ("gradient",)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How the weights of losses are set.

    Attributes:
        by: what is shared out: the "gradient", its norm where all losses meet.
        shares: of each loss, by its name; they are put in proportion. None: all have as much.
        steps: at the start of a stage in which the gradients are measured, of each head if there
            are several; weights are those that the sums so far ask for, and stay as they are after
            the last of them.
    """

    by: str = "gradient"
    shares: dict[str, float] = field(default_factory=dict)
    steps: int = 5

    def __post_init__(self) -> None:
        one_of("balance", self.by, BY)
        if self.steps < 1:
            raise ConfigError(f"balance.steps must be 1 or more; got {self.steps}")
        shares: dict[str, Any] = self.shares  # as a file has them
        for name, share in shares.items():
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not (number and 0 < share < math.inf):
                raise ConfigError(f"balance.shares.{name} must be more than 0; got {share!r}")

    def check(self, losses: Mapping[str, Loss], schedules: Schedules, where: str) -> None:
        """Raise ConfigError for losses of `where` whose weights cannot be set so."""
        require_several(losses, where)
        for name, changing in schedules.items():
            if "weight" in changing:
                raise ConfigError(
                    f"balance sets losses.{name}.weight, which has a schedule: give it a number, "
                    "or leave balance out"
                )
        for name in self.shares:
            one_of(f"loss in balance.shares of {where}", name, losses)
        if self.shares and (lacking := [name for name in losses if name not in self.shares]):
            raise ConfigError(
                f"balance.shares of {where} lacks {', '.join(lacking)}: give each loss a share, "
                "or leave shares out for equal ones"
            )

    def to_json(self) -> Json:
        """The balance as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:g}" for name, share in self.shares.items())
        return f"{self.by}: {shares or 'equal shares'}, of {self.steps} steps"


def require_several(losses: Mapping[str, Loss], where: str) -> None:
    """Raise ConfigError for a single loss of `where`, which has all of the gradient."""
    if len(losses) == 1:
        raise ConfigError(
            f"balance shares the gradient out among losses, and {where} has one, "
            f"{next(iter(losses))}: leave balance out"
        )


def balance_of(value: Any, where: str = "balance") -> Balance | None:
    """What a recipe or stage says of balance: a name, or a table of `by`, `shares` and `steps`."""
    if value in ("", None, {}):
        return None
    if isinstance(value, Balance):
        return value
    table = {"by": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise ConfigError(
            f'{where} is "gradient" or a table such as {{ shares = {{ kl = 0.7, '
            f"hidden = 0.3 }} }}; got {value!r}"
        )
    return make(Balance, table, where)


def require_measured(args: Any, config: Any) -> None:
    """Raise ConfigError for a run whose gradients are not measured loss by loss."""
    ways = {
        "training.fsdp": args.fsdp,
        "training.deepspeed": args.deepspeed,
        "training.gradient_checkpointing": args.gradient_checkpointing,
        "students that are trained together": getattr(config, "members", ())
        and not getattr(config, "heads", ()),
    }
    for way, there in ways.items():
        if there:
            raise ConfigError(
                f"balance measures the gradient of each loss, which does not go with {way}: leave "
                "one of the two out"
            )


class Balancer(nn.Module):
    """Works the weights of losses out of their gradients, whose sums lie in checkpoints.

    A loss of weight w whose gradient's norms add up to n, before its weight, gets w' = s N / n of
    its share s, where N is the sum of all w n: the norms of all add up to what they did.

    Attributes:
        norms: [losses] float64, of the measured steps added up, before weights.
        taken: how many steps were measured.
    """

    norms: torch.Tensor
    taken: torch.Tensor

    def __init__(self, balance: Balance, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.balance, self.given = balance, dict(weights)
        shares = [balance.shares.get(name, 1.0) for name in weights]
        self.shares = dict(zip(weights, [one / sum(shares) for one in shares], strict=True))
        self.register_buffer("norms", torch.zeros(len(weights), dtype=torch.float64))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))

    def due(self) -> bool:
        """Whether gradients are still measured; a device is waited for."""
        return int(self.taken) < self.balance.steps

    def add(self, norms: Sequence[float]) -> None:
        """Take in the norms of a step, one for each loss, before its weight."""
        self.norms += torch.tensor(norms, dtype=torch.float64, device=self.norms.device)
        self.taken += 1

    def weights(self) -> dict[str, float]:
        """The weight of each loss; as it was given, of one that has had no gradient yet."""
        found = dict(zip(self.given, self.norms.tolist(), strict=True))
        there = {name: norm for name, norm in found.items() if norm > 0}
        total = sum(self.given[name] * norm for name, norm in there.items())
        share = sum(self.shares[name] for name in there)
        return {
            name: total * self.shares[name] / share / there[name] if name in there else given
            for name, given in self.given.items()
        }

    @staticmethod
    def require_finite(losses: Iterable[str], norms: Mapping[str, float]) -> None:
        """Raise ModelError for norms of losses by which nothing can be balanced."""
        for name in losses:
            if name not in norms:
                raise ModelError(
                    f"losses.{name} has no gradient at the lowest block that is trained, where "
                    "balance shares it out: leave balance out, or the loss"
                )
            if not math.isfinite(norms[name]):
                raise ModelError(
                    f"the gradient of losses.{name} is {norms[name]} in the first steps: training "
                    "has diverged; lower training.learning_rate"
                )


def balanced_weights(balancers: Sequence[Balancer], heads: Sequence[str]) -> dict[str, float]:
    """The weights that balancers have come to, by "NAME", or by "HEAD.NAME" of several heads."""
    prefixes = [f"{head}." for head in heads] if len(balancers) > 1 else [""]
    return {
        f"{prefix}{name}": weight
        for prefix, one in zip(prefixes, balancers, strict=False)
        for name, weight in one.weights().items()
    }
