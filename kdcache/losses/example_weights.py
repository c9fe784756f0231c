"""What each document counts for while a student trains. EXAMPLE_WEIGHTS is the table of all ways.

A new one is a function and a line in it. Its keyword arguments are its options in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize, softplus

from kdcache.errors import ConfigError, CorpusError, one_of
from kdcache.labels import known_rows
from kdcache.losses.base import check_number, exact
from kdcache.losses.between_documents import VECTORS
from kdcache.losses.bound import Bound
from kdcache.losses.pairs import Pairs
from kdcache.losses.pool import Files, Pool
from kdcache.losses.prototypes import nearness, prototypes
from kdcache.losses.selector import Selector
from kdcache.losses.taught import labels_at, nats_on_labels, of_documents
from kdcache.plans.batch import Batch
from kdcache.plans.subsample import uniforms
from kdcache.signals import HeadLabels, ModelSizes

SELECTED = 0x5E1
"""Sets the draws of a selector apart from those of teachers."""
FIRST = ("kept", "chosen")
"""What becomes of the documents of the first of several caches."""
LEAST = -1e4  # the logarithm of a probability that is as good as 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is known of B documents that are weighed.

    What a document weighs is to depend on nothing but the document, the step, the seed and what was
    learnt: steps are cut into batches, and dealt out to ranks, in ways that must not count.

    Attributes:
        batch: their inputs and labels, and what was read of the cache, on the host.
        pool: all documents of the cache that the run trains on.
        seed: of the run.
        step: steps that the run has taken before this one.
        soft: the teacher's soft labels in the batch, of a way that asks for them.
        pairs: what decodes them.
        vectors: the teacher's vectors of the documents of the batch, of a way that asks for them.
        selector: what the way has learnt so far, if it learns.
        every: the same of all documents of `pool`, a batch at a time, read anew at each call.
    """

    batch: Batch
    pool: Pool
    seed: int
    step: int
    soft: Bound | None
    pairs: Pairs
    vectors: Bound | None = None
    selector: Selector | None = None
    every: Callable[[], Iterator[Asked]] = lambda: iter(())

    def numbers(self, column: str, file: Files) -> torch.Tensor:
        """A column of the corpus that holds numbers, [B] float64."""
        return torch.from_numpy(self.pool.numbers(column, file)[self.pool.row(self.batch["docs"])])

    def cells(self, column: str, file: Files) -> list[Any]:
        """A column of the corpus as its file has it: B texts, numbers or lists."""
        found = self.pool.column(column, file)
        return [found[row] for row in self.pool.row(self.batch["docs"])]

    def names(self, column: str, file: Files) -> list[str]:
        """The same as texts; CorpusError for a document that has none."""
        found = ["" if cell is None else str(cell).strip() for cell in self.cells(column, file)]
        if not all(found):
            raise CorpusError(
                f"{file}: column {column!r} is empty somewhere; every document needs one"
            )
        return found

    @property
    def document_vectors(self) -> torch.Tensor:
        """The teacher's vectors of the documents, [B, H] float32."""
        assert self.vectors is not None
        found: torch.Tensor = self.pairs.teacher_of(self.vectors).dense()
        return found

    @cached_property
    def soft_labels(self) -> Any:
        """The teacher's soft labels, `SoftLabels` or `TeacherOutputs` of N rows."""
        assert self.soft is not None
        found = self.pairs.teacher_of(self.soft)
        return found.dense() if isinstance(found, HeadLabels) else found

    @cached_property
    def nats(self) -> torch.Tensor:
        """Cross-entropy of the teacher on each document's labels, [B], the mean over its rows; that
        of a teacher that knows nothing where there is no label."""
        assert self.soft is not None
        return nats_on_labels(self.soft, self.pairs)

    @property
    def labels(self) -> torch.Tensor:
        """The labels of the rows of `soft_labels`."""
        assert self.soft is not None
        return labels_at(self.batch, self.soft.rows)

    def mean(
        self, rows: torch.Tensor, there: torch.Tensor | None = None, nothing: float = 1.0
    ) -> torch.Tensor:
        """Of values of the rows of `soft_labels`, [N], the mean over those of each document that
        are `there`, [B]; `nothing` where it has none."""
        assert self.soft is not None
        return of_documents(self.batch, self.soft.rows, rows, there, nothing)


