"""Kinds of losses, layer maps and weights of hidden states and attention, from one cache.

    python benchmarks/loss_map_weight.py --data FOLDER [--steps 300] [--seeds 3]
        [--map NAME ...] [--weight W ...] [--rate R ...]

FOLDER holds sst2 and reviews. The study of arXiv:2308.13958 on one teacher of SST-2, run once: a
student of three layers learns soft labels beside hidden states and attention, for each kind of loss
and each layer map. Learning rate, at weights in the middle, and then both weights are chosen on dev
documents with a seed of their own; students of further seeds are scored on test documents beside
those of soft labels alone. All means are over real tokens, and layers are added up, so weights mean
the same for every map. Written are results/loss_map_weight.json and docs/loss_map_weight.png, and a
table is printed. Every student's scores are kept in --out: a run that is stopped goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from gain_intervals import paired
from loss_map_weight_plot import draw, table
from record import save, spread
from trial import BATCH, CHOOSING, Trial, flags, right

from kdcache.losses import AttentionScores, Cosine, HiddenMSE, Loss, SoftKL
from kdcache.manifest import Json
from kdcache.training.recipe import Recipe, load_recipe

LAYERS = (2, 4, 6)
RATES, WEIGHTS = (1e-4, 3e-4, 6e-4), (0.1, 1.0, 10.0)
MAPS = ("uniform", "skip", "last", "first")
HIDDEN: dict[str, Callable[..., Loss]] = {"mse": HiddenMSE, "cosine": Cosine}
ATTENTION = {"mse": "scores", "kl": "probabilities"}
PICTURE = Path(__file__).parents[1] / "docs" / "loss_map_weight.png"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Kinds of losses, a layer map, and the weights beside soft labels of weight 1."""

    hidden: str
    attention: str
    layer_map: str
    w_hidden: float = 1.0
    w_attention: float = 1.0

    @property
    def recipe(self) -> Recipe:
        """Soft labels as in `kd`, hidden states and attention."""
        base = load_recipe("kd")
        layers: Any = {"layer_map": self.layer_map, "layers": "sum"}
        losses: dict[str, Loss] = {
            "kl": SoftKL(temperature=2.0),
            "hidden": HIDDEN[self.hidden](
                weight=self.w_hidden, positions="all", shared_projection=True, **layers
            ),
            "attention": AttentionScores(
                weight=self.w_attention, compare=ATTENTION[self.attention], **layers
            ),
        }
        return replace(base, name=str(self), description="", paper="", losses=losses)

    def __str__(self) -> str:
        return "-".join(f"{value}" for value in asdict(self).values())


def groups(maps: Sequence[str]) -> Iterator[Cell]:
    """Every pair of kinds on every map."""
    for hidden, attention, layer_map in product(HIDDEN, ATTENTION, maps):
        yield Cell(hidden=hidden, attention=attention, layer_map=layer_map)


