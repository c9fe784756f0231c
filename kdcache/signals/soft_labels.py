"""Soft labels as losses take them, and how far they are from the teacher's outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol

import torch

from kdcache.manifest import Json
from kdcache.signals.activations import Activations
from kdcache.signals.base import Arrays, Columns, Signal, Stats, of_signal
from kdcache.signals.codecs.sampling import distinct
from kdcache.signals.taps import LOGITS, ModelSizes, Tap

STAT_TEMPERATURE = 2.0
"""T of the second tail statistic: the tail's exact share of the partition function at that T."""
MEASURED = 16
"""Rows measured at once, so that what is computed of them stays in the processor's caches."""


STORED_TEMPERATURES = (1.0, STAT_TEMPERATURE)
"""Temperatures at which a signal that keeps the likeliest ids keeps what their tail adds up to."""


class SoftUse(NamedTuple):
    """What a loss asks of soft labels.

    Attributes:
        temperature: divides the logits of both sides.
        tail: what becomes of the classes outside the ids, as in the loss `kl`.
        raw: whether it reads the teacher's outputs as they are, rather than its probabilities.
    """

    temperature: float = 1.0
    tail: str = "bucket"
    raw: bool = False


class SoftSignal(Signal, Protocol):
    """A signal that gives the logits, or what losses take in their place."""

    def lacks(self, use: SoftUse, outputs: int) -> str:
        """What a use of the labels lacks here, `{loss}` for the loss's name; "" if nothing."""
        ...


NO_RAW = "needs raw logits (logits:dense)"
"""What a signal says that keeps probabilities alone."""


def topk_lacks(codec: str, k: int, draws: int, use: SoftUse, outputs: int) -> str:
    """What a codec lacks that keeps the `k` likeliest ids and `draws` drawn from the rest."""
    if use.raw:
        return NO_RAW
    if use.tail == "drawn":
        return _samples_lack(codec, k, draws, use)
    if k == outputs or use.tail == "renormalize" or use.temperature in STORED_TEMPERATURES:
        return ""
    return (
        f"temperature {use.temperature:g} with tail={use.tail} needs what the cache does not hold: "
        f"logits:{codec} keeps the tail at temperatures 1 and 2. Set {{loss}}.temperature to 1 or "
        "2, or {loss}.tail=renormalize, or build a cache with logits:dense"
    )


def _samples_lack(codec: str, k: int, draws: int, use: SoftUse) -> str:
    if not draws:
        return (
            "tail=drawn needs ids drawn from the tail, which the cache does not hold: build one "
            f"with --signal logits:{codec},k={k},draws=16, or set {{loss}}.tail=bucket"
        )
    if use.temperature == 1:
        return ""
    return (
        f"tail=drawn tells the teacher at temperature 1; got {use.temperature:g}. Set "
        "{loss}.temperature=1, or {loss}.tail=bucket"
    )


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """Decoded soft labels of N rows.

    Attributes:
        ids: [N, K] int64.
        logprobs: [N, K] float32, the teacher's log-probabilities at T=1, in nats.
        tail_logmass: [N] float32, log of the probability outside `ids`; None: nothing is outside.
        tail_stat: [N] float32, log of the sum of p^(1/2) outside `ids` (the tail at T=2).
        values: [N, C] float32, the teacher's raw logits or regression values, where stored.
        drawn: [N, D] int64, distinct ids drawn from outside `ids`; -1 fills a row up.
        drawn_logprobs: [N, D] float32, log of the tail's mass that each stands for.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail_logmass: torch.Tensor | None = None
    tail_stat: torch.Tensor | None = None
    values: torch.Tensor | None = None
    drawn: torch.Tensor | None = None
    drawn_logprobs: torch.Tensor | None = None

    def with_drawn(self) -> SoftLabels:
        """The drawn ids beside the others, with all of the tail's mass: nothing is left outside.

        Their expectation over draws is the teacher's whole distribution, at T = 1. Labels of which
        nothing was drawn stay as they are.
        """
        if self.drawn is None:
            return self
        assert self.drawn_logprobs is not None
        assert self.tail_logmass is not None
        return SoftLabels(
            ids=torch.cat([self.ids, self.drawn], 1),
            logprobs=torch.cat([self.logprobs, self.drawn_logprobs], 1),
            tail_logmass=torch.full_like(self.tail_logmass, -torch.inf),
        )


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """Outputs of N rows that are not classes of which a document has one.

    Attributes:
        values: [N, C] float32, as they left the teacher: logits of one sigmoid each, or values.
    """

    values: torch.Tensor


class SoftLabelCodec(ABC):
    """What all codecs of soft labels have in common: made of logits, they say logits.

    A codec adds `soft(arrays, outputs)`, which decodes its rows.
    """

    kind: ClassVar[str] = "logits"
    measured: ClassVar[str] = "logits"
    """The part of the table of measured errors that tells of it."""

    @abstractmethod
    def soft(self, raw: Arrays, outputs: int) -> SoftLabels:
        """Stored rows to soft labels over `outputs` classes."""

    def taps(self) -> tuple[Tap, ...]:
        """The logits."""
        return (LOGITS,)

    def values(self, activations: Activations) -> Mapping[Tap, torch.Tensor]:
        """What it is made of, as the model gave it."""
        return {tap: activations[tap] for tap in self.taps()}

    def gives(self) -> tuple[Tap, ...]:
        """Soft labels."""
        return (LOGITS,)

    def decode(
        self, arrays: Arrays, tap: Tap | int = LOGITS, sizes: ModelSizes | None = None
    ) -> SoftLabels | TeacherOutputs:
        """Soft labels over all outputs, or the outputs themselves where these are no softmax.

        `decode(batch, outputs)`, of a signal that is called logits, is `Cache.decode(batch)`.
        """
        if isinstance(tap, int):
            return self.soft(of_signal(arrays, self.kind), tap)
        assert sizes is not None
        return self.soft(arrays, sizes.outputs)

    def lacks(self, use: SoftUse, outputs: int) -> str:
        """What a use of the labels lacks here, `{loss}` for the loss's name; "" if nothing."""
        return NO_RAW if use.raw else ""

    def columns(self, arrays: Arrays, sizes: ModelSizes) -> Columns:
        """The fields of `SoftLabels` that it has."""
        soft = self.soft(arrays, sizes.outputs)
        found = {entry.name: getattr(soft, entry.name) for entry in fields(soft)}
        return {name: values for name, values in found.items() if values is not None}


