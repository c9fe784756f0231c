"""What a student reads in the place of its own word embeddings while it trains.

INPUTS is the table of all ways. A new one is a frozen dataclass in a file here, and a line in it.
"""

from __future__ import annotations

from kdcache.inputs.base import Asked, Inputs, WordsOf
from kdcache.inputs.smooth import Smooth, smoothed

__all__ = ["INPUTS", "Asked", "Inputs", "Smooth", "WordsOf", "smoothed"]

INPUTS: dict[str, type[Inputs]] = {way.kind: way for way in (Smooth,)}
"""Every way that a recipe can name."""
