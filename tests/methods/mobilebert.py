"""MobileBERT: the transfer of one layer after the other, and the soft labels that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kdcache.labels.classes import CLASSES
from kdcache.losses import Pair, Step
from kdcache.plans.batch import Rows
from kdcache.signals import LOGITS, Activations
from kdcache.training.recipe import load_recipe
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


def losses_of(stage: str) -> dict[str, Any]:
    """Those of a stage of the recipe, by name."""
    (found,) = (one for one in load_recipe("mobilebert").stages if one.name == stage)
    return dict(found.losses)


def ragged(given: Given) -> Found:
    """All layers at their gates, over the tokens there are."""
    return _transfer(given, torch.arange(len(given.lengths)))


def padded(given: Given) -> Found:
    """The same where pads are counted: of the documents that have none."""
    found, cut = _transfer(given, given.whole), len(given.lengths) - len(given.whole)
    return replace(found, parts={}, cut=cut) if cut else found


def _transfer(given: Given, docs: torch.Tensor) -> Found:
    losses, gates = losses_of("layer"), given["gates"]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("fmt", "att", "mean", "var")}
    total = torch.zeros((), dtype=given.dtype)
    for layer, gate in enumerate(gates, 1):
        alone = {name: replace(one, layer_map=((layer, layer),)) for name, one in losses.items()}
        of = _Layer(given, docs, layer)
        found = {name: of.value(one) for name, one in alone.items()}
        found["attention"] = found["attention"] + of.entropy()  # divergence to cross-entropy
        weighted = [alone[name].weight * one for name, one in found.items()]
        total = total + gate * torch.stack(weighted).sum() / len(gates)
        moments = alone["moments"]
        parts["fmt"].append(found["hidden"])
        parts["att"].append(found["attention"])
        parts["mean"].append(of.value(replace(moments, mean=1.0, variance=0.0)))
        parts["var"].append(of.value(replace(moments, mean=0.0, variance=1.0)))
    return Found(loss=total, parts={f"out_{n}": torch.stack(v) for n, v in parts.items()})


class _Layer:
    """Both sides of a layer, of some of the documents."""

    def __init__(self, given: Given, docs: torch.Tensor, layer: int) -> None:
        self.given, self.docs, self.layer = given, docs, layer
        self.lengths = given.lengths[docs]

    def value(self, loss: Any) -> torch.Tensor:
        """What a loss comes to."""
        scores = loss.kind == "attention"
        pairs = self._scores() if scores else [self._states()]
        heads = self.given["s_scores"].shape[2] if scores else 0
        return value(loss, pairs, self.lengths, heads=heads)

    def entropy(self) -> torch.Tensor:
        """That of the teacher's attention, mean over heads and tokens."""
        scores = self.given["t_scores"][self.layer - 1, self.docs]
        rows = [
            entropy(own[:, :n, :n].flatten(0, 1), 1.0).sum()
            for own, n in zip(scores, self.lengths.tolist(), strict=True)
        ]
        return torch.stack(rows).sum() / (scores.shape[1] * self.lengths.sum())

    def _states(self) -> Pair:
        ours, theirs = (
            tokens(self.given[f"{side}_hidden"][self.layer, self.docs], self.lengths)
            for side in "st"
        )
        return Pair(ours, layer_rows(theirs))

    def _scores(self) -> list[Pair]:
        ours, theirs = (
            query_and_key(self.given[f"{side}_scores"][self.layer - 1, self.docs], self.lengths)
            for side in "st"
        )
        return [Pair(mine, layer_rows(known)) for mine, known in zip(ours, theirs, strict=True)]


def soft(given: Given) -> Found:
    """Cross-entropy to the mean of the teacher's probabilities and the true tokens.

    Rows have weights, which count whole documents in kdcache: a document of one row each. What
    they are over has 1e-5 more in the published code, lest it be 0.
    """
    losses = losses_of("labels")
    assert losses["hard"].weight == given.number("ground_truth_ratio")
    batch = batch_of(one_each(len(given["weights"])), given["mlm_labels"])
    batch["example_weight"] = given["weights"]
    total = float(given["weights"].sum()) + 1e-5
    step = Step(
        batch=batch,
        labels=CLASSES,
        activations=Activations(values={LOGITS: given["s_logits"].detach()}, mask=batch.mask),
        rows=Rows("document"),
        total=total,
    )
    own = entropy(given["t_logits"], 1.0)
    hard, kl = losses["hard"], losses["kl"]
    labelled = replace(step, rows=Rows("document", labelled=True))
    parts = (
        hard.weight * hard.value([Pair(given["s_logits"], given["mlm_labels"])], labelled),
        kl.weight * kl.value([Pair(given["s_logits"], dense(given["t_logits"]))], step),
        kl.weight * (step.weight * own).sum(),
    )
    return Found(loss=torch.stack(parts).sum())


CASES = {"mobilebert": padded, "mobilebert.ragged": ragged, "mobilebert.pd": soft}
