"""Make cases of documents of unlike length, which no published code of these methods has.

    python tests/oracles/ragged.py

Plain loops over documents and their tokens, in float64, by the formulas alone: nothing of kdcache.
Gradients are by automatic differentiation of those loops. What is there stays as it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent
Arrays = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def states(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape)


def mapped_error(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    lengths: torch.Tensor,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared error behind a map, times what documents count for, over real tokens and width."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for doc, length in enumerate(lengths.tolist()):
        for place in range(length):
            apart = ((weight @ ours[doc, place] + bias - theirs[doc, place]) ** 2).mean()
            total = total + apart * (1 if counts is None else counts[doc])
            tokens += 1
    return total / tokens


def fitnet(given: Tensors) -> torch.Tensor:
    """Squared error behind a map: over real tokens and width."""
    sides = (given["s_hidden"], given["t_hidden"])
    return mapped_error(*sides, given["proj_weight"], given["proj_bias"], given["lengths"])


def attention_map(states: torch.Tensor) -> torch.Tensor:
    """Mean squares of the tokens of one document, over their length."""
    squares = torch.stack([(token**2).mean() for token in states])
    return squares / torch.sqrt((squares**2).sum())


def at(given: Tensors) -> torch.Tensor:
    """Squared differences of attention maps: over real tokens."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for doc, length in enumerate(given["lengths"].tolist()):
        ours = attention_map(given["s_hidden"][doc, :length])
        theirs = attention_map(given["t_hidden"][doc, :length])
        total = total + ((ours - theirs) ** 2).sum()
        tokens += length
    return total / tokens


def fsp(given: Tensors) -> torch.Tensor:
    """Products of the columns of neighbouring layers over real tokens: mean squared difference."""
    total = torch.zeros((), dtype=torch.float64)
    lengths = given["lengths"].tolist()
    for doc, length in enumerate(lengths):
        for layer in range(len(given["s_hidden"]) - 1):
            flows = []
            for side in (given["s_hidden"], given["t_hidden"]):
                products = [
                    torch.outer(side[layer, doc, place], side[layer + 1, doc, place])
                    for place in range(length)
                ]
                flows.append(torch.stack(products).sum(0) / length)
            total = total + ((flows[0] - flows[1]) ** 2).mean()
    return total / len(lengths)


