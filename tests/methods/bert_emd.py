"""BERT-EMD (Li et al. 2020): optimal transport between all blocks of both."""

import torch
from torch.nn.functional import linear

from kdcache.labels.classes import CLASSES
from kdcache.losses import EMD, Hard, Pair, SoftKL, Step
from kdcache.losses.emd import KINDS, moves
from kdcache.plans.batch import Rows
from kdcache.signals import Activations, Tap
from tests.methods import (
    Found,
    Given,
    batch_of,
    dense,
    entropy,
    layer_rows,
    one_each,
    query_and_key,
    tokens,
    value,
)

CUT = -100.0  # scores as low as this are those of pads, which the code sets to zero
SHORT = {"attention": "att", "hidden": "rep"}


def with_pads(given: Given) -> Found:
    """The code counts pads: its documents are then as long as they are padded to."""
    states = given["s_hidden"]
    found = blocks(given, torch.full(states.shape[1:2], states.shape[2]))
    soft = prediction(given)
    loss = given.number("beta") * found.loss + soft
    return Found(loss=loss, parts={**found.parts, "out_prediction": soft})


def without_pads(given: Given) -> Found:
    """Real tokens, and pairs of them."""
    return blocks(given, given.lengths)


def blocks(given: Given, sizes: torch.Tensor) -> Found:
    """The distances, the embeddings, and the weights of the next step."""
    loss = EMD(transport=given.number("theta"))
    pairs = [*states(given, sizes), *scores(given, sizes)]
    state = weights(given)
    heads = given["s_scores"].new_empty(len(sizes), given["s_scores"].shape[2], 0, 0)
    activations = Activations(values={Tap("query", 1): heads}, mask=batch_of(sizes).mask)
    found = value(loss, pairs, sizes, space="document", activations=activations, state=state)
    moved, embeddings = moves(pairs, step_of(sizes, activations, weights(given)))
    parts = {"out_embedding": embeddings} if "out_embedding" in given else {}
    for kind, short in SHORT.items():
        own = {f"out_cost_{short}": moved[kind].costs, f"out_flow_{short}": moved[kind].flow}
        own |= {f"out_{kind}": moved[kind].distance}
        own |= {
            f"out_new_{side}_{short}": state[f"{side}_{kind}"] for side in ("student", "teacher")
        }
        parts |= {name: values for name, values in own.items() if name in given}
    return Found(loss=found, parts=parts)


def step_of(sizes: torch.Tensor, activations: Activations, state: dict[str, torch.Tensor]) -> Step:
    """What the loss knows of the documents."""
    rows = Rows("document")
    batch = batch_of(sizes)
    return Step(
        batch=batch,
        labels=CLASSES,
        activations=activations,
        rows=rows,
        total=batch.total(rows),
        state=state,
    )


def weights(given: Given) -> dict[str, torch.Tensor]:
    """Those of the blocks before the step; a file without pads has one of each side for both."""
    return {
        f"{side}_{kind}": given[name if name in given else f"w_{side}"].double()
        for side in ("student", "teacher")
        for kind in KINDS
        for name in [f"w_{side}_{SHORT[kind]}"]
    }


def states(given: Given, sizes: torch.Tensor) -> list[Pair]:
    """The embeddings, then the blocks; the student's through its map."""
    weight, bias = given["proj_weight"], given["proj_bias"]
    ours = [linear(tokens(layer, sizes), weight, bias) for layer in given["s_hidden"]]
    theirs = [tokens(layer, sizes) for layer in given["t_hidden"]]
    return [Pair(ours[0], layer_rows(theirs[0])), *beside(ours[1:], theirs[1:])]


def scores(given: Given, sizes: torch.Tensor) -> list[Pair]:
    """Queries of all blocks, then keys."""
    sides = []
    for name in ("s_scores", "t_scores"):
        layers = given[name].masked_fill(given[name] <= CUT, 0.0)
        sides.append([query_and_key(layer, sizes) for layer in layers])
    return [
        pair
        for part in (0, 1)
        for pair in beside(*([block[part] for block in side] for side in sides))
    ]


def beside(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[Pair]:
    """Blocks of both sides in as many pairs as the deeper one has."""
    known = [layer_rows(rows) for rows in theirs]
    size = max(len(ours), len(theirs))
    return [Pair(ours[min(i, len(ours) - 1)], known[min(i, len(known) - 1)]) for i in range(size)]


def prediction(given: Given) -> torch.Tensor:
    """Cross-entropy from soft labels over documents and classes, and from labels."""
    logits, theirs, labels = given["s_logits"], given["t_logits"], given["labels"]
    alpha, temperature = given.number("alpha"), given.number("temperature")
    sizes = one_each(len(logits))
    loss = SoftKL(temperature=temperature, reduction="element")
    soft = value(loss, [Pair(logits, dense(theirs))], sizes, space="document")
    more = temperature**2 * entropy(theirs, temperature).mean() / logits.shape[1]
    hard = value(Hard(), [Pair(logits, labels)], sizes, space="document", labels=labels)
    return alpha / given.number("reduce_T") * (soft + more) + (1 - alpha) * hard


CASES = {"bert_emd": with_pads, "bert_emd.ragged": without_pads}
