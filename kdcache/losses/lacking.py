"""A cache that does not hold what a loss needs."""

from __future__ import annotations

from kdcache.errors import ConfigError
from kdcache.losses.cache_spec import CacheSpec
from kdcache.signals import ModelSizes


class LackingError(ConfigError):
    """A cache does not hold what a loss needs, and another build of it might.

    Attributes:
        cache: as the teacher that the loss learns from.
        student: sizes of what is trained.
    """

    def __init__(self, text: str, cache: CacheSpec, student: ModelSizes) -> None:
        super().__init__(text)
        self.cache, self.student = cache, student
