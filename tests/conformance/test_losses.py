"""Every loss of LOSSES by hand, by its gradient, in parts and refused; a new one adds its formula.

Losses are those of their defaults: what their options do is told in test_losses.py beside the
papers. Formulas here are numpy in float64, and nothing of kdcache.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from kdcache.errors import ConfigError
from kdcache.losses import CRD, LOSSES, Loss
from kdcache.losses.crd import drawn as crd_others
from kdcache.losses.rl import numbers
from kdcache.signals import FEATURES, TAP_KINDS
from tests.objectives import Array, Given, bind, counts, drawn, evaluate, value, words_of

LENGTHS = np.array([5, 2, 1, 4])
OF_CLASSIFIERS = ("pooled", "attribution")
OUTPUTS, WIDTH, STUDENT, TEACHER = 6, 8, 2, 4


def softened(rng: np.random.Generator, rows: int) -> dict[str, Array]:
    """A teacher's logits as a cache gives them: with their log-probabilities over all classes."""
    values = 2 * rng.standard_normal((rows, OUTPUTS)).astype(np.float32)
    ids = np.tile(np.arange(OUTPUTS), (rows, 1))
    return {"ids": ids, "logprobs": log_softmax(values, axis=1), "values": values}


def documents(task: Any, *, empty: bool = False) -> Given:
    """Four documents of one task, a row in two without a label; `empty`: none has a masked token.

    The hidden states of pads are large on both sides: whoever reads one finds out.
    """
    rng = np.random.default_rng(7)
    masked = np.array([] if empty else [1, 4, 5, 16, 18], np.int64)
    rows = {"text-classification": 4, "masked-lm": len(masked), "causal-lm": LENGTHS.sum()}[task]
    labels = rng.integers(0, OUTPUTS, rows)
    labels[1::2] = -100
    pads = np.arange(5)[None, :] >= LENGTHS[:, None]
    student, teacher = (
        np.where(pads[..., None], 1e3, rng.standard_normal((layers + 1, 4, 5, WIDTH))).astype(
            np.float32
        )
        for layers in (STUDENT, TEACHER)
    )
    others = {
        kind: (vectors(rng, kind, STUDENT, pads), vectors(rng, kind, TEACHER, pads))
        for kind in (*FEATURES, "attribution")
        if kind != "hidden" and (task == "text-classification" or kind not in OF_CLASSIFIERS)
    }
    return Given(
        task=task,
        lengths=LENGTHS,
        labels=labels,
        logits=2 * rng.standard_normal((rows, OUTPUTS)).astype(np.float32),
        hidden=student,
        masked=masked if task == "masked-lm" else None,
        soft=softened(rng, rows),
        taught=teacher,
        positions={"text-classification": "cls", "masked-lm": "selected", "causal-lm": "all"}[task],
        others=others,
        peer=2 * rng.standard_normal((rows, OUTPUTS)).astype(np.float32),
    )