def tail_labels(
    rising: torch.Tensor, tail_logmass: torch.Tensor, outputs: int, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`drawn` and `drawn_logprobs` of draws [N, D] from all but `k` of the `outputs`.

    Nothing was drawn from a tail without mass.
    """
    numbers, shares = distinct(rising)
    logprobs = shares + tail_logmass[:, None]
    numbers = numbers.where(logprobs > -torch.inf, -1)
    room = outputs - k
    return numbers[:, :room], logprobs[:, :room]


def fill_up(logprobs: torch.Tensor, tail_logmass: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [N, K] shifted, row by row, to sum to one minus the tail's mass [N].

    The tail's mass is exact, so the error that the codes of a row have in common is taken out.
    """
    log_mass = _log1mexp(tail_logmass)
    return logprobs + (log_mass - logprobs.logsumexp(-1)).unsqueeze(-1)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) for x <= 0, without cancellation (Maechler 2012)."""
    x = x.clamp(max=-1e-30)
    return torch.where(x > -0.6931, (-torch.expm1(x)).log(), torch.log1p(-torch.exp(x)))


def measure_topk(logits: torch.Tensor, soft: SoftLabels) -> Stats:
    """KL(teacher || decoded) in nats, twice, of rows that store some ids and the tail's mass.

    `kl` is over those ids and the tail as one outcome (what the codes cost), `full_kl` over the
    vocabulary, the decoded tail spread evenly (what leaving ids out costs). `logits` are the
    teacher's, [N, V], and finite; all is computed in float64.
    """
    pieces = zip(logits.split(MEASURED), *(x.split(MEASURED) for x in _pieces(soft)), strict=True)
    found = [_measure(*piece) for piece in pieces]
    bucket, full, same, mass = (torch.cat(values) for values in zip(*found, strict=True))
    stats = {**kl_stats("kl", bucket, same), **kl_stats("full_kl", full, same)}
    return {**stats, "kept": float(mass.sum())}


def _pieces(soft: SoftLabels) -> tuple[torch.Tensor, ...]:
    assert soft.tail_logmass is not None
    return soft.ids, soft.logprobs.double(), soft.tail_logmass.double()


def _measure(
    logits: torch.Tensor, ids: torch.Tensor, decoded: torch.Tensor, tail: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """By row: KL over ids and tail, KL over the vocabulary, top-1 agreement, mass of the ids."""
    above = logits.double() - logits.amax(-1, keepdim=True)
    mass = above.exp()
    total = mass.sum(-1)
    expected = torch.linalg.vecdot(mass, above) / total - total.log()  # sum of p log p
    exact = above.gather(1, ids) - total.log()[:, None]
    true_tail = mass.scatter_(1, ids, 0.0).sum(-1) / total
    bucket = divergence(
        torch.cat([exact, true_tail.log()[:, None]], 1), torch.cat([decoded, tail[:, None]], 1)
    )
    rest = max(logits.shape[1] - ids.shape[1], 1)
    even = torch.where(true_tail > 0, true_tail * (tail - math.log(rest)), 0.0)
    full = expected - (exact.exp() * decoded).sum(-1) - even
    same = logits.argmax(-1) == ids.gather(1, decoded.argmax(-1, keepdim=True)).squeeze(1)
    return bucket, full, same, exact.exp().sum(-1)


def summarise_topk(stats: Stats) -> Json:
    """KL over stored ids + tail, KL over the vocabulary, top-1 agreement, mean mass of the ids."""
    full = kl_summary("full_kl", stats)
    return {
        **kl_summary("kl", stats),
        "full_kl_mean": full["full_kl_mean"],
        "full_kl_max": full["full_kl_max"],
        "kept_mass": stats["kept"] / stats["rows"],
    }


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities, per row, in nats; impossible outcomes of p count nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1)


def kl_stats(name: str, kl: torch.Tensor, same: torch.Tensor) -> Stats:
    """Sums and maximum of the divergence of N rows, and how many agree on the likeliest class."""
    return {
        "rows": float(len(kl)),
        "same": float(same.sum()),
        f"{name}_sum": float(kl.sum()),
        f"{name}_max": float(kl.max()),
    }


def kl_summary(name: str, stats: Stats) -> Json:
    """Mean and maximum of a divergence, and top-1 agreement."""
    return {
        "rows": int(stats["rows"]),
        f"{name}_mean": stats[f"{name}_sum"] / stats["rows"],
        f"{name}_max": stats[f"{name}_max"],
        "top1_agreement": stats["same"] / stats["rows"],
    }
