"""What earlier versions got wrong, as far as a cache tells: which ones have to be built anew.

Only stores from before the third format are looked at. Each fault is a line of FAULTS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kdcache.errors import CacheError, DamageError
from kdcache.labels import kind_of
from kdcache.manifest import NAMED, Json
from kdcache.plans.identity import has_configuration
from kdcache.store import Cache, Place, locate
from kdcache.store.format.zarr_metadata import read_record

LABEL_N = re.compile("LABEL_([0-9]+)")


@dataclass(frozen=True)
class Made:
    """A cache as one of its teachers, and the teacher's configuration that it keeps."""

    cache: Cache

    @cached_property
    def teacher(self) -> Json:
        """The teacher's table in the manifest."""
        table: Json = self.cache.manifest["teacher"]
        return table

    @cached_property
    def config(self) -> Json:
        """The values of its config.json, those of the text model within it before its own."""
        config: Any = json.loads(self.cache.file("teacher/config.json"))
        if not isinstance(config, dict):
            raise DamageError(f"{self.cache.path} keeps no configuration of its teacher")
        text = config.get("text_config")
        return {**config, **text} if isinstance(text, dict) else config

    @property
    def classifies(self) -> bool:
        """Whether documents were classified or scored."""
        return self.cache.plan.task.rows == "document"


def _many_at_once(made: Made) -> bool:
    kind = kind_of(made.config.get("problem_type"), made.cache.shape.outputs)
    return made.classifies and kind is not None and kind.wide


def _other_pad(made: Made) -> bool:
    from kdcache.models.families import decodes  # transformers takes seconds; most stores are new

    pad, family = made.config.get("pad_token_id"), str(made.config.get("model_type"))
    other = pad is not None and pad != made.cache.plan.config.tokenizer["pad_id"]
    return made.classifies and other and decodes(family)


def _swayed(made: Made) -> bool:
    from kdcache.models.families import sways

    family = str(made.config.get("model_type"))
    return sways(made.teacher["class"], family, made.cache.plan.task)


def _mean_in_half(made: Made) -> bool:
    positions = [getattr(signal, "positions", "") for signal in made.cache.signals.values()]
    return "mean" in positions and made.teacher["dtype"] != "fp32"


def _label_order(made: Made) -> bool:
    numbers = [LABEL_N.fullmatch(name) for name in made.cache.plan.config.classes or []]
    found = [int(number[1]) for number in numbers if number]
    return len(found) == len(numbers) and found != sorted(found)


def _values_dropped(made: Made) -> bool:
    plan = made.cache.plan
    labelled = bool(plan.config.corpus.get("label_column"))
    values = bool(plan.label_kind.no_divergence)
    return values and labelled and plan.labelled < plan.documents


FAULTS: dict[str, Callable[[Made], bool]] = {
    "its teacher gives several classes or values at once; they were taken for one": _many_at_once,
    "its teacher finds where documents end by a pad it was not given": _other_pad,
    "its teacher says something else where there is padding": _swayed,
    "means of hidden states were summed in half precision, and are rounded": _mean_in_half,
    "its labels LABEL_0, LABEL_1, LABEL_10, ... were numbered as text is sorted": _label_order,
    "values of -1 were dropped: some of its documents are without one": _values_dropped,
}
"""What is wrong with a cache, and of which that is true."""


def outdated(path: Place) -> list[str]:
    """What earlier versions got wrong in the cache at `path`, a line each; empty for most.

    What cannot be read is not reported: that is for `verify` to name.
    """
    root = locate(path)
    try:
        record = read_record(root) or {}
        if record.get("format") in range(NAMED):
            return [f"{root}: {fault}; build it anew" for fault in _faults(Cache(root))]
    except (CacheError, ValueError, RecursionError):  # damaged, or its configuration is no JSON
        return []
    return []


def _faults(first: Cache) -> Iterator[str]:
    for cache in (first, *(Cache(first.path, teacher=name) for name in first.teachers)):
        if not has_configuration(cache.manifest["teacher"]):  # else added by a later version
            of = f"what {cache.manifest['teacher']['name']} said: " if first.teachers else ""
            made = Made(cache)
            yield from (of + sentence for sentence, fault in FAULTS.items() if fault(made))