def vectors(rng: np.random.Generator, kind: str, layers: int, pads: Array) -> Array:
    """What a model of that depth says of a kind, [layers, B, ...]; large at pads."""
    known, heads = TAP_KINDS[kind], 2
    sizes = {"hidden": WIDTH, "outputs": OUTPUTS}
    shape = [4, heads, 5, WIDTH // heads]
    if known.width[0] in sizes:
        shape = [*pads.shape, sizes[known.width[0]]]
    if known.per == "document":
        shape = [4, WIDTH]
    found = rng.standard_normal([1 if known.first is None else layers, *shape])
    return at_pads(kind, found, pads, 1e3).astype(np.float32)


def at_pads(kind: str, values: Array, pads: Array, there: float) -> Array:
    """The values [layers, B, ...] of a kind with others at pads, where it has some."""
    if TAP_KINDS[kind].per != "token":
        return values
    where = pads[:, None, :, None] if values.ndim == 5 else pads[..., None]
    return np.where(where, there, values).astype(values.dtype)


TASKS = ("text-classification", "masked-lm", "causal-lm")
Formula = Callable[[Given], float]


def hard(given: Given) -> float:
    """Cross-entropy to the labels, mean over the rows that have one."""
    known = given.labels != -100
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    return float(-logq[known, given.labels[known]].mean())


def kl(given: Given) -> float:
    """Sum over classes of p (log p - log q), mean over rows."""
    logp = log_softmax(given.soft["logprobs"].astype(np.float64), axis=1)
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    return float((np.exp(logp) * (logp - logq)).sum(1).mean())


def mutual(given: Given) -> float:
    """The same from the other student's logits."""
    logp = log_softmax(given.peer.astype(np.float64), axis=1)
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    return float((np.exp(logp) * (logp - logq)).sum(1).mean())


def one(given: Given) -> float:
    """Cross-entropy of the mean of both students, and 9 KL from it at 3; of labelled documents."""
    logits, known = given.logits.astype(np.float64), given.labels != -100
    together = (logits + given.peer) / 2
    nats = -log_softmax(together, axis=1)[known, given.labels[known]]
    target = np.exp(log_softmax(together / 3, axis=1)) + 1e-7
    rows = 9 * (target * (np.log(target) - log_softmax(logits / 3, axis=1))).sum(1)
    return float(nats.mean() + rows[known].mean())


def logit_mse(given: Given) -> float:
    """Mean over rows and classes of the squared difference of logits."""
    difference = given.logits.astype(np.float64) - given.soft["values"]
    return float(np.square(difference).mean())


def hidden(given: Given) -> float:
    """Of every second teacher layer, the embeddings included: mean over rows, width and layers."""
    assert given.taught is not None
    student, teacher = (
        given.rows_at(layers.astype(np.float64), given.positions)
        for layers in (given.hidden, given.taught[:: TEACHER // STUDENT])
    )
    return float(np.square(student - teacher).mean())


def rkd(given: Given) -> float:
    """25 times that of relative distances and 50 times that of angles, of the last [CLS] states."""
    assert given.taught is not None
    parts = []
    for states in (given.hidden, given.taught):
        vectors = given.rows_at(states[-1].astype(np.float64), "cls")
        apart = vectors[None] - vectors[:, None]
        distance = np.sqrt(np.square(apart).sum(2))
        unit = apart / np.where(distance > 0, distance, 1.0)[..., None]
        mean = distance[distance > 0].mean()
        parts.append((distance / mean, np.einsum("jid,jkd->jik", unit, unit)))
    (near, angle), (known, wanted) = parts
    return float(25 * smooth(near - known).mean() + 50 * smooth(angle - wanted).mean())


def at(given: Given) -> float:
    """Of every second teacher layer, summed: mean over tokens of the squared difference of maps."""
    assert given.taught is not None
    total, places = 0.0, np.split(np.arange(LENGTHS.sum()), np.cumsum(given.lengths)[:-1])
    for layers in zip(given.hidden, given.taught[:: TEACHER // STUDENT], strict=True):
        ours, theirs = (
            np.square(given.rows_at(states.astype(np.float64), "all")).mean(1) for states in layers
        )
        for tokens in places:
            maps = (side[tokens] / np.linalg.norm(side[tokens]) for side in (ours, theirs))
            total += np.square(np.subtract(*maps)).sum()
    return float(total / LENGTHS.sum())


def sp(given: Given) -> float:
    """Mean over pairs of the squared difference of unit rows of products of last [CLS] states."""
    assert given.taught is not None
    rows = []
    for states in (given.hidden, given.taught):
        vectors = given.rows_at(states[-1].astype(np.float64), "cls")
        similar = vectors @ vectors.T
        rows.append(similar / np.linalg.norm(similar, axis=1, keepdims=True))
    return float(np.square(rows[0] - rows[1]).mean())


def pkt(given: Given) -> float:
    """Mean over pairs of the divergence of cosines, put between 0 and 1 and made to sum to 1."""
    assert given.taught is not None
    found = []
    for states in (given.hidden, given.taught):
        vectors = given.rows_at(states[-1].astype(np.float64), "cls")
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-7
        alike = (vectors @ vectors.T + 1) / 2
        found.append(alike / alike.sum(1, keepdims=True) + 1e-7)
    return float(((found[1] - 1e-7) * np.log(found[1] / found[0])).mean())


def cc(given: Given) -> float:
    """Absolute differences of last [CLS] states times those of the next document, mean of sums."""
    assert given.taught is not None
    sides = (given.rows_at(of[-1].astype(np.float64), "cls") for of in (given.hidden, given.taught))
    apart = np.abs(np.subtract(*sides))
    return float((apart[1:] * apart[:-1]).sum(1).mean())


def states(given: Given) -> list[list[list[Array]]]:
    """Of every second teacher layer and the student's: by document and side, without pads."""
    assert given.taught is not None
    return [
        [[side[doc, :length].astype(np.float64) for side in layers] for layers in layers_of(given)]
        for doc, length in enumerate(given.lengths)
    ]


def layers_of(given: Given) -> list[tuple[Array, Array]]:
    """The mapped layers of student and teacher, [B, L, H] each."""
    assert given.taught is not None
    return list(zip(given.hidden, given.taught[:: TEACHER // STUDENT], strict=True))


def words(given: Given) -> float:
    """Of every second teacher layer, summed: means of the tokens of words, as `words_of` has them;
    mean over width, the words of a document and documents.
    """
    total = 0.0
    theirs, mine, docs = words_of(given)
    for layers in layers_of(given):
        one, other = (given.rows_at(states.astype(np.float64), "all") for states in layers)
        apart = [
            np.square(one[mine == word].mean(0) - other[theirs == word].mean(0)).mean()
            for word in range(len(docs))
        ]
        for doc in set(docs.tolist()):
            total += np.mean(np.asarray(apart)[docs == doc]) / len(given.lengths)
    return float(total)


def nst(given: Given) -> float:
    """Squared products of all columns, each at unit length over a document's tokens."""
    total = 0.0
    for document in states(given):
        for layer in document:
            ours, theirs = (side / np.linalg.norm(side, axis=0) for side in layer)
            total += np.square(theirs.T @ theirs).mean() + np.square(ours.T @ ours).mean()
            total -= 2 * np.square(ours.T @ theirs).mean()
    return float(total / len(given.lengths))


def fsp(given: Given) -> float:
    """Products of the columns of neighbouring layers over tokens: mean squared difference."""
    total = 0.0
    for document in states(given):
        for (ours, theirs), (upper, known) in pairwise(document):
            flow = (ours.T @ upper - theirs.T @ known) / len(ours)
            total += np.square(flow).mean()
    return float(total / len(given.lengths))


def vid(given: Given) -> float:
    """Half of squared differences over variances and their logs, from three maps: mean, summed."""
    layers = layers_of(given)
    sizes = [(WIDTH,), *[(WIDTH, WIDTH)] * 3] * len(layers)
    learned, total = drawn(*sizes), 0.0
    for place, (ours, theirs) in enumerate(layers):
        scale, *maps = (x.astype(np.float64) for x in learned[4 * place : 4 * place + 4])
        found = given.rows_at(ours.astype(np.float64), "all")
        for number, weight in enumerate(maps):
            found = (np.maximum(found, 0) if number else found) @ weight.T
        variance = np.log1p(np.exp(scale)) + 1e-5
        apart = found - given.rows_at(theirs.astype(np.float64), "all")
        total += (np.square(apart) / variance + np.log(variance)).mean() / 2
    return float(total)


def crd(given: Given) -> float:
    """Noise contrastive estimation of last [CLS] states behind maps, among what is remembered."""
    assert given.taught is not None
    documents, state = len(given.lengths), CRD().remembered(len(given.lengths))
    maps, total = drawn(*[(128, WIDTH), (128,)] * 2), 0.0
    docs = torch.arange(documents)
    others = crd_others(0, 0, docs, documents, 1024)
    index = torch.cat([docs[:, None], others], 1).numpy()
    for place, side in enumerate((given.hidden, given.taught)):
        weight, bias = (x.astype(np.float64) for x in maps[2 * place : 2 * place + 2])
        vectors = given.rows_at(side[-1].astype(np.float64), "cls") @ weight.T + bias
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        known = state[("teacher", "student")[place]].numpy().astype(np.float64)[index]
        likely = np.exp((known * vectors[:, None]).sum(2) / 0.07)
        share, noise = likely / (likely.mean() * documents), 1024 / documents
        own = np.log(share[:, 0] / (share[:, 0] + noise + 1e-7))
        total -= (own + np.log(noise / (share[:, 1:] + noise + 1e-7)).sum(1)).mean()
    return float(total)


def rl(given: Given) -> float:
    """KL of the documents for which a policy of drawn weights takes the teacher, over all."""
    logits, pooled = given.soft["values"].astype(np.float64), given.others["pooled"][1][0]
    shapes = (1, WIDTH + 1), (1,), (1, OUTPUTS), (1,)
    semantic, shift, soft, other = (x.astype(np.float64) for x in drawn(*shapes))
    known = given.labels != -100
    true = log_softmax(logits, axis=1)[np.arange(4), np.where(known, given.labels, 0)]
    nats = np.where(known, -true, np.log(OUTPUTS))
    found = np.c_[pooled, nats] @ semantic[0] + shift + logits @ soft[0] + other
    taken = numbers(0, 0, torch.arange(4), 1)[:, 0].numpy() < expit(found)
    assert taken.any()
    logp = log_softmax(given.soft["logprobs"].astype(np.float64), axis=1)
    logq = log_softmax(given.logits.astype(np.float64), axis=1)
    return float((taken * (np.exp(logp) * (logp - logq)).sum(1)).mean())


def distances(given: Given) -> float:
    """Between tokens of a document over their mean in the batch, mean over documents, summed."""
    total = 0.0
    for layer in zip(*states(given), strict=True):
        apart = [[euclid(side) for side in document] for document in layer]
        means = [
            np.mean([side.mean() for side in sides])
            / np.mean([(side > 0).mean() for side in sides])
            for sides in zip(*apart, strict=True)
        ]
        relative = [[x / m for x, m in zip(doc, means, strict=True)] for doc in apart]
        total += np.mean([smooth(np.subtract(*document)).mean() for document in relative])
    return float(total)


def euclid(points: Array) -> Array:
    """Distances between points [n, d], [n, n]."""
    return np.sqrt(np.square(points[None] - points[:, None]).sum(2))


def batch_relations(given: Given) -> float:
    """KL of softmax over the batch of products of last [CLS] states over the root of the width."""
    assert given.taught is not None
    logq, logp = (
        log_softmax(vectors @ vectors.T / np.sqrt(WIDTH), axis=1)
        for vectors in (
            given.rows_at(of[-1].astype(np.float64), "cls") for of in (given.hidden, given.taught)
        )
    )
    return float((np.exp(logp) * (logp - logq)).sum(1).mean())


def contrast(given: Given) -> float:
    """Last [CLS] states of both at unit length: those of a class against all, at 0.07."""
    assert given.taught is not None
    sides = (given.rows_at(of[-1].astype(np.float64), "cls") for of in (given.hidden, given.taught))
    vectors = np.concatenate([side / np.linalg.norm(side, axis=1)[:, None] for side in sides])
    cosines = (vectors @ vectors.T - 1) / 0.07
    labels = np.where(given.labels < 0, -1 - np.arange(4), given.labels)  # a class by itself
    classes = np.tile(labels, 2)
    found = []
    for anchor, mine in enumerate(classes):
        others = np.delete(np.arange(8), anchor)
        log_sum = np.log(np.exp(cosines[anchor, others]).sum() + 1e-7)
        alike = others[classes[others] == mine]
        found.append((log_sum - cosines[anchor, alike]).mean())
    return float(np.mean(found))


def smooth(x: Array) -> Array:
    """Half the square below 1, from there on the absolute value less a half."""
    return np.where(np.abs(x) < 1, np.square(x) / 2, np.abs(x) - 0.5)


def alp(given: Given) -> float:
    """[CLS] of every layer from its attention over the teacher's, without the embeddings."""
    assert given.taught is not None
    theirs = given.rows_at(given.taught[1:].astype(np.float64), "cls")
    total = 0.0
    for ours in given.rows_at(given.hidden[1:].astype(np.float64), "cls"):
        weight = np.exp(log_softmax((ours * theirs).sum(2), axis=0))
        total += np.square(ours - (weight[..., None] * theirs).sum(0)).mean()
    return float(total)


def ptp(given: Given) -> float:
    """Cross-entropy, over documents with a label, to whether the teacher is right and sure."""
    pooled = given.others["pooled"][0][0].astype(np.float64)
    weight, bias = (values.astype(np.float64) for values in drawn((4, WIDTH), (4,)))
    known = given.labels != -100
    probability = np.exp(given.soft["logprobs"].astype(np.float64))
    right = probability.argmax(1) == given.labels
    sure = probability.max(1) > np.where(right, 0.95, 0.75)
    kinds = np.where(right, 0, 2) + ~sure
    logq = log_softmax(pooled @ weight.T + bias, axis=1)
    return float(-logq[known, kinds[known]].mean())


def simkd(given: Given) -> float:
    """A linear map of what the classifier reads, normalised over documents, from the teacher's."""
    ours, theirs = (side[0].astype(np.float64) for side in given.others["pooled"])
    shapes = (WIDTH, WIDTH), (WIDTH,), (WIDTH,)
    weight, gain, shift = (values.astype(np.float64) for values in drawn(*shapes))
    mapped = ours @ weight.T
    normal = (mapped - mapped.mean(0)) / np.sqrt(mapped.var(0) + 1e-5)
    return float(np.square(gain * normal + shift - theirs).mean())


def emd(given: Given) -> float:
    """Embeddings, and the cheaper ways to share four blocks of the teacher out to two evenly."""
    assert given.taught is not None
    ours, theirs = (
        given.rows_at(states.astype(np.float64), "all") for states in (given.hidden, given.taught)
    )
    return float(
        np.square(ours[0] - theirs[0]).mean()
        + shared_out(apart(ours[1:], theirs[1:]))
        + shared_out(apart(*(scores(given, side) for side in (0, 1))))
    )


def scores(given: Given, side: int) -> Array:
    """Query times key of all pairs of tokens of a document, over the root of the width."""
    query, key = (given.others[kind][side].astype(np.float64) for kind in ("query", "key"))
    found = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    pairs = given.mask[:, :, None] & given.mask[:, None, :]
    return found.transpose(0, 1, 3, 4, 2)[:, pairs]


def apart(ours: Array, theirs: Array) -> Array:
    """Mean squared difference of every layer of one from every layer of the other, [M, N]."""
    return np.square(ours[:, None] - theirs[None]).mean((2, 3))


def shared_out(costs: Array) -> float:
    """The least cost at which two blocks get two of four each."""
    ways = combinations(range(TEACHER), TEACHER // STUDENT)
    return min(
        sum(costs[int(block not in way), block] for block in range(TEACHER)) / TEACHER
        for way in ways
    )


def relations(given: Given) -> float:
    """Of queries, keys and values of the last layer with themselves: the mean of the three, over
    documents, of the mean over heads and tokens of KL between softmaxes.
    """
    total = 0.0
    for kind in ("query", "key", "value"):
        ours, theirs = (side[-1].astype(np.float64) for side in given.others[kind])
        for doc, length in enumerate(given.lengths):
            logq, logp = (self_relations(side[doc, :, :length]) for side in (ours, theirs))
            total += (np.exp(logp) * (logp - logq)).sum(-1).mean() / 3 / len(given.lengths)
    return float(total)


def self_relations(x: Array) -> Array:
    """log softmax(X X^T / sqrt(d)) of the heads of a document, [heads, n, d]."""
    return log_softmax(x @ x.transpose(0, 2, 1) / np.sqrt(x.shape[2]), axis=2)


def moments(given: Given) -> float:
    """5000 times the squared difference of means over the width and 5 times the absolute one of
    variances, mean over rows and over every second teacher layer, the embeddings included.
    """
    assert given.taught is not None
    student, teacher = (
        given.rows_at(layers.astype(np.float64), given.positions)
        for layers in (given.hidden, given.taught[:: TEACHER // STUDENT])
    )
    means = np.square(student.mean(-1) - teacher.mean(-1)).mean()
    return float(5000 * means + 5 * np.abs(student.var(-1) - teacher.var(-1)).mean())


def attention(given: Given) -> float:
    """Of every second teacher layer: the squared difference of scores, mean over heads and pairs of
    tokens, sum over layers.
    """
    total = 0.0
    for layer, (doc, n) in product(range(STUDENT), enumerate(given.lengths)):
        ours, theirs = (
            scores_of(*(given.others[kind][side][at, doc, :, :n] for kind in ("query", "key")))
            for side, at in ((0, layer), (1, 2 * layer + 1))
        )
        total += np.square(ours - theirs).sum() / len(ours)
    return float(total / np.square(given.lengths).sum())


def scores_of(query: Array, key: Array) -> Array:
    """Of each head the products of every two tokens, over the square root of their width."""
    products = np.einsum("hid,hjd->hij", query.astype(np.float64), key.astype(np.float64))
    return products / np.sqrt(query.shape[2])


def cosine(given: Given) -> float:
    """1 - cos of the last layers, mean over rows."""
    assert given.taught is not None
    ours, theirs = (
        given.rows_at(layers[-1].astype(np.float64), given.positions)
        for layers in (given.hidden, given.taught)
    )
    sizes = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((1 - (ours * theirs).sum(1) / sizes).mean())


def attribution(given: Given) -> float:
    """Squared differences of tokens, added up over the views, mean over tokens."""
    ours, theirs = (x[0][given.mask].astype(np.float64) for x in given.others["attribution"])
    return float(np.square(ours - theirs).sum(1).mean())


FORMULAS: dict[str, Formula] = {
    "hard": hard,
    "kl": kl,
    "logit_mse": logit_mse,
    "hidden": hidden,
    "relations": relations,
    "moments": moments,
    "rkd": rkd,
    "rl": rl,
    "alp": alp,
    "at": at,
    "sp": sp,
    "pkt": pkt,
    "cc": cc,
    "nst": nst,
    "fsp": fsp,
    "crd": crd,
    "vid": vid,
    "distances": distances,
    "batch_relations": batch_relations,
    "contrast": contrast,
    "mutual": mutual,
    "one": one,
    "ptp": ptp,
    "simkd": simkd,
    "emd": emd,
    "attention": attention,
    "attribution": attribution,
    "cosine": cosine,
    "words": words,
}
"""By kind: the loss of its defaults, in float64."""

every_loss = pytest.mark.parametrize("kind", LOSSES)


def alone(kind: str) -> dict[str, Loss]:
    """A recipe of one loss."""
    return {kind: LOSSES[kind]()}


def tasks_of(kind: str) -> list[str]:
    """The tasks whose caches can hold what a loss of defaults learns from."""
    found = []
    for task in TASKS:
        with suppress(ConfigError):
            bind(alone(kind), documents(task))
            found.append(task)
    return found


CASES = [(kind, task) for kind in LOSSES for task in tasks_of(kind)]
every_case = pytest.mark.parametrize(("kind", "task"), CASES)


def test_every_loss_has_a_task_and_its_formula_here() -> None:
    assert {kind for kind, _ in CASES} == LOSSES.keys()
    lacking, more = LOSSES.keys() - FORMULAS.keys(), FORMULAS.keys() - LOSSES.keys()
    assert not lacking, f"state {lacking} in FORMULAS: a function of what is given, in numpy"
    assert not more, f"{more} of FORMULAS are no losses any more"


@every_case
def test_its_value_is_the_formula(kind: str, task: str) -> None:
    given = documents(task)
    wanted = FORMULAS[kind](given)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        found = evaluate(alone(kind), given, dtype)
        assert found.total == pytest.approx(wanted, rel=tolerance)
        assert found.terms == {kind: pytest.approx(wanted, rel=tolerance)}


@every_case
def test_its_gradient_is_its_slope_in_every_direction(kind: str, task: str) -> None:
    if kind in ("one", "crd"):
        pytest.skip("the student is part of what it is held against, a constant of the step")
    given = documents(task)
    gradients = evaluate(alone(kind), given).gradients
    rng = np.random.default_rng(1)
    for _ in range(3):
        way = {name: rng.standard_normal(values.shape) for name, values in given.student.items()}
        slope = sum(float((gradients[name] * way[name]).sum()) for name in way)
        ahead, behind = (moved(kind, given, way, step) for step in (1e-5, -1e-5))
        assert (ahead - behind) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-8)
    coarse = evaluate(alone(kind), given, torch.float32).gradients
    for name, gradient in gradients.items():
        assert np.abs(coarse[name] - gradient).max() <= 1e-6 * np.abs(gradient).max()


def moved(kind: str, given: Given, way: dict[str, Array], step: float) -> float:
    """The loss, in float64, of outputs that have gone a step that way."""
    activations = {
        name: torch.from_numpy(start.astype(np.float64) + step * way[name])
        for name, start in given.student.items()
    }
    return float(value(alone(kind), given, activations)[0].detach())


@every_case
def test_it_reads_no_pad_and_moves_none(kind: str, task: str) -> None:
    given = documents(task)
    pads = ~given.mask
    others = {k: (at_pads(k, s, pads, np.nan), t) for k, (s, t) in given.others.items()}
    hidden = at_pads("hidden", given.hidden, pads, np.nan)
    spoilt = replace(given, hidden=hidden, others=others)
    whole, found = (evaluate(alone(kind), which) for which in (given, spoilt))
    assert found.total == whole.total
    for name, gradient in found.gradients.items():
        np.testing.assert_array_equal(gradient, whole.gradients[name])
    for name in given.student:
        at = np.broadcast_to(
            at_pads(name, np.zeros_like(given.student[name]), pads, 1.0), given.student[name].shape
        )
        assert not (found.gradients[name] * at).any()


@every_loss
def test_documents_without_a_row_or_a_weight_cost_nothing_and_move_nothing(kind: str) -> None:
    tasks = tasks_of(kind)
    nothing = [replace(documents(task), weights=np.zeros(4)) for task in tasks]
    if "masked-lm" in tasks:  # where a loss of all tokens has its rows as ever
        empty = documents("masked-lm", empty=True)
        nothing += [] if counts(alone(kind), empty)[kind] else [empty]
    for given, dtype in product(nothing, (torch.float64, torch.float32)):
        found = evaluate(alone(kind), given, dtype)
        assert found.total == 0
        assert found.terms == {kind: 0}
        for gradient in found.gradients.values():
            assert not gradient.any()  # nor NaN


CUTS = ([[0], [1], [2], [3]], [[0, 3], [1, 2]], [[0, 1, 2], [3]])


@every_case
@pytest.mark.parametrize("cut", CUTS, ids=len)
def test_micro_batches_add_up_to_the_whole_batch(
    kind: str, task: str, cut: list[list[int]]
) -> None:
    if LOSSES[kind].over == "batch":
        pytest.skip("it compares the documents of a batch: nobody may cut one")
    if hasattr(LOSSES[kind], "remembered"):
        pytest.skip("it knows documents by their numbers in the cache, which a part has others of")
    for weights in (None, np.array([2.0, 0.5, 0.0, 1.0])):
        check_parts(alone(kind), replace(documents(task), weights=weights), cut)


def check_parts(losses: dict[str, Loss], given: Given, cut: list[list[int]]) -> None:
    """Hold what micro-batches add to value and gradients against those of the whole batch."""
    (kind,) = losses
    whole = evaluate(losses, given)
    parts = [given.some(docs) for docs in cut]
    total = sum(counts(losses, part)[kind] for part in parts)
    assert total == counts(losses, given)[kind]
    found = [evaluate(losses, part, totals=[total]) for part in parts]
    assert sum(one.total for one in found) == pytest.approx(whole.total, rel=1e-12)
    for docs, one in zip(cut, found, strict=True):
        for name in given.student:
            wanted = of_documents(given, name, whole.gradients[name], docs)
            np.testing.assert_allclose(one.gradients[name], wanted, rtol=1e-12, atol=1e-15)
    for name in whole.gradients.keys() - given.student.keys():  # what the loss learns besides
        added = np.sum([one.gradients[name] for one in found], axis=0)
        np.testing.assert_allclose(added, whole.gradients[name], rtol=1e-12, atol=1e-15)


def of_documents(given: Given, name: str, values: Array, docs: list[int]) -> Array:
    """What there is of some documents of one of the values of `Given.student`."""
    return values[np.isin(given.owners, docs)] if name == "logits" else values[:, docs]


@every_case
def test_a_document_of_weight_two_counts_twice_and_one_of_weight_zero_not_at_all(
    kind: str, task: str
) -> None:
    if LOSSES[kind].over == "batch":
        pytest.skip("it compares the documents of a batch: one that is there twice is another")
    if hasattr(LOSSES[kind], "remembered"):
        pytest.skip("it knows documents by their numbers in the cache: one there twice is another")
    given = documents(task)
    weighed = replace(given, weights=np.array([2.0, 1.0, 0.0, 1.0]))
    wanted = evaluate(alone(kind), given.some([0, 0, 1, 3]))
    for one in (weighed, other_words(weighed, 2)):
        found = evaluate(alone(kind), one)
        assert found.total == pytest.approx(wanted.total, rel=1e-12)
        assert found.terms[kind] == pytest.approx(wanted.terms[kind], rel=1e-12)
        for name in given.student:
            zero, first, last = (
                of_documents(given, name, found.gradients[name], [doc]) for doc in (2, 0, 3)
            )
            assert not zero.any()
            repeated = given.some([0, 0, 1, 3])
            twice = [of_documents(repeated, name, wanted.gradients[name], [d]) for d in (0, 1, 3)]
            np.testing.assert_allclose(first, twice[0] + twice[1], rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(last, twice[2], rtol=1e-12, atol=1e-15)


def other_words(given: Given, doc: int) -> Given:
    """The same where the student says something else of one document."""
    logits, hidden = given.logits.copy(), given.hidden.copy()
    logits[given.owners == doc] *= 3
    hidden[:, doc] *= 3
    others = {kind: (student.copy(), taught) for kind, (student, taught) in given.others.items()}
    for student, _ in others.values():
        student[:, doc] *= 3
    return replace(given, logits=logits, hidden=hidden, others=others)


@every_loss
def test_it_is_refused_in_a_line_where_there_is_nothing_to_learn_from(kind: str) -> None:
    """A cache without signals, of documents without a label."""
    nothing = replace(
        documents("masked-lm"), soft={}, taught=None, labelled=False, others={}, peer=None
    )
    with pytest.raises(ConfigError, match=rf"losses\.{kind}\b") as caught:
        bind(alone(kind), nothing)
    assert len(str(caught.value).splitlines()) == 1
