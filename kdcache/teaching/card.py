"""The model card of a teacher: what it was taught on, how it was chosen, how good it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdcache.evaluation.score_tables import each_output, score_cell, score_table
from kdcache.labels import LABEL_KINDS
from kdcache.manifest import Json
from kdcache.rendering import Table
from kdcache.rendering.parts import fields
from kdcache.tasks.text_classification import TEXT_CLASSIFICATION
from kdcache.training.card import CARD, front_matter, usage

LICENCE = (
    "These weights come from the encoder above and from the labelled documents: the licences of "
    "both apply. State here the licence that you release the teacher under."
)


def write_card(folder: Path, metrics: Json) -> None:
    """Write the model card of the teacher that is saved in `folder`, in Markdown."""
    sections = [
        front_matter(TEXT_CLASSIFICATION, ["kdcache"]),
        f"# {folder.resolve().name}",
        _summary(metrics),
        fields(_origin(metrics)).markdown(),
        "## How it was chosen",
        _chosen(metrics),
        Table(
            ("learning rate", "epoch", "loss", metrics["chosen_by"]), (*_grid(metrics),)
        ).markdown(),
        "## Scores",
        *_scores(metrics),
        "## How to use it",
        usage(TEXT_CLASSIFICATION),
        "## Licence",
        LICENCE,
    ]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", "utf-8")


def _summary(metrics: Json) -> str:
    return (
        f"A teacher for text classification: the encoder `{metrics['encoder']['name']}`, taught by "
        "kdcache on labelled documents. `metrics.json` beside this file tells all settings, hashes "
        "and scores."
    )


def _origin(metrics: Json) -> Iterator[tuple[str, str]]:
    data, settings = metrics["data"], metrics["settings"]
    kind = LABEL_KINDS[metrics["problem"]]
    what = "values" if kind.no_divergence else "classes"
    yield what, ", ".join(metrics["classes"]) or f"one value ({kind.name})"
    yield "parameters", f"{metrics['parameters']:,}"
    yield "taught on", f"{data['train']:,} labelled documents"
    yield "chosen on", f"{data['dev']:,} documents, {_aside(data, settings)}"
    yield "longest input", f"{settings['max_length']} tokens"
    yield "seed", str(settings["seed"])
    yield "SHA-256 of the corpus", f"`{data['sha256']}`"
    yield "SHA-256 of the encoder's weights", f"`{metrics['encoder']['weights_sha256']}`"


def _aside(data: Json, settings: Json) -> str:
    if data["dev_file"] is not None:
        return f"those of `{data['dev_file']}`"
    return f"{100 * settings['dev_split']:.4g}% set aside of the corpus"


def _chosen(metrics: Json) -> str:
    chosen, weights = metrics["chosen"], metrics["class_weights"]
    pooler = {"own": ", on the encoder's own pooler", "refitted": ", on a refitted pooler"}
    start = f"The head was fitted first{pooler.get(metrics['start']['pooler'], '')}. "
    text = (
        f"The best {metrics['chosen_by']} on the dev documents decided: learning rate "
        f"{chosen['learning_rate']:g}, epoch {chosen['epoch']}."
        if chosen["epoch"]
        else "No epoch of fine-tuning was better on the dev documents than that start."
    )
    if weights is None:
        return start + text
    each = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
    return f"{start}{text} Classes weighed in the loss: {each}."


def _grid(metrics: Json) -> Iterator[tuple[str, ...]]:
    by = metrics["chosen_by"]
    for point in metrics["grid"]:
        for epoch in point["epochs"]:
            scores = epoch["dev"]
            text = "diverged" if scores is None else score_cell(scores, by)
            loss = "" if epoch["loss"] is None else f"{epoch['loss']:.4g}"
            yield f"{point['learning_rate']:g}", str(epoch["epoch"]), loss, text


def _scores(metrics: Json) -> Iterator[str]:
    sides = {"dev": metrics["dev"]}
    if "evaluation" in metrics:
        sides[f"`{metrics['evaluation']['file']}`"] = metrics["evaluation"]
    yield (
        "Intervals are of 95%. What was chosen on the dev documents looks a little better on them "
        f"than it is; {_apart(metrics.get('evaluation', {}).get('seen', 0))}."
    )
    yield score_table(sides, TEXT_CLASSIFICATION.name, "dev").markdown()
    if each := each_output(list(sides.values())[-1]):
        yield each.markdown()


def _apart(seen: int) -> str:
    """Whether an evaluation file was kept apart."""
    if not seen:
        return "a file given with `--eval` was not chosen on"
    return f"{seen:,} documents of the other file were taught or chosen on, and say too much"
