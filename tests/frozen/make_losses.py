"""Make losses.npz: batches for the shipped recipes, their losses and gradients, in float64.

    python tests/frozen/make_losses.py

It is run when a recipe is added, and makes what is not there; what is there stays as it is, bit for
bit. A case whose paper's loss is found to be another is deleted first, never to make a test pass.
`NAME/given/...` are float32 arrays: outputs of a student and of a teacher. Logits are
spread so that at the recipe's temperature divergences are of the order of 1: where they are small,
float32 leaves few digits of them, by any sum. `NAME/found/...` are the loss, its terms before their
weights, and the gradients at the student's logits, hidden states and projections.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp

from kdcache.training.recipe import load_recipe
from tests.objectives import Array, Found, Given, evaluate

FILE = Path(__file__).with_name("losses.npz")
LENGTHS = np.array([5, 1, 3, 4])
CLASSES, TOKENS, K, MASKED, WIDTH = 5, 14, 4, 6, 8
STUDENT, TEACHER = 2, 4
"""Layers."""
SAME = ("lengths", "labels", "logits", "hidden", "masked")
"""What does not depend on the teacher."""


def spread(rng: np.random.Generator, rows: int, outputs: int, temperature: float) -> Array:
    """Logits [rows, outputs] float32 whose softmax at a temperature is neither flat nor certain."""
    return (1.5 * temperature * rng.standard_normal((rows, outputs))).astype(np.float32)


def states(rng: np.random.Generator, layers: int, width: int) -> Array:
    """Hidden states, the embedding output first."""
    shape = (layers + 1, len(LENGTHS), int(LENGTHS.max()), width)
    return rng.standard_normal(shape).astype(np.float32)


def dense(values: Array) -> dict[str, Array]:
    """Soft labels over all classes, as logits:dense is decoded."""
    ids = np.broadcast_to(np.arange(values.shape[1]), values.shape).copy()
    logprobs = log_softmax(values.astype(np.float64), axis=1).astype(np.float32)
    return {"ids": ids, "logprobs": logprobs, "values": values}


def topk(values: Array) -> dict[str, Array]:
    """The K likeliest and their tail at temperatures 1 and 2, as logits:topk is decoded."""
    exact = log_softmax(values.astype(np.float64), axis=1)
    order = np.argsort(-exact, axis=1, kind="stable")
    inside, outside = (np.take_along_axis(exact, i, 1) for i in (order[:, :K], order[:, K:]))
    found = {
        "logprobs": inside,
        "tail_logmass": logsumexp(outside, axis=1),
        "tail_stat": logsumexp(outside / 2, axis=1),
    }
    return {"ids": order[:, :K].copy()} | {n: x.astype(np.float32) for n, x in found.items()}


def classes(rng: np.random.Generator, temperature: float = 1.0) -> Given:
    """Documents of classes, one of them without a label."""
    outputs, taught = (spread(rng, len(LENGTHS), CLASSES, temperature) for _ in range(2))
    labels = np.array([2, -100, 0, 4])
    return Given(
        task="text-classification",
        lengths=LENGTHS,
        labels=labels,
        logits=outputs,
        hidden=states(rng, STUDENT, WIDTH),
        soft=dense(taught),
    )


def patient(rng: np.random.Generator, temperature: float = 10.0) -> Given:
    """Those of PKD, with the first token's state of every layer of a teacher of the same width."""
    given = classes(rng, temperature)
    return _with(given, taught=states(rng, TEACHER, WIDTH), positions="cls")


def related(rng: np.random.Generator) -> Given:
    """Those of RKD, with the first token's state of a teacher that is wider."""
    return _with(classes(rng), taught=states(rng, TEACHER, WIDTH + 2), positions="cls")


def with_a_peer(rng: np.random.Generator) -> Given:
    """Documents of classes, and what another student says of them."""
    return _with(classes(rng), peer=spread(rng, len(LENGTHS), CLASSES, 1.0))


def projected(rng: np.random.Generator, wider: int = 2, positions: str = "all") -> Given:
    """Those of TinyBERT: every token's state of a teacher that is wider."""
    given = classes(rng)
    weight = rng.standard_normal((WIDTH + wider, WIDTH)).astype(np.float32)
    bias = rng.standard_normal(WIDTH + wider).astype(np.float32)
    taught = states(rng, TEACHER, WIDTH + wider)
    return _with(given, taught=taught, positions=positions, projection=(weight, bias))


def read_by_classifiers(rng: np.random.Generator, temperature: float = 1.0) -> Given:
    """Documents of classes, with what the classifiers of both read."""
    given = classes(rng, temperature)
    pooled = tuple(rng.standard_normal((1, len(LENGTHS), WIDTH)) for _ in SIDES)
    ours, theirs = (values.astype(np.float32) for values in pooled)
    return _with(given, others={"pooled": (ours, theirs)})


def attributed(rng: np.random.Generator) -> Given:
    """Documents of classes, with what either model attributes to each token for each of them."""
    shape = 1, len(LENGTHS), int(LENGTHS.max()), CLASSES
    ours, theirs = (rng.random(shape).astype(np.float32) for _ in SIDES)
    return _with(classes(rng, 2.0), others={"attribution": (ours, theirs)})


