"""In which of several ways the attributions of a classifier are taken."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdcache.errors import ConfigError, one_of
from kdcache.manifest import Json

VIEWS = ("one", "all")
FORWARD, BACKWARD = 1.22, 0.66
"""In forwards without gradients: one that keeps its graph, and a gradient through that."""


@dataclass(frozen=True, kw_only=True)
class Attributing:
    """What a classifier's answer owes to each token: see the tap `attribution`.

    Attributes:
        views: whose probability is attributed. "all" is every class, a view each; "one" is the
            class of the document's label. Of two classes, without steps, both have the same
            attributions, and no label is asked for; nor is it of a single output.
        ig_steps: points of integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365): the
            gradient is the mean of those at k / ig_steps of the embedding output, k from 1 up.
        topk: of the width of a token, how many of the largest products count; None: all.

    Raises ConfigError for a setting that is none.
    """

    views: str = "all"
    ig_steps: int = 1
    topk: int | None = None

    def __post_init__(self) -> None:
        one_of("views of attribution", self.views, VIEWS)
        for name, number in (("ig_steps", self.ig_steps), ("topk", self.topk)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} of attribution must be 1 or more; got {number}")

    def settings(self) -> Json:
        """What is not as always, and the views, as a signal takes them."""
        silent = (("ig_steps", 1), ("topk", None))
        return {name: value for name, value in asdict(self).items() if (name, value) not in silent}

    def width(self, outputs: int) -> int:
        """How many views there are of a classifier of so many outputs."""
        return outputs if self.views == "all" else 1

    def asks_labels(self, outputs: int) -> bool:
        """Whether it is that of the label of each document."""
        few = outputs < 2 or (outputs == 2 and self.ig_steps == 1)
        return self.views == "one" and not few

    def forwards(self, outputs: int) -> float:
        """About how many forwards of a teacher of so many outputs it takes, the first included."""
        return self.ig_steps * (FORWARD + BACKWARD * self.width(outputs))