def distances(points: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of every document and head, between its points, over the mean of those that are not zero.

    `points` are [heads, n, d], of a document each; every document counts alike in the mean.
    """
    found, total, number = [], torch.zeros((), dtype=torch.float64), 0.0
    for document in points:
        heads, length, _ = document.shape
        rows = []
        for head in document:
            for one in head:
                apart = [((one - other) ** 2).sum() for other in head]
                rows.append(torch.stack([x if x == 0 else x.sqrt() for x in apart]))
        found.append(torch.stack(rows).view(heads, length, length))
        total = total + found[-1].sum() / (heads * length**2)
        number += int((found[-1] > 0).sum()) / (heads * length**2)
    return [document * (number / total) for document in found]


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Half the square below 1, from there on the absolute value less a half."""
    return torch.where(x.abs() < 1, x**2 / 2, x.abs() - 0.5)


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """Smooth L1 of distances: mean over the pairs of a document, then over documents."""
    sides = zip(distances(ours), distances(theirs), strict=True)
    return torch.stack([smooth(one - other).mean() for one, other in sides]).mean()


def hidden_distances(given: Tensors) -> torch.Tensor:
    """Between hidden states of real tokens, summed over layers."""
    lengths = given["lengths"].tolist()
    layers = [
        apart(*([side[None, doc, :n] for doc, n in enumerate(lengths)] for side in layer))
        for layer in zip(given["s_hidden"], given["t_hidden"], strict=True)
    ]
    return torch.stack(layers).sum()


def attention_distances(given: Tensors) -> torch.Tensor:
    """Between the rows of scores of real queries and keys, summed over layers."""
    lengths = given["lengths"].tolist()
    layers = [
        apart(*([side[doc, :, :n, :n] for doc, n in enumerate(lengths)] for side in layer))
        for layer in zip(given["s_scores"], given["t_scores"], strict=True)
    ]
    return torch.stack(layers).sum()


def mt_bert(given: Tensors) -> torch.Tensor:
    """Hard labels; of each teacher soft labels over 1 + its cross-entropy, and mapped states."""
    labels, temperature = given["labels"], float(given["temperature"])
    logs = torch.log_softmax(given["s_logits"], -1)
    total = -torch.stack([row[label] for row, label in zip(logs, labels, strict=True)]).mean()
    for place, theirs in enumerate(given["t_logits"]):
        soft = []
        for doc, label in enumerate(labels.tolist()):
            wrong = -torch.log_softmax(theirs[doc], -1)[label]
            taught = torch.softmax(theirs[doc] / temperature, -1)
            said = torch.log_softmax(given["s_logits"][doc] / temperature, -1)
            soft.append(-(taught * said).sum() / (1 + wrong))
        total = total + torch.stack(soft).mean()
        weight, bias = given["proj_weight"][place], given["proj_bias"][place]
        for ours, states in zip(given["s_hidden"], given["t_hidden"][place], strict=True):
            total = total + mapped_error(ours, states, weight, bias, given["lengths"])
    return total


def meta_kd(given: Tensors) -> torch.Tensor:
    """Attention probabilities, mapped states and domains of documents that count differently."""
    lengths = given["lengths"].tolist()
    nats = torch.nn.functional.cross_entropy(given["t_logits"], given["labels"], reduction="none")
    expertise = 1 / (1 + torch.exp((torch.exp(-nats) - 1) ** 2))
    counts = (1 + given["prototype_weight"]) * expertise
    block = (len(given["t_hidden"]) - 1) // (len(given["s_hidden"]) - 1)
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(given["s_att"], given["t_att"][block - 1 :: block], strict=True):
        found = [
            counts[doc] * ((ours[doc, :, :n, :n] - theirs[doc, :, :n, :n]) ** 2).sum()
            for doc, n in enumerate(lengths)
        ]
        pairs = ours.shape[1] * sum(n**2 for n in lengths)
        total = total + torch.stack(found).sum() / pairs
    weight, bias = given["proj_weight"], given["proj_bias"]
    for ours, theirs in zip(given["s_hidden"], given["t_hidden"][::block], strict=True):
        total = total + mapped_error(ours, theirs, weight, bias, given["lengths"], counts)
    domain = [
        count * ((one - other) ** 2).mean()
        for count, one, other in zip(counts, given["s_domain"], given["t_domain"], strict=True)
    ]
    return total + given["domain_loss_weight"] * torch.stack(domain).mean()


def hidden(rng: np.random.Generator, narrow: int, wide: int, lengths: list[int]) -> Arrays:
    """Hidden states of both, random at pads too."""
    most = max(lengths)
    return {
        "s_hidden": states(rng, len(lengths), most, narrow),
        "t_hidden": states(rng, len(lengths), most, wide),
        "lengths": np.array(lengths),
    }


def mapped(rng: np.random.Generator, narrow: int, wide: int, lengths: list[int]) -> Arrays:
    """The same with a map from the student's width."""
    weight, bias = states(rng, wide, narrow), states(rng, wide)
    return hidden(rng, narrow, wide, lengths) | {"proj_weight": weight, "proj_bias": bias}


def layered(rng: np.random.Generator, layers: int, width: int, lengths: list[int]) -> Arrays:
    """Hidden states of some layers, of one width."""
    shape = (layers, len(lengths), max(lengths), width)
    return {
        "s_hidden": states(rng, *shape),
        "t_hidden": states(rng, *shape),
        "lengths": np.array(lengths),
    }


def unlike(rng: np.random.Generator, narrow: int, wide: int, lengths: list[int]) -> Arrays:
    """Hidden states of two layers, of unlike widths."""
    shape = (2, len(lengths), max(lengths))
    return {
        "s_hidden": states(rng, *shape, narrow),
        "t_hidden": states(rng, *shape, wide),
        "lengths": np.array(lengths),
    }


def scored(rng: np.random.Generator, layers: int, heads: int, lengths: list[int]) -> Arrays:
    """Scores of some layers."""
    shape = (layers, len(lengths), heads, max(lengths), max(lengths))
    return {
        "s_scores": states(rng, *shape),
        "t_scores": states(rng, *shape),
        "lengths": np.array(lengths),
    }


def taught(rng: np.random.Generator, teachers: int, lengths: list[int]) -> Arrays:
    """What some teachers and a student say of documents, and their states of two layers."""
    documents, most = len(lengths), max(lengths)
    return {
        "s_logits": states(rng, documents, 3),
        "t_logits": states(rng, teachers, documents, 3),
        "labels": rng.integers(0, 3, documents),
        "s_hidden": states(rng, 2, documents, most, 5),
        "t_hidden": states(rng, teachers, 2, documents, most, 7),
        "proj_weight": states(rng, teachers, 7, 5),
        "proj_bias": states(rng, teachers, 7),
        "temperature": np.array(2.0),
        "lengths": np.array(lengths),
    }


def attention(rng: np.random.Generator, layers: int, lengths: list[int]) -> Any:
    """Probabilities of two heads over the real tokens of each document; 0 at pads."""
    most = max(lengths)
    found = np.zeros((layers, len(lengths), 2, most, most))
    for doc, n in enumerate(lengths):
        raised = np.exp(states(rng, layers, 2, n, n))
        found[:, doc, :, :n, :n] = raised / raised.sum(-1, keepdims=True)
    return found


def of_domains(rng: np.random.Generator, lengths: list[int]) -> Arrays:
    """A student of two layers and a teacher of four, with a vector of the domain for each."""
    documents, most = len(lengths), max(lengths)
    return {
        "s_att": attention(rng, 2, lengths),
        "t_att": attention(rng, 4, lengths),
        "s_hidden": states(rng, 3, documents, most, 5),
        "t_hidden": states(rng, 5, documents, most, 7),
        "s_domain": states(rng, documents, 7),
        "t_domain": states(rng, documents, 7),
        "t_logits": states(rng, documents, 3),
        "labels": rng.integers(0, 3, documents),
        "prototype_weight": rng.uniform(-1, 1, documents),
        "proj_weight": states(rng, 7, 5),
        "proj_bias": states(rng, 7),
        "domain_loss_weight": np.array(0.5),
        "lengths": np.array(lengths),
    }


HIDDEN, MAPPED = ("s_hidden",), ("s_hidden", "proj_weight", "proj_bias")
OF_DOMAINS = ("s_att", "s_hidden", "s_domain", "proj_weight", "proj_bias")
Case = tuple[Callable[[Tensors], torch.Tensor], Callable[..., Arrays], tuple[str, ...]]
CASES: dict[str, Case] = {
    "fitnet.ragged_a": (fitnet, lambda rng: mapped(rng, 6, 9, [5, 2, 1]), MAPPED),
    "fitnet.ragged_b": (fitnet, lambda rng: mapped(rng, 8, 8, [7, 7, 3, 1]), MAPPED),
    "at.ragged_a": (at, lambda rng: hidden(rng, 6, 9, [5, 2, 1]), HIDDEN),
    "at.ragged_b": (at, lambda rng: hidden(rng, 8, 12, [7, 1, 3, 6]), HIDDEN),
    "fsp.ragged_a": (fsp, lambda rng: layered(rng, 3, 6, [5, 2, 1]), HIDDEN),
    "fsp.ragged_b": (fsp, lambda rng: layered(rng, 2, 8, [4, 7, 3, 1]), HIDDEN),
    "mt_bert.ragged_a": (
        mt_bert,
        lambda rng: taught(rng, 2, [5, 2, 1]),
        ("s_logits", *MAPPED),
    ),
    "mt_bert.ragged_b": (
        mt_bert,
        lambda rng: taught(rng, 3, [3, 6, 1, 6]),
        ("s_logits", *MAPPED),
    ),
    "meta_kd.ragged_a": (meta_kd, lambda rng: of_domains(rng, [5, 2, 1]), OF_DOMAINS),
    "meta_kd.ragged_b": (meta_kd, lambda rng: of_domains(rng, [3, 6, 1, 6]), OF_DOMAINS),
    "mlkd.ragged_hidden_a": (
        hidden_distances,
        lambda rng: unlike(rng, 6, 9, [5, 2, 1]),
        HIDDEN,
    ),
    "mlkd.ragged_hidden_b": (
        hidden_distances,
        lambda rng: unlike(rng, 4, 4, [3, 6, 1, 6]),
        HIDDEN,
    ),
    "mlkd.ragged_attention_a": (
        attention_distances,
        lambda rng: scored(rng, 2, 2, [5, 2, 1]),
        ("s_scores",),
    ),
    "mlkd.ragged_attention_b": (
        attention_distances,
        lambda rng: scored(rng, 1, 3, [2, 4, 4]),
        ("s_scores",),
    ),
}
"""By name: the formula, its inputs and what of them has a gradient."""


def main() -> None:
    """Write the cases that are not there."""
    for name, (formula, draw, leaves) in CASES.items():
        path = FOLDER / f"{name}.npz"
        if path.is_file():
            continue
        arrays = draw(np.random.default_rng(zlib.crc32(name.encode())))
        given = {key: torch.from_numpy(np.asarray(values)) for key, values in arrays.items()}
        for leaf in leaves:
            given[leaf].requires_grad_()
        loss = formula(given)
        gradients = torch.autograd.grad(loss, [given[leaf] for leaf in leaves])
        arrays |= {f"grad_{leaf}": g.numpy() for leaf, g in zip(leaves, gradients, strict=True)}
        arrays |= {"loss": loss.detach().numpy(), "meta_kind": np.array("formula")}
        np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