def attended(rng: np.random.Generator) -> Given:
    """Those of TinyBERT, with the queries and keys of every block, of two heads."""
    shape = len(LENGTHS), 2, int(LENGTHS.max()), WIDTH // 2
    depths = (STUDENT, TEACHER)
    others = {
        kind: tuple(rng.standard_normal((n, *shape)).astype(np.float32) for n in depths)
        for kind in ("query", "key")
    }
    return _with(projected(rng), others=others)


def wider_and_wider(rng: np.random.Generator) -> Given:
    """Those of MT-BERT: two teachers of other widths, and their maps."""
    first, other = projected(rng), projected(rng, wider=4)
    return of_two(rng, first, other)


def of_two(rng: np.random.Generator, first: Given, other: Given) -> Given:
    """What a student says of documents that two teachers have seen."""
    same = {f.name: getattr(first, f.name) for f in fields(Given) if f.name in SAME}
    return _with(first, further={"other": _with(other, **same)})


def at_points(rng: np.random.Generator) -> Given:
    """What a student says of documents at the texts, and at the points of a further teacher."""
    first, other = classes(rng, 3.0), classes(rng, 3.0)
    points = rng.standard_normal((1, len(LENGTHS), int(LENGTHS.max()), WIDTH)).astype(np.float32)
    moved = spread(rng, len(LENGTHS), CLASSES, 3.0)
    return of_two(rng, first, _with(other, others={"embeddings": (points, points)}, moved=moved))


def attending(rng: np.random.Generator, heads: int = 2, width: int = 4) -> Given:
    """Documents with the queries, keys and values of every token, of as many heads of a width."""
    others = {
        kind: tuple(
            rng.standard_normal((layers, len(LENGTHS), heads, int(LENGTHS.max()), width)).astype(
                np.float32
            )
            for layers in (STUDENT, TEACHER)
        )
        for kind in ("query", "key", "value")
    }
    return _with(classes(rng), others=others)


def every_token(given: Given, rng: np.random.Generator) -> Given:
    """The same with every token's state, query and key of a teacher of the same width."""
    taught, others = states(rng, TEACHER, WIDTH), attending(rng).others
    return _with(given, taught=taught, positions="all", others=others)


def values(rng: np.random.Generator) -> Given:
    """Documents with a value each, one of them without."""
    given = classes(rng)
    outputs, taught = given.logits[:, :1].copy(), given.logits[:, 1:2].copy()
    labels = np.array([1.5, np.nan, -2.0, 0.25], np.float32)
    return _with(given, labels=labels, logits=outputs, soft=dense(taught))


def masked(rng: np.random.Generator) -> Given:
    """Masked tokens, with the likeliest K of a vocabulary; every one has its true token."""
    positions = np.array([1, 4, 5, 11, 15, 17])
    outputs, taught = (spread(rng, MASKED, TOKENS, 2.0) for _ in range(2))
    return Given(
        task="masked-lm",
        lengths=LENGTHS,
        labels=rng.integers(0, TOKENS, MASKED),
        logits=outputs,
        hidden=states(rng, STUDENT, WIDTH),
        masked=positions,
        soft=topk(taught),
    )


def causal(rng: np.random.Generator) -> Given:
    """Every token, with the likeliest K; nothing follows the last of a document."""
    rows = int(LENGTHS.sum())
    outputs, taught = (spread(rng, rows, TOKENS, 1.0) for _ in range(2))
    labels = rng.integers(0, TOKENS, rows)
    labels[np.cumsum(LENGTHS) - 1] = -100
    return Given(
        task="causal-lm",
        lengths=LENGTHS,
        labels=labels,
        logits=outputs,
        hidden=states(rng, STUDENT, WIDTH),
        soft=topk(taught),
    )


def _with(given: Given, **changes: Any) -> Given:
    return Given(**{f.name: getattr(given, f.name) for f in fields(Given)} | changes)