class Way(NamedTuple):
    """How documents are weighed.

    Attributes:
        weights: what they count for, [B] floating, finite and 0 or more.
        labels: whether it asks for hard labels.
        soft: whether it asks for the teacher's soft labels: of the first teacher, or the one that
            its option `teacher` names.
        learns: makes what it learns from scores on the dev set, of the teacher's sizes and its
            options.
        vectors: which vectors of documents of that teacher it asks for, by its options: a name of
            `between_documents.VECTORS`, of the signal that an option `signal` names; "": none.
    """

    weights: Callable[..., torch.Tensor]
    labels: bool = False
    soft: bool = False
    learns: Callable[[ModelSizes, Mapping[str, Any]], Selector] | None = None
    vectors: Callable[[Mapping[str, Any]], str] = lambda options: ""


def column(asked: Asked, *, column: str, file: Files) -> torch.Tensor:
    """A column of the corpus, read from its file."""
    return asked.numbers(column, file)


def class_balance(asked: Asked, *, power: float = 1.0) -> torch.Tensor:
    """By the class of a document: (D / (C * documents of the class)) ** power, of D documents that
    have a label, and C classes; 1 without a label."""
    check_number("power", power)
    counts = asked.pool.class_counts.double()
    of_class = (counts.sum() / (len(counts) * counts.clamp(min=1))) ** power
    labels = asked.batch["labels"]
    return torch.where(known_rows(labels), of_class[labels.clamp(min=0)], 1.0)


def teacher_probability(asked: Asked, *, power: float = 1.0, teacher: str = "") -> torch.Tensor:
    """The teacher's probability of the label, to a power; of several rows the geometric mean."""
    check_number("power", power)
    return (-asked.nats).exp() ** power


def teacher_confidence(asked: Asked, *, power: float = 1.0, teacher: str = "") -> torch.Tensor:
    """The teacher's largest probability, to a power; of several rows the mean.

    With power 1 that is "confidence weighted by teacher max" (Furlanello et al. 2018,
    arXiv:1805.04770), which divides by the sum of the weights as well.
    """
    check_number("power", power)
    return confidence(asked) ** power


def teacher_correct(asked: Asked, *, wrong: float = 0.0, teacher: str = "") -> torch.Tensor:
    """1 where the teacher's likeliest class is the label, else `wrong`; of several rows, or several
    classes, the mean. 1 without a label.

    To learn from a teacher where it is right is half of conditional teacher-student learning
    (Meng et al. 2019, arXiv:1904.12399).
    """
    check_number("wrong", wrong)
    soft, labels = asked.soft_labels, asked.labels
    if hasattr(soft, "logprobs"):
        likeliest = soft.ids.gather(1, soft.logprobs.argmax(-1, keepdim=True))[:, 0]
        right = (likeliest == labels).double()
    else:
        right = ((soft.values > 0) == (labels > 0)).double().mean(-1)
    return asked.mean(right + (1 - right) * wrong, known_rows(labels))


def expertise(
    asked: Asked,
    *,
    prototype: str = "",
    domain: str = "",
    vectors: str = "mean",
    file: Files = "",
    teacher: str = "",
    signal: str = "",
) -> torch.Tensor:
    """(1 + prototype) / (1 + exp((1 - p)^2)) of the teacher's probability p of the label: Meta-KD
    (Pan et al. 2021, arXiv:2012.01266), which divides by the number of documents.

    `domain` is a column with the domain of each document. How near a document is to its domain,
    and to the others, is told by the teacher's `vectors` of all documents, read once before the
    first step. Or `prototype` is a column that says it. With neither it is 0.
    """
    if domain and prototype:
        raise ConfigError("domain and prototype both say how near documents are; leave one out")
    if prototype:
        return expertise_of(asked.nats, asked.numbers(prototype, file))
    if not domain:
        return expertise_of(asked.nats, torch.zeros_like(asked.nats))
    known = asked.pool.once(
        ("prototypes", domain),
        lambda: prototypes((a.names(domain, file), a.document_vectors) for a in asked.every()),
    )
    return expertise_of(
        asked.nats, nearness(asked.names(domain, file), asked.document_vectors, known)
    )


