"""Augmenting: a corpus becomes a further one, of texts in which a masked LM has put other words."""

from kdcache.augmenting.run import AugmentResult, augment

__all__ = ["AugmentResult", "augment"]
