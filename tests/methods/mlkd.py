"""MLKD-BERT (Zhang et al. 2024), by the code of a prototype."""

from kdcache.losses import (
    RKD,
    BatchRelations,
    Contrast,
    Distances,
    Pair,
    SoftKL,
)
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
        sides = [query_and_key(scores, given.lengths) for scores in layer]
        pairs += [Pair(ours, layer_rows(theirs)) for ours, theirs in zip(*sides, strict=True)]
    heads = given["s_scores"].shape[2]
    loss = Distances(of="attention")
    return Found(loss=value(loss, pairs, given.lengths, heads=heads))


CASES = {
    "mlkd.stage2": prediction,
    "mlkd.ragged_hidden": of_hidden,
    "mlkd.ragged_attention": of_attention,
}
