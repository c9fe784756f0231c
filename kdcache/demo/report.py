"""What a demo came to: models with their scores, gains, costs and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from kdcache.demo.law import Costs
from kdcache.demo.picture import CACHE as FROM_CACHE
from kdcache.demo.picture import GREY, Row, draw
from kdcache.demo.picture import LOOP as FROM_LABELS
from kdcache.demo.scores import accuracy, gains, joined, right
from kdcache.demo.sentences import Corpus
from kdcache.demo.settings import Settings
from kdcache.demo.steps import Steps
from kdcache.manifest import Json

TEACHER, CACHE, LABELS = "teacher", "cache.zarr", "student-from-labels"
LOOP, SHIPPED, PREDICTIONS = "loop", "shipped", "predictions"
FP32 = f"{TEACHER}-fp32"
PICTURE = "demo.png"


def student(layers: Sequence[int]) -> str:
    """The folder of the student of these layers."""
    return f"student-{len(layers)}"


def named(layers: Sequence[int]) -> str:
    """What a student is made of."""
    plural = "s" if len(layers) > 1 else ""
    return f"{len(layers)} layer{plural} ({'-'.join(map(str, layers))} of the teacher)"


def report(steps: Steps, settings: Settings, corpus: Corpus) -> Json:
    """Figures of a finished demo; the picture is drawn.

    Returns "corpus", "source", "settings", "sentences", "steps", "models" (in the order of the
    table: "name", "bytes", "p50_ms", "p95_ms" and "scores" by domain), "gains" of the baseline over
    itself trained from labels, "costs" in seconds, and the paths "folder", "picture", "student" and
    "shipped".
    """
    costs, models = _costs(steps, settings), _models(steps, settings)
    picture = steps.out / PICTURE
    domains = list(corpus.tests)
    kinds = [domains[0], *([", ".join(domains[1:])] if domains[1:] else [])]
    draw(picture, costs, _trained(steps, settings), [], _rows(steps, models), kinds)
    best = student(settings.baseline)
    predictions = steps.out / PREDICTIONS
    return {
        "corpus": corpus.name,
        "source": corpus.source,
        "settings": asdict(settings),
        "sentences": {
            "train": len(corpus.train),
            "labelled": sum(s.label != "" for s in corpus.train),
            "dev": len(corpus.dev),
            "tests": {domain: len(rows) for domain, rows in corpus.tests.items()},
        },
        "steps": steps.done,
        "models": models,
        "gains": gains(predictions / f"{LABELS}.csv", predictions / f"{best}.csv"),
        "costs": {**asdict(costs), "saving": costs.saving, "crossing": costs.crossing},
        "folder": str(steps.out),
        "picture": str(picture),
        "student": str(steps.out / best),
        "shipped": str(steps.out / SHIPPED / best),
    }


def _models(steps: Steps, settings: Settings) -> dict[str, Json]:
    layers = steps.done[TEACHER]["layers"]
    names = {FP32: f"teacher, {layers} layers, fp32", TEACHER: f"teacher, {layers} layers, int8"}
    for copied in settings.students:
        names[student(copied)] = f"{_count(copied)}, int8, from the cache"
    names[LABELS] = f"{_count(settings.baseline)}, int8, from labels"
    shipped, timed = (steps.done[step]["models"] for step in (SHIPPED, PREDICTIONS))
    return {
        key: {"name": names[key], **row, **timed[key], "scores": _scores(steps, key)}
        for key, row in shipped.items()
    }


def _count(layers: Sequence[int]) -> str:
    return f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"


def _scores(steps: Steps, model: str) -> Json:
    found = right(_predictions(steps, model))
    return {domain: accuracy(rows) for domain, rows in found.items()}


def _predictions(steps: Steps, model: str) -> Path:
    return steps.out / PREDICTIONS / f"{model}.csv"


def _costs(steps: Steps, settings: Settings) -> Costs:
    seconds = [steps.done[student(layers)]["seconds"] for layers in settings.students]
    return Costs(
        build=steps.done[CACHE]["seconds"],
        teacher=steps.done[LOOP]["teacher_step_seconds"] * settings.steps,
        student=sum(seconds) / len(seconds),
        epochs=settings.epochs,
    )


def _trained(steps: Steps, settings: Settings) -> list[tuple[float, float]]:
    """Students trained so far, and the seconds until then."""
    gone, found = steps.done[CACHE]["seconds"], []
    for number, layers in enumerate(settings.students, 1):
        gone += steps.done[student(layers)]["seconds"]
        found.append((float(number), gone))
    return found


def _rows(steps: Steps, models: Mapping[str, Json]) -> list[Row]:
    colours = {FP32: GREY, TEACHER: GREY, LABELS: FROM_LABELS}
    rows = []
    for key, model in models.items():
        kinds = joined(right(_predictions(steps, key)))
        name = model["name"].replace(", from the cache", "").replace(", int8, from", "\nfrom")
        rows.append(Row(name, [accuracy(r) for r in kinds], (colours.get(key, FROM_CACHE),)))
    return rows