@dataclass(frozen=True, kw_only=True)
class Study:
    """The trial, and what of it is run.

    Attributes:
        weights: those that each of two losses may have.
        rates: learning rates.
        seeds: students that a setting is scored by.
    """

    trial: Trial
    maps: tuple[str, ...] = MAPS
    weights: tuple[float, ...] = WEIGHTS
    rates: tuple[float, ...] = RATES
    seeds: int = 3

    def prepare(self, data: Path) -> None:
        """Make the cache that serves every cell of the study, whichever are run."""
        self.trial.prepare(data, [cell.recipe for cell in groups(MAPS)])

    @cached_property
    def notes(self) -> Path:
        """Where scores of students of this many steps are kept."""
        return self.trial.out / f"scores-{self.trial.steps}"

    def dev(self, recipe: Recipe, rate: float) -> float:
        """What a student with the seed of settings scores on dev."""

        def score() -> float:
            return self.trial.train(recipe, rate, CHOOSING).dev

        return float(self._kept(f"{recipe.name}-{rate:g}", score))

    def scored(self, recipe: Recipe, rate: float, seed: int) -> Json:
        """What a student scores on dev, and what it has right of test documents."""

        def score() -> Json:
            result = self.trial.train(recipe, rate, seed)
            return {"dev": result.dev, "right": flags(self.trial.answers(result.folder))}

        found: Json = self._kept(f"{recipe.name}-{rate:g}-seed-{seed}", score)
        return found

    def _kept(self, name: str, make: Callable[[], Any]) -> Any:
        note = self.notes / f"{name}.json"
        if note.is_file():
            return json.loads(note.read_text())
        found = make()
        self.notes.mkdir(exist_ok=True)
        scratch = note.with_suffix(".part")
        scratch.write_text(json.dumps(found))
        os.replace(scratch, note)
        print(name, found if isinstance(found, float) else found["dev"], flush=True)
        return found

    def group(self, cell: Cell) -> Json:
        """Choose the rate and the weights of kinds on a map, and score what is chosen."""
        middle = sorted(self.weights)[len(self.weights) // 2]
        cell = replace(cell, w_hidden=middle, w_attention=middle)
        rates = {rate: self.dev(cell.recipe, rate) for rate in self.rates}
        rate = best(rates)
        pairs = product(self.weights, self.weights)
        cells = [replace(cell, w_hidden=h, w_attention=a) for h, a in pairs]
        dev = {one: self.dev(one.recipe, rate) for one in cells}
        chosen = best(dev)
        return {
            **asdict(chosen),
            "rate": rate,
            "dev_by_rate": {f"{rate:g}": score for rate, score in rates.items()},
            "dev_by_weights": [
                {"w_hidden": one.w_hidden, "w_attention": one.w_attention, "dev": score}
                for one, score in dev.items()
            ],
            **self._scores(chosen.recipe, rate),
        }

    def plain(self) -> Json:
        """Soft labels alone, at the rate that is best for them."""
        recipe = load_recipe("kd")
        rates = {rate: self.dev(recipe, rate) for rate in self.rates}
        return {"rate": best(rates), **self._scores(recipe, best(rates))}

    def _scores(self, recipe: Recipe, rate: float) -> Json:
        found = [self.scored(recipe, rate, seed) for seed in range(self.seeds)]
        dev = spread([one["dev"] for one in found])
        return {"dev": dev, "right": [one["right"] for one in found]}

    def run(self) -> Json:
        """All that is left of the study; its figures."""
        plain = self.plain()
        rows = [self.group(cell) for cell in groups(self.maps)]
        domains = {"home": self.trial.domains[:1], "away": self.trial.domains[1:]}
        base = plain.pop("right")
        for row in rows:
            answers = row.pop("right")
            for where, names in domains.items():
                hits = right(answers, names)
                row[where] = spread(hits.mean(1).tolist())
                row[f"{where}_gain"] = paired(right(base, names), hits)
        for where, names in domains.items():
            plain[where] = spread(right(base, names).mean(1).tolist())
        return {
            "layers": self.trial.layers,
            "steps": self.trial.steps,
            "batch": BATCH,
            "seeds": self.seeds,
            "weights": self.weights,
            "rates": self.rates,
            "kd": plain,
            "rows": rows,
        }


def best(scores: dict[Any, float]) -> Any:
    """The setting that scored best; the first of several."""
    return max(scores, key=scores.__getitem__)


def main() -> None:
    """Run what is left; write figures and picture, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sst2 and reviews")
    parser.add_argument("--out", type=Path, default=Path("loss_map_weight"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--map", action="append", choices=MAPS)
    parser.add_argument("--weight", action="append", type=float)
    parser.add_argument("--rate", action="append", type=float)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--dry", action="store_true", help="write no figures")
    given = parser.parse_args()
    study = Study(
        trial=Trial(out=given.out, layers=LAYERS, steps=given.steps),
        maps=tuple(given.map or MAPS),
        weights=tuple(given.weight or WEIGHTS),
        rates=tuple(given.rate or RATES),
        seeds=given.seeds,
    )
    study.prepare(given.data)
    figures = study.run()
    print(table(figures))
    draw(given.picture, figures)
    if not given.dry:
        save("loss_map_weight", figures)


if __name__ == "__main__":
    main()
