"""Meta-KD (Pan et al. 2021): what documents count for, and the two stages of the student."""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, linear

from kdcache.losses import AttentionScores, Hard, HiddenMSE, Pair, SoftKL
from kdcache.losses.example_weights import expertise_of
from kdcache.losses.prototypes import nearness, prototypes
from tests.methods import (
    Found,
    Given,
    dense,
    entropy,
    layer_rows,
    one_each,
    query_and_key,
    tokens,
    value,
)


def ragged(given: Given) -> Found:
    """Real tokens alone, and weights of each document, as in the paper."""
    nats = cross_entropy(given["t_logits"], given["labels"], reduction="none")
    weight = expertise_of(nats, given["prototype_weight"])
    attention, states, domain = (term(weight) for term in layers(given, given.lengths).values())
    total = attention + states + domain_weight(given) * domain
    return Found(loss=total, sum_to_one=("s_att",))


def student(given: Given) -> Found:
    """The code takes pads for tokens, so they are some here, and multiplies the mean of a batch by
    the mean weight; weights of each document are the paper's."""
    nats = cross_entropy(given["t_logits"], given["labels"], reduction="none")
    weight = expertise_of(nats, given["prototype_weight"])
    every = torch.ones_like(weight)
    terms = layers(given, torch.full_like(given.lengths, int(given.lengths.max())))
    plain = {name: term(every) for name, term in terms.items()}
    factors = {"out_attention": 1.0, "out_hidden": 1.0, "out_domain": domain_weight(given)}

    def weighed(by: torch.Tensor) -> torch.Tensor:
        return torch.stack([factors[name] * term(by) for name, term in terms.items()]).sum()

    return Found(
        loss=weighed(weight.mean().expand_as(weight)),
        parts={
            **plain,
            "out_expertise": expertise_of(nats, torch.zeros_like(nats)),
            "out_weight": weight,
            "out_loss_per_example": weighed(weight),
        },
        sum_to_one=("s_att",),
    )


def domain_weight(given: Given) -> float:
    return given.number("domain_loss_weight")


def layers(
    given: Given, lengths: torch.Tensor
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The terms of the first stage, of what documents count for."""
    block = (len(given["t_hidden"]) - 1) // (len(given["s_hidden"]) - 1)
    weight, bias = given["proj_weight"], given["proj_bias"]
    hidden = [
        Pair(linear(tokens(ours, lengths), weight, bias), layer_rows(tokens(theirs, lengths)))
        for ours, theirs in zip(given["s_hidden"], given["t_hidden"][::block], strict=True)
    ]
    attended = []
    for ours, theirs in zip(given["s_att"], given["t_att"][block - 1 :: block], strict=True):
        sides = [query_and_key(scores_of(one), lengths) for one in (ours, theirs)]
        attended += [Pair(x, layer_rows(t)) for x, t in zip(*sides, strict=True)]
    heads = given["s_att"].shape[2]
    domain = Pair(given["s_domain"], layer_rows(given["t_domain"]))
    of_document = HiddenMSE(positions="mean", layer_map="top")

    def attention(by: torch.Tensor) -> torch.Tensor:
        loss = AttentionScores(compare="probability-mse")
        return value(loss, attended, lengths, heads=heads, weights=by, counted=True)

    def states(by: torch.Tensor) -> torch.Tensor:
        return value(
            HiddenMSE(positions="all", layers="sum"), hidden, lengths, weights=by, counted=True
        )

    def of_domain(by: torch.Tensor) -> torch.Tensor:
        return value(
            of_document, [domain], one_each(len(by)), space="document", weights=by, counted=True
        )

    return {"out_attention": attention, "out_hidden": states, "out_domain": of_domain}


def scores_of(probabilities: torch.Tensor) -> torch.Tensor:
    """What softmax makes probabilities of; 0 is that of a masked key."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def second_stage(given: Given) -> Found:
    """Soft labels are cross-entropies there: the teacher's own entropy is added."""
    theirs, temperature = given["t_logits"], given.number("temperature")
    loss = SoftKL(temperature=temperature, t_squared=False)
    pair = Pair(given["s_logits"], dense(theirs))
    found = value(loss, [pair], one_each(len(theirs)), space="document")
    return Found(loss=found + entropy(theirs, temperature).mean())


def typical(given: Given) -> Found:
    """Two batches, whose means are those of all."""
    domains = [str(domain) for domain in given["domains"].tolist()]
    vectors, cut = given["embedding"], 7
    known = prototypes([(domains[:cut], vectors[:cut]), (domains[cut:], vectors[cut:])])
    weights = nearness(domains, vectors, known)
    return Found(loss=weights.sum(), parts={"out_weight": weights})


def teacher(given: Given) -> Found:
    """A head for the label and one for a domain that is not the document's."""
    weights, heads = given["weights"], (("logits", "labels"), ("domain_logits", "domains_shuffled"))
    label, domain = (
        value(
            Hard(),
            [Pair(given[logits], given[labels])],
            one_each(len(weights)),
            space="document",
            labels=given[labels],
            weights=weights,
            counted=True,
        )
        for logits, labels in heads
    )
    return Found(loss=label + domain_weight(given) * domain)


CASES = {
    "meta_kd": student,
    "meta_kd.ragged": ragged,
    "meta_kd.stage2": second_stage,
    "meta_kd.prototype": typical,
    "meta_kd.teacher": teacher,
}
