"""MLKD-BERT (Zhang et al. 2024), by the code of a prototype."""

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from kdcache.losses import (
    RKD,
    AttentionScores,
    BatchRelations,
    Contrast,
    Distances,
    HiddenMSE,
    Pair,
    SoftKL,
)
from kdcache.losses.relations import relation_loss
from kdcache.signals import POSITIONS
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


def intermediate(given: Given) -> Found:
    """The code takes pads for tokens, so they are some here; scores of masked keys become 0."""
    length = int(given.lengths.max())
    lengths = torch.full_like(given.lengths, length)
    block = (len(given["t_hidden"]) - 1) // (len(given["s_hidden"]) - 1)
    weight, bias = given["proj_weight"], given["proj_bias"]
    hidden = [
        Pair(linear(tokens(ours, lengths), weight, bias), layer_rows(tokens(theirs, lengths)))
        for ours, theirs in zip(given["s_hidden"], given["t_hidden"][::block], strict=True)
    ]
    attended = []
    for layer in zip(given["s_scores"], given["t_scores"][block - 1 :: block], strict=True):
        attended += scored([scores.masked_fill(scores <= -100, 0) for scores in layer], lengths)
    heads, loss = given["s_scores"].shape[2], HiddenMSE(positions="all", layers="sum")
    counted = {
        "out_hidden": value(loss, hidden, lengths),
        "out_hidden_distance": value(Distances(), hidden, lengths),
        "out_attention": value(AttentionScores(), attended, lengths, heads=heads),
        "out_attention_distance": value(Distances(of="attention"), attended, lengths, heads=heads),
    }
    split = [
        relation_loss(pair, pair, lengths, heads=int(given.number("relation_heads")))
        for pair in hidden
    ]
    parts = {**counted, "out_relation_split": torch.stack(split).sum()}
    return Found(loss=torch.stack(list(counted.values())).sum(), parts=parts)


def scored(scores: Sequence[torch.Tensor], lengths: torch.Tensor) -> list[Pair]:
    """Pairs of queries and of keys whose scores are those of student and teacher."""
    sides = [query_and_key(one, lengths) for one in scores]
    return [Pair(ours, layer_rows(theirs)) for ours, theirs in zip(*sides, strict=True)]


def prediction(given: Given) -> Found:
    """Soft labels by the mean over documents and classes, and a tenth of the contrast."""
    ours, theirs, temperature = given["s_logits"], given["t_logits"], given.number("temperature")
    rows = one_each(len(ours))
    kl = SoftKL(temperature=temperature, t_squared=False, reduction="element")
    soft = value(kl, [Pair(ours, dense(theirs))], rows, space=POSITIONS["cls"])
    soft = soft + entropy(theirs, temperature).mean() / ours.shape[1]
    vectors = Pair(given["s_cls"], layer_rows(given["t_cls"]))
    labels = Pair(ours, given["labels"])
    contrast, of_student = (
        value(Contrast(temperature=given.number("tau"), anchors=anchors), [vectors, labels], rows)
        for anchors in ("both", "student")
    )
    relations = BatchRelations(heads=int(given.number("relation_heads")))
    parts = {
        "out_soft": soft,
        "out_contrast": contrast,
        "out_contrast_student_anchors": given.number("tau") * of_student,
        "out_batch_distance": value(RKD(distance=1, angle=0), [vectors], rows),
        "out_batch_relation": value(relations, [vectors], rows),
    }
    return Found(loss=soft + 0.1 * contrast, parts=parts)


def of_hidden(given: Given) -> Found:
    """Distances between hidden states, of real tokens."""
    pairs = [
        Pair(tokens(ours, given.lengths), layer_rows(tokens(theirs, given.lengths)))
        for ours, theirs in zip(given["s_hidden"], given["t_hidden"], strict=True)
    ]
    return Found(loss=value(Distances(), pairs, given.lengths))


def of_attention(given: Given) -> Found:
    """Distances between rows of scores, of real tokens."""
    pairs = []
    for layer in zip(given["s_scores"], given["t_scores"], strict=True):
        pairs += scored(layer, given.lengths)
    heads = given["s_scores"].shape[2]
    loss = Distances(of="attention")
    return Found(loss=value(loss, pairs, given.lengths, heads=heads))


CASES = {
    "mlkd.stage1": intermediate,
    "mlkd.stage2": prediction,
    "mlkd.ragged_hidden": of_hidden,
    "mlkd.ragged_attention": of_attention,
}
