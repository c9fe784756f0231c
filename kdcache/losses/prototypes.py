"""How near documents lie to their domain and to the others, told by the vectors of a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from kdcache.errors import ConfigError


class Prototypes(NamedTuple):
    """What the domains of a corpus look like, by their names, float64.

    Attributes:
        own: the mean vector of each domain's documents, [H].
        others: the mean of the other domains' means, [H].
    """

    own: Mapping[str, torch.Tensor]
    others: Mapping[str, torch.Tensor]


def prototypes(batches: Iterable[tuple[Sequence[str], torch.Tensor]]) -> Prototypes:
    """Those of documents that come in batches: the domain of each, and vectors [B, H].

    One pass; what is kept is a vector for each domain.

    Raises ConfigError for fewer than two domains.

    Source: Pan et al. 2021 (Meta-KD), arXiv:2012.01266.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for domains, vectors in batches:
        names = list(dict.fromkeys(domains))
        index = torch.tensor([names.index(domain) for domain in domains])
        added = vectors.new_zeros(len(names), vectors.shape[1], dtype=torch.float64)
        added.index_add_(0, index, vectors.double())
        for name, total, number in zip(names, added, index.bincount().tolist(), strict=True):
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + number
    if len(sums) < 2:
        raise ConfigError(
            "prototypes tell a document's domain from others, and all documents are of one, "
            f"{next(iter(sums), 'none')!r}: name a column of several, or leave domain out"
        )
    own = {name: total / counts[name] for name, total in sums.items()}
    together = torch.stack([*own.values()]).sum(0)
    others = {name: (together - mean) / (len(own) - 1) for name, mean in own.items()}
    return Prototypes(own, others)


def nearness(domains: Sequence[str], vectors: torch.Tensor, known: Prototypes) -> torch.Tensor:
    """The mean of two cosines of each document's vector: with its domain, and with the others.

    `vectors` is [B, H]; gives [B] float64 from -1 to 1. A document counts the more, the more it is
    like its own domain and what all domains share.

    Source: Pan et al. 2021 (Meta-KD), arXiv:2012.01266.
    """
    found = [
        cosine_similarity(vectors.double(), torch.stack([side[name] for name in domains]), dim=1)
        for side in known
    ]
    return torch.stack(found).mean(0)
