"""Options that the commands share which train a student: from where, by what, on what."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdcache_cli import values as v

Caches = Annotated[
    list[str],
    typer.Argument(
        metavar="CACHE",
        help="Folder or URL of a cache, or of several. Those that differ in task or classes "
        "get a head each; NAME=CACHE names it.",
        show_default=False,
    ),
]
Recipe = Annotated[
    str,
    typer.Option(
        metavar="RECIPE", help="Name of a recipe (`kdcache recipes` lists them) or a TOML file."
    ),
]
Student = Annotated[
    str | None,
    typer.Option(
        metavar="STUDENT",
        help="Start from a pretrained model: folder or hub name; or with new weights from "
        "bilstm or static, as in static:embedding=64.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(metavar="LAYERS", help="Start from layers of the teacher, as in 2-4-6."),
]
Config = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Start from a model configuration with new weights."),
]
SameTokenizer = Annotated[
    bool,
    typer.Option(
        "--same-tokenizer",
        help="Take your word that a --student without a tokenizer has the cache's vocabulary.",
    ),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="corpus|FILE|N",
        help="Keep the embeddings of the tokens that the cache's documents use; of those and "
        "the texts of FILE; or N rows, of the most used.",
    ),
]
Mix = Annotated[
    str | None,
    typer.Option(
        metavar="SHARES",
        help="Shares of the steps that several CACHEs get, as in 0.7,0.3, or by their numbers "
        "of documents: proportional, sqrt, even, annealed. An epoch has as many steps as all "
        "their documents fill; a cache goes on in the next where it stopped, and starts over "
        "when it is through. Without, an epoch is one pass over each.",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Documents of a forward on a device: training.per_device_train_batch_size.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Of new weights, dropout and order: training.seed."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="auto, cpu or cuda, the first GPU that is visible."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a field of the recipe, such as losses.kl.temperature=4, or of a stage: "
        "stages.NAME.training.max_steps=9; repeat it.",
    ),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Of a merged cache: the teacher, if not the first; HEAD=NAME for that of a head.",
    ),
]


def opened(caches: list[str], teachers: list[str] | None) -> Any:
    """The caches of an argument, with the teacher that is chosen for each; by name where named."""
    from kdcache.store import open_cache

    named = v.named(caches, "CACHE")
    chosen = v.of_heads(teachers, named, "--teacher")
    if isinstance(named, dict):
        return {name: open_cache(one, teacher=chosen.get(name)) for name, one in named.items()}
    return [open_cache(one, teacher=chosen.get("")) for one in named]
