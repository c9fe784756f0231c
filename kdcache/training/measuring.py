"""When the gradient of each loss is measured, and the weights that come of it."""

from __future__ import annotations

from collections.abc import Sequence

from kdcache.plans.batch import Batch
from kdcache.signals import Activations
from kdcache.training.balance import Balancer
from kdcache.training.objective import Objective
from kdcache.training.ranks import Ranks
from kdcache.training.shares import Shares


class Measuring:
    """Measures gradients in the steps in which `shares` or a balancer asks for it.

    Args:
        shares: what each loss counts for.
        balancers: what sets the weights of the losses in the first steps: one, or one of each head.
        objectives: of each cache or head, by its turn.
    """

    def __init__(
        self,
        shares: Shares,
        balancers: Sequence[Balancer],
        objectives: Sequence[Objective],
        ranks: Ranks,
    ) -> None:
        self.shares, self.balancers = shares, balancers
        self.objectives, self.ranks = objectives, ranks
        self._turn = 0
        self._due = self._balancing = False
        self._unbalanced = set(range(len(balancers)))  # whose losses may get other weights

    def begin(self, turn: int, step: int, epoch_steps: int) -> None:
        """Begin a step that is of an objective; with an epoch, look back at the one before."""
        self._turn = turn
        self.shares.objective = self.objectives[turn]  # the batch has what this one reads
        if step and step % epoch_steps == 0:
            self.shares.end(step // epoch_steps)
        if self._head in self._unbalanced:
            self._reweigh()
            self._balancing = self.balancers[self._head].due()
            if not self._balancing:
                self._unbalanced.remove(self._head)
        self._due = self._balancing or self.shares.due(step, epoch_steps)

    def measure(
        self, activations: Activations, batch: Batch, totals: Sequence[float] | None
    ) -> None:
        """Measure the gradient of each loss in the first batch of a step that it is due in, and set
        the weights by it where that is asked for; then every rank has to.
        """
        if not (self._due and len(activations.students) == 1):
            return
        self._due = False
        norms = {} if batch.idle else self.shares.norms(activations, batch, totals)
        if self._balancing:
            self._balancing, balancer = False, self.balancers[self._head]
            bound = self.objectives[self._turn].bound
            losses = {name: float(one.loss.weight) for name, one in bound.items()}
            own = {name: norm / losses[name] for name, norm in norms.items()}
            balancer.require_finite(() if batch.idle else losses, own)
            balancer.add(self.ranks.total([own.get(name, 0.0) for name in balancer.given]))
            weights = self._reweigh()
            norms = {name: norm * weights[name] for name, norm in own.items()}
        self.shares.note(norms)

    @property
    def _head(self) -> int:
        """The number of the balancer that the step is of."""
        return self._turn if len(self.balancers) > 1 else 0

    def _reweigh(self) -> dict[str, float]:
        """Give the losses of the step's head the weights that its balancer has come to."""
        weights = self.balancers[self._head].weights()
        several = len(self.balancers) > 1
        for one in [self.objectives[self._turn]] if several else self.objectives:
            one.reweigh(weights)
        return weights