CASES: dict[str, Callable[[np.random.Generator], Given]] = {
    "ad-kd": attributed,
    "alp-kd": lambda rng: patient(rng, temperature=20.0),
    "annealing-kd.annealing": classes,
    "annealing-kd.labels": classes,
    "at": projected,
    "backward-kd": classes,
    "bert-emd": attended,
    "bss": at_points,
    "causal-kd": causal,
    "cc": lambda rng: projected(rng, positions="cls"),
    "crd": related,
    "dml": with_a_peer,
    "finetune": classes,
    "finetune.masked": masked,
    "finetune.values": values,
    "distilbert": lambda rng: _with(
        masked(rng), taught=states(rng, TEACHER, WIDTH), positions="selected"
    ),
    "fitnet.hint": projected,
    "fitnet.labels": lambda rng: classes(rng, 3.0),
    "fsp.flow": projected,
    "fsp.labels": classes,
    "hidden": projected,
    "kd": lambda rng: classes(rng, 2.0),
    "kd.masked": masked,
    "kd-mse": classes,
    "kd-mse.values": values,
    "l2a": classes,
    "meta-kd.intermediate": lambda rng: _with(projected(rng), others=attending(rng).others),
    "meta-kd.prediction": lambda rng: classes(rng, 2.0),
    "mkd": classes,
    "mkd.values": values,
    "minilm.relations": attending,
    "minilmv2.relations": lambda rng: attending(rng, heads=2, width=24),
    "mixed-vocab": projected,
    "mlkd-bert.intermediate": lambda rng: _with(projected(rng), others=attending(rng).others),
    "mlkd-bert.prediction": lambda rng: projected(rng, wider=4),
    "mlm-kd": masked,
    "mobilebert.layer": lambda rng: _with(projected(rng, wider=0), others=attending(rng).others),
    "mobilebert.labels": classes,
    "mt-bert": wider_and_wider,
    "nst": projected,
    "mutual": with_a_peer,
    "one": with_a_peer,
    "pea-kd.patient": patient,
    "pea-kd.predictions": read_by_classifiers,
    "pkd-last": patient,
    "pkd-skip": patient,
    "pkt": related,
    "rkd": related,
    "rl-kd.average": lambda rng: of_two(rng, classes(rng, 10.0), classes(rng, 10.0)),
    "rl-kd.selected": lambda rng: of_two(rng, read_by_classifiers(rng, 10.0), classes(rng, 10.0)),
    "sp": related,
    "simkd": read_by_classifiers,
    "text-smoothing": classes,
    "tinybert.intermediate": lambda rng: _with(projected(rng), others=attending(rng).others),
    "tinybert.prediction": classes,
    "tinybert-general": lambda rng: every_token(masked(rng), rng),
    "skdbert": lambda rng: of_two(rng, classes(rng, 10.0), classes(rng, 10.0)),
    "vid": projected,
}
"""A batch for every shipped recipe, by its name; what follows a dot tells batches apart, or is the
stage of the recipe."""


def recipe_of(name: str) -> Any:
    """The losses of the recipe that a case is for, or of its stage, and who teaches them."""
    whole, _, part = name.partition(".")
    recipe = load_recipe(whole)
    names = [stage.name for stage in recipe.stages]
    recipe = recipe.in_stages()[names.index(part)] if part in names else recipe
    return recipe.losses, {"teaching": recipe.teaching}


SIDES = ("student", "teacher")


def flat(given: Given) -> dict[str, Array]:
    """Its arrays by name."""
    arrays: dict[str, Any] = {f.name: getattr(given, f.name) for f in fields(Given)}
    arrays |= {f"soft.{name}": rows for name, rows in arrays.pop("soft").items()}
    for kind, sides in arrays.pop("others").items():
        arrays |= {f"others.{kind}.{side}": x for side, x in zip(SIDES, sides, strict=True)}
    for name, other in arrays.pop("further").items():
        arrays |= {f"further.{name}.{key}": x for key, x in flat(other).items()}
    pair = arrays.pop("projection") or ()
    arrays |= dict(zip(("projection.weight", "projection.bias"), pair, strict=False))
    return {name: np.asarray(x) for name, x in arrays.items() if x is not None}


def unflat(arrays: dict[str, Array]) -> Given:
    """The batch that `flat` took apart."""
    plain = {n: x for n, x in arrays.items() if "." not in n}
    texts = {n: str(plain.pop(n)) for n in ("task", "positions")}
    pair = [arrays[n] for n in ("projection.weight", "projection.bias") if n in arrays]
    return Given(
        **plain,
        **texts,  # type: ignore[arg-type]  # what is stored is a task
        soft=_below(arrays, "soft."),
        further={
            name: unflat(_below(arrays, f"further.{name}."))
            for name in {n.split(".")[1] for n in arrays if n.startswith("further.")}
        },
        projection=(pair[0], pair[1]) if pair else None,
        others={
            kind: (arrays[f"others.{kind}.student"], arrays[f"others.{kind}.teacher"])
            for kind in {n.split(".")[1] for n in arrays if n.startswith("others.")}
        },
    )


def _below(arrays: dict[str, Array], start: str) -> dict[str, Array]:
    return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}


def numbers(found: Found) -> dict[str, Array]:
    """All of what was found, by name."""
    terms = {f"term.{name}": np.asarray(value) for name, value in found.terms.items()}
    gradients = {f"gradient.{name}": values for name, values in found.gradients.items()}
    return {"total": np.asarray(found.total), **terms, **gradients}


def main() -> None:
    """Add to losses.npz the cases that it lacks."""
    with np.load(FILE) as stored:
        arrays: dict[str, Array] = dict(stored)
    there = {name.partition("/")[0] for name in arrays}
    for name in CASES.keys() - there:
        given = CASES[name](np.random.default_rng(zlib.crc32(name.encode())))
        losses, options = recipe_of(name)
        found = numbers(evaluate(losses, given, **options))
        arrays |= {f"{name}/given/{key}": x for key, x in flat(given).items()}
        arrays |= {f"{name}/found/{key}": x for key, x in found.items()}
    np.savez_compressed(FILE, **arrays)  # type: ignore[arg-type]  # numpy takes names as they come
    print(f"{FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