def expertise_of(nats: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """The same of the teacher's cross-entropies on labels and the prototype weights, both [B]."""
    wrong = 1 - (-nats).exp()
    return (1 + near) / (1 + (wrong**2).exp())


def of_domains(options: Mapping[str, Any]) -> str:
    """The vectors that `expertise` asks for: some where it is told of domains."""
    return str(options["vectors"]) if options["domain"] else ""


def confidence(asked: Asked) -> torch.Tensor:
    """The teacher's largest probability, [B]; of several rows the mean."""
    soft = asked.soft_labels
    if hasattr(soft, "logprobs"):
        return asked.mean(exact(soft.logprobs).amax(-1).exp())
    return asked.mean(exact(soft.values).abs().sigmoid().mean(-1))  # each class decided by itself


def entropy(asked: Asked) -> torch.Tensor:
    """Of what the teacher says, in nats, [B], over the classes that are stored; of several rows, or
    classes decided by themselves, the mean."""
    soft = asked.soft_labels
    if hasattr(soft, "logprobs"):
        logprobs = exact(soft.logprobs)
        return asked.mean(-(logprobs.exp() * logprobs.clamp(min=LEAST)).sum(-1))
    values = exact(soft.values)
    return asked.mean((softplus(values) - values * values.sigmoid()).mean(-1))


def length(asked: Asked) -> torch.Tensor:
    """Natural logarithm of the number of tokens, [B]."""
    return asked.batch["attention_mask"].sum(1).double().log()


FEATURES: dict[str, Callable[[Asked], torch.Tensor]] = {
    "confidence": confidence,
    "entropy": entropy,
    "cross-entropy": lambda asked: asked.nats,
    "length": length,
}
"""What a selector may know of a document beside a vector: [B] each."""


def selector(
    asked: Asked,
    *,
    features: tuple[str, ...] = ("confidence", "entropy"),
    vectors: str = "",
    first: str = "kept",
    keep: float = 0.5,
    rate: float = 0.1,
    memory: float = 0.5,
    teacher: str = "",
) -> torch.Tensor:
    """1 or 0, drawn by a policy that learns from scores on the dev set, of which more is better:
    L2A (Feng et al. 2021, arXiv:2101.08106).

    `features` are of FEATURES, and `vectors`, "cls", "mean" or "pooled", are the teacher's behind
    them, scaled to unit length. Of several caches the documents of the first are all "kept", or
    "chosen" from like the others. `keep`, `rate` and `memory` are the policy's, see Selector.
    """
    assert asked.selector is not None
    if first == FIRST[0] and asked.pool.caches > 1 and asked.pool.number == 0:
        return torch.ones(len(asked.batch["docs"]), dtype=torch.float64)
    known = [FEATURES[name](asked).double()[:, None] for name in features]
    if asked.vectors is not None:
        known.append(normalize(asked.document_vectors.double(), dim=1))
    draws = uniforms(asked.batch["docs"].numpy(), asked.seed, asked.step, SELECTED)
    return asked.selector.decide(torch.cat(known, 1), torch.from_numpy(draws))


def make_selector(teacher: ModelSizes, options: Mapping[str, Any]) -> Selector:
    """The policy of `selector`, for features of documents of a teacher of these sizes."""
    for name in options["features"]:
        one_of("feature of a selector", name, FEATURES)
    one_of("first of a selector", options["first"], FIRST)
    vectors, wide = options["vectors"], 0
    if vectors:
        one_of("vectors of a selector", vectors, VECTORS)
        wide = teacher.width("pooled" if vectors == "pooled" else "hidden")
    policy = {name: options[name] for name in ("keep", "rate", "memory")}
    return Selector(len(options["features"]) + wide, **policy)


EXAMPLE_WEIGHTS: dict[str, Way] = {
    "column": Way(column),
    "class-balance": Way(class_balance, labels=True),
    "teacher-probability": Way(teacher_probability, labels=True, soft=True),
    "teacher-confidence": Way(teacher_confidence, soft=True),
    "teacher-correct": Way(teacher_correct, labels=True, soft=True),
    "expertise": Way(expertise, labels=True, soft=True, vectors=of_domains),
    "selector": Way(
        selector, soft=True, vectors=lambda options: str(options["vectors"]), learns=make_selector
    ),
}
"""Every way a recipe can name."""
