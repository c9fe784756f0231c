"""What distillation buys at home and away: labels only, soft labels, hidden states beside them.

    python benchmarks/distillation_gain.py --choose --data FOLDER   # once, on dev documents
    python benchmarks/distillation_gain.py --data FOLDER [--corpus reviews] [--seeds 10]
    python benchmarks/distillation_gain.py --report

FOLDER holds sst2, reviews and banking77; without it the corpora that need none are run. A teacher
is taught from the labelled documents, run once over all of them, and three students of two layers
are trained: on the labels (`finetune`), on its outputs (`kd`), and on its outputs and hidden states
(`hidden`). All see the same labels and the same dev documents, by which the best weights are kept;
labels get as many steps. Learning rates are chosen on dev documents too, with another draw of
labels. Written are results/gain_settings.json and results/gains.json. Every seed's result is kept
in --out: a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gain_corpora import CUTS, Cut, corpus
from gain_intervals import Flags, paired
from record import RESULTS, save, spread

import kdcache
from kdcache.demo.encoder import encoder_folder
from kdcache.demo.sentences import write
from kdcache.manifest import Json

SETTINGS = RESULTS / "gain_settings.json"
RECIPES = ("finetune", "kd", "hidden")
PAIRS = (("finetune", "kd"), ("finetune", "hidden"), ("kd", "hidden"))
LAYERS = (3, 6)
SIGNALS = ("logits:dense", "hidden:layers=0-3-6,positions=all,dtype=int8")
RATES = (3e-5, 1e-4, 3e-4, 6e-4, 1.2e-3)  # the outer ones only where the best lies beside them
TEACHER_RATE = 1.5e-4
CHOOSING = 1000  # the seed settings are chosen with, which no result is of
TASK = "text-classification"


class Run:
    """One seed of one corpus in a folder of its own."""

    def __init__(self, out: Path, cut: Cut, data: Path | None, seed: int, encoder: Path) -> None:
        self.out, self.cut, self.seed, self.encoder = out, cut, seed, encoder
        self.sentences = corpus(cut, data, seed)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        write(out / "train.csv", self.sentences.train)
        write(out / "dev.csv", self.sentences.dev)
        for domain, sentences in self.sentences.tests.items():
            write(out / f"{domain}.csv", sentences)

    def prepare(self) -> None:
        """Teach the teacher and run it once."""
        kdcache.teach(
            self.encoder, self.out / "train.csv", out=self.out / "teacher",
            dev=self.out / "dev.csv", epochs=self.cut.teacher_epochs,
            learning_rates=TEACHER_RATE, class_weights="none", seed=self.seed, progress=False,
        )  # fmt: skip
        kdcache.build(
            self.out / "train.csv", teacher=self.out / "teacher", task=TASK,
            out=self.out / "cache.zarr", signals=list(SIGNALS), progress=False,
        )  # fmt: skip

    def train(self, recipe: str, rate: float) -> Json:
        """Train a student; its metrics, scores on dev among them."""
        hard = recipe == "finetune"
        result = kdcache.train(
            self.out / "cache.zarr", recipe=recipe, out=self.out / recipe, lr=rate,
            init_from_teacher=LAYERS, dev=self.out / "dev.csv", seed=self.seed, progress=False,
            epochs=self.cut.label_epochs if hard else self.cut.epochs,
        )  # fmt: skip
        return result.metrics

    def right(self, model: str) -> dict[str, str]:
        """Which documents of each domain a model has right, as a 1 or a 0 for each."""
        found = {}
        for domain in self.sentences.tests:
            path = self.out / f"{model}-{domain}.predictions.csv"
            kdcache.evaluate(
                self.out / model, self.out / f"{domain}.csv", predictions=path, progress=False
            )
            with path.open(encoding="utf-8") as file:
                rows = csv.DictReader(file)
                found[domain] = "".join(str(int(r["label"] == r["prediction"])) for r in rows)
        return found


def choose(name: str, cut: Cut, data: Path | None, out: Path, encoder: Path) -> Json:
    """The learning rate of each recipe that scores best on dev documents."""
    run = Run(out / "choosing", cut, data, CHOOSING, encoder)
    run.prepare()
    scores: dict[str, dict[float, float]] = {recipe: {} for recipe in RECIPES}
    for recipe, found in scores.items():
        while left := untried(found):
            for rate in left:
                shutil.rmtree(run.out / recipe, ignore_errors=True)
                found[rate] = run.train(recipe, rate)["dev"]["best"]["value"]
                print(name, recipe, rate, found[rate], flush=True)
    return {
        "rates": {recipe: best(found) for recipe, found in scores.items()},
        "dev_accuracy": {
            recipe: {f"{rate:g}": found[rate] for rate in sorted(found)}
            for recipe, found in scores.items()
        },
        "seed": CHOOSING,
    }


def best(found: dict[float, float]) -> float:
    """The rate that scored best."""
    return max(found, key=found.__getitem__)


def untried(found: dict[float, float]) -> list[float]:
    """The inner rates at first; then what lies beside the best, until the best lies inside."""
    if not found:
        return list(RATES[1:-1])
    at = RATES.index(best(found))
    return [rate for rate in RATES[max(at - 1, 0) : at + 2] if rate not in found]


def one_seed(
    out: Path, cut: Cut, data: Path | None, seed: int, rates: dict[str, float], encoder: Path
) -> Json:
    """What one seed gives; kept in `out`, and read from there if it was run before."""
    note = out / f"{seed}.json"
    if note.is_file():
        earlier: Json = json.loads(note.read_text())
        if earlier["rates"] == rates:
            return earlier
    begun = time.perf_counter()
    run = Run(out / f"seed-{seed}", cut, data, seed, encoder)
    run.prepare()
    for recipe in RECIPES:
        run.train(recipe, rates[recipe])
    found = {
        "seed": seed,
        "rates": rates,
        "right": {model: run.right(model) for model in ("teacher", *RECIPES)},
        "seconds": time.perf_counter() - begun,
    }
    note.write_text(json.dumps(found))
    shutil.rmtree(run.out)
    return found


def summary(cut: Cut, runs: list[Json]) -> Json:
    """Accuracies and paired differences of all seeds, by domain; `away` is all but the first."""
    domains = tuple(runs[0]["right"]["teacher"])
    joined = {"away": domains[1:]} if domains[1:] else {}
    return {
        "training_documents": cut.train,
        "labels": cut.labels,
        "epochs": {"labels": cut.label_epochs, "cache": cut.epochs},
        "rates": runs[0]["rates"],
        "seeds": [run["seed"] for run in runs],
        "seconds_a_seed": spread([run["seconds"] for run in runs]),
        "domains": {domain: scored(runs, [domain]) for domain in domains},
        "joined": {name: scored(runs, parts) for name, parts in joined.items()},
    }


def scored(runs: list[Json], domains: Sequence[str]) -> Json:
    """Accuracies and paired differences over the documents of some domains together."""
    right: dict[str, Flags] = {
        model: np.array([_flags("".join(flags[name] for name in domains)) for flags in found])
        for model, found in ((m, [run["right"][m] for run in runs]) for m in runs[0]["right"])
    }
    return {
        "documents": right["teacher"].shape[1],
        "accuracy": {model: spread(flags.mean(1).tolist()) for model, flags in right.items()},
        "gains": {f"{b} over {a}": paired(right[a], right[b]) for a, b in PAIRS},
    }


def _flags(text: str) -> Flags:
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def folder_of(name: str, data: Path | None) -> Path | None:
    """The folder of a corpus below the one that was named."""
    return data / name.partition(",")[0] if data and CUTS[name].folder else None


def load_settings() -> Json:
    """What was chosen before, by corpus."""
    found: Json = json.loads(SETTINGS.read_text()) if SETTINGS.is_file() else {"corpora": {}}
    return found


def finished(out: Path) -> Iterator[tuple[str, list[Json]]]:
    """The results of every corpus that are in `out`."""
    for name in CUTS:
        notes = sorted((out / name).glob("*.json"), key=lambda path: int(path.stem))
        if notes:
            yield name, [json.loads(note.read_text()) for note in notes]


def main() -> None:
    """Choose settings, or run what is left of every corpus, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with sst2, reviews and banking77")
    parser.add_argument("--corpus", choices=tuple(CUTS), action="append")
    parser.add_argument("--seeds", type=int, help="instead of each corpus's own number")
    parser.add_argument("--out", type=Path, default=Path("distillation-gain"))
    parser.add_argument("--choose", action="store_true", help="choose learning rates on dev")
    parser.add_argument("--report", action="store_true", help="only write what was finished")
    given = parser.parse_args()
    names = [n for n in given.corpus or CUTS if given.data or not CUTS[n].folder]
    settings = load_settings()
    for name in [] if given.report else names:
        cut, data, out = CUTS[name], folder_of(name, given.data), given.out / name
        if given.choose:
            if name not in settings["corpora"]:
                chosen = choose(name, cut, data, out, encoder_folder())
                settings = load_settings()  # another process may have chosen some
                settings["corpora"][name] = chosen
                save("gain_settings", {"corpora": settings["corpora"]})
            continue
        if name not in settings["corpora"]:
            raise SystemExit(f"choose its settings first: --choose --corpus {name!r}")
        rates = settings["corpora"][name]["rates"]
        for seed in range(given.seeds or cut.seeds):
            found = one_seed(out, cut, data, seed, rates, encoder_folder())
            print(name, seed, f"{found['seconds']:.0f} s", flush=True)
    if not given.choose:
        corpora = {name: summary(CUTS[name], runs) for name, runs in finished(given.out)}
        save("gains", {"layers": LAYERS, "corpora": corpora})


if __name__ == "__main__":
    main()
