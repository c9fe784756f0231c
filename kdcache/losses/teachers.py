"""Several teachers of one loss: which of them a step, or a document, learns from, and how much.

CHOOSERS is the table of all policies. A new one is a function and a line in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from kdcache.errors import ConfigError, one_of
from kdcache.plans.batch import Batch
from kdcache.plans.subsample import uniforms


class Asked(NamedTuple):
    """What a policy knows of the batch that it chooses for.

    Attributes:
        teachers: their names, in the order of the recipe.
        probability: of each; they add up to 1.
        batch: inputs and labels of B documents.
        seed: of the run.
        step: steps that the run has taken before this one; batches of one step share it.
        cross_entropy: of a teacher on the labels of each document, [B], in nats; only where the
            policy asks for labels.
    """

    teachers: tuple[str, ...]
    probability: tuple[float, ...]
    batch: Batch
    seed: int
    step: int
    cross_entropy: Callable[[str], torch.Tensor]


Shares = Mapping[str, float | torch.Tensor]
"""By teacher, what its loss counts for: one number, or one of each document [B]. Those that are not
named are not computed."""


class Policy(NamedTuple):
    """How teachers are chosen.

    Attributes:
        shares: what each counts for in a batch.
        labels: whether it asks for their cross-entropies on the labels.
        samples: whether it draws them with the probabilities of a recipe.
    """

    shares: Callable[[Asked], Shares]
    labels: bool = False
    samples: bool = False


def mean(asked: Asked) -> Shares:
    """The mean over all of them."""
    return dict.fromkeys(asked.teachers, 1 / len(asked.teachers))


def total(asked: Asked) -> Shares:
    """The sum over all of them."""
    return dict.fromkeys(asked.teachers, 1.0)


def of_the_step(asked: Asked) -> Shares:
    """One drawn for each step: SKDBERT (Ding et al. 2023, arXiv:2211.14466).

    All losses of a step that draw from as many teachers with the same probabilities draw the same.
    """
    uniform = np.random.default_rng((asked.seed, asked.step)).random(1)
    return {asked.teachers[int(drawn(asked.probability, uniform)[0])]: 1.0}


def of_each_document(asked: Asked) -> Shares:
    """One drawn for each document in each step, whatever batch it is in."""
    uniform = uniforms(asked.batch["docs"].cpu().numpy(), asked.seed, asked.step)
    index = torch.from_numpy(drawn(asked.probability, uniform)).to(asked.batch["docs"].device)
    return {name: (index == place).double() for place, name in enumerate(asked.teachers)}


def by_cross_entropy(asked: Asked) -> Shares:
    """1 / (1 + its cross-entropy on the label), of each document: MT-BERT (Wu et al. 2021,
    arXiv:2106.01023). It is the sum over teachers that is so weighted.
    """
    return {name: 1 / (1 + asked.cross_entropy(name)) for name in asked.teachers}


CHOOSERS: dict[str, Policy] = {
    "all": Policy(mean),
    "sum": Policy(total),
    "sampled": Policy(of_the_step, samples=True),
    "sampled-documents": Policy(of_each_document, samples=True),
    "inverse-ce": Policy(by_cross_entropy, labels=True),
}
"""Every policy a recipe can name."""


POINTS = "points"
"""What stands for the teacher that was run at points, in the place of its name."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Who teaches a loss, as its table in a recipe says.

    Attributes:
        teachers: names of teachers of the cache; "all": every one; "points": the one that was run
            at points (`kdcache.ascend`), where the student reads the documents for this loss; none:
            the first.
        choose: a policy of CHOOSERS.
        probability: of each teacher, for policies that draw; none: all are as likely.
    """

    teachers: tuple[str, ...] | str = ()
    choose: str = "all"
    probability: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        one_of("choose", self.choose, CHOOSERS)
        if self.choose != "all" and not self.teachers:
            raise ConfigError(
                f"choose={self.choose} chooses among teachers: name them, as in "
                "teachers=['large', 'small'], or take every one of the cache, teachers='all'"
            )
        if len(set(self.named)) < len(self.named):
            raise ConfigError(f"teachers names one twice: {', '.join(self.named)}")
        if self.probability and not CHOOSERS[self.choose].samples:
            drawing = [name for name, policy in CHOOSERS.items() if policy.samples]
            raise ConfigError(
                f"probability is for drawing teachers, and choose={self.choose} draws none: leave "
                f"it out, or draw with choose={' or '.join(drawing)}"
            )
        if any(not (math.isfinite(share) and share > 0) for share in self.probability):
            raise ConfigError(
                f"probability is a number above 0 for each teacher; got {list(self.probability)}"
            )

    @property
    def named(self) -> tuple[str, ...]:
        """The teachers it names one by one."""
        if isinstance(self.teachers, str):
            return () if self.teachers in ("", "all", POINTS) else (self.teachers,)
        return self.teachers

    def of(
        self, loss: str, known: tuple[str, ...], at_points: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        """The teachers of losses.`loss` in a cache that has those `known`, the first one first, of
        which some were run `at_points`.

        Raises ConfigError for one that is not there, and for probabilities of another number.
        """
        for name in self.named:
            one_of(f"teacher in losses.{loss}.teachers", name, known)
        if self.teachers == POINTS and not at_points:
            raise ConfigError(
                f"losses.{loss} learns at points, and no teacher of the cache was run at any: make "
                "them (kdcache ascend CACHE --teacher TEACHER) and merge the two (kdcache merge)"
            )
        groups = {"all": known, POINTS: at_points}
        found = groups.get(str(self.teachers)) or self.named or known[:1]
        if self.probability and len(self.probability) != len(found):
            raise ConfigError(
                f"losses.{loss}.probability has {len(self.probability)} numbers; its teachers are "
                f"{', '.join(found)}: give one for each"
            )
        return found


FIRST = Teaching()


def drawn(probability: tuple[float, ...], uniform: Any) -> Any:
    """Of numbers in [0, 1), which is drawn: the first below the probabilities added up to there."""
    bounds = np.cumsum(np.asarray(probability, np.float64))
    place = np.searchsorted(bounds / bounds[-1], uniform, side="right")
    return np.minimum(place, len(bounds) - 1)
