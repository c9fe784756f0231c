"""What each document counts for while a student trains. EXAMPLE_WEIGHTS is the table of all ways.

A new one is a function and a line in it. Its keyword arguments are its options in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from kdcache.errors import ConfigError
from kdcache.labels import known_rows
from kdcache.losses.base import check_number
from kdcache.losses.pool import Files
from kdcache.losses.prototypes import nearness, prototypes
from kdcache.losses.selecting import confidence, make_selector, selector
from kdcache.losses.selector import Selector
from kdcache.losses.weighed import Asked
from kdcache.signals import ModelSizes


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
        columns: options that name a column of the corpus, which is read from the option `file`.
    """

    weights: Callable[..., torch.Tensor]
    labels: bool = False
    soft: bool = False
    learns: Callable[[ModelSizes, Mapping[str, Any]], Selector] | None = None
    vectors: Callable[[Mapping[str, Any]], str] = lambda options: ""
    columns: tuple[str, ...] = ()


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


EXAMPLE_WEIGHTS: dict[str, Way] = {
    "column": Way(column, columns=("column",)),
    "class-balance": Way(class_balance, labels=True),
    "teacher-probability": Way(teacher_probability, labels=True, soft=True),
    "teacher-confidence": Way(teacher_confidence, soft=True),
    "teacher-correct": Way(teacher_correct, labels=True, soft=True),
    "expertise": Way(
        expertise, labels=True, soft=True, vectors=of_domains, columns=("prototype", "domain")
    ),
    "selector": Way(
        selector, soft=True, vectors=lambda options: str(options["vectors"]), learns=make_selector
    ),
}
"""Every way a recipe can name."""
