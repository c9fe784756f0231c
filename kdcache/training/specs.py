"""What losses ask of caches, before a row is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kdcache.losses import CacheSpec
from kdcache.store import Cache
from kdcache.training.mixture import Mixture
from kdcache.training.recipe import Recipe


def cache_specs(mixture: Mixture, labelled: Sequence[int], recipe: Recipe) -> list[CacheSpec]:
    """What losses ask of each cache; one head has labels where any cache has some."""
    counts = labelled if mixture.heads else [sum(labelled)] * len(labelled)
    return [
        cache_spec(cache, count, several=recipe.several)
        for cache, count in zip(mixture.caches, counts, strict=True)
    ]


def cache_spec(cache: Cache, labelled: int, *, several: bool = False) -> CacheSpec:
    """What losses ask of a cache of which `labelled` documents with hard labels are used.

    With `several`, of all its teachers; else of the one that it is seen as.
    """
    plan = cache.plan
    size = plan.rows["document"]
    before = np.searchsorted(plan.docs, size * np.arange(plan.parts)).tolist()
    views = cache.views if several else {cache.teacher or cache.first: cache}
    specs = {
        name: CacheSpec(
            task=view.plan.task,
            label_kind=view.plan.label_kind.name,
            signals=view.signals,
            shape=view.shape,
            labelled=labelled,
            documents=plan.documents,
            before=tuple(before),
            part_rows=size,
            reworded=cache.reworded,
            name=name,
            prefix="" if view is cache else view.prefix,
            points=view.at_points,
        )
        for name, view in views.items()
    }
    first, *others = specs.values()
    return dataclasses.replace(first, others={spec.name: spec for spec in others})
