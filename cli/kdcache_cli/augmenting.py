"""The command that makes a further corpus of one: augment."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdcache_cli import options as o
from kdcache_cli.output import print_json


def augment(
    context: typer.Context,
    corpus: o.Corpus,
    masked_lm: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="Folder or hub name of a masked language model; safetensors only."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, .jsonl.")],
    probability: Annotated[
        float, typer.Option(metavar="P", help="Of a word's being replaced.")
    ] = 0.4,
    candidates: Annotated[
        int, typer.Option(metavar="N", help="Likeliest words that one is replaced by one of.")
    ] = 15,
    samples: Annotated[
        int, typer.Option(metavar="N", help="Texts made of each document, at most.")
    ] = 20,
    max_length: Annotated[
        int, typer.Option(metavar="TOKENS", help="Tokens of a document that the model sees.")
    ] = 128,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Masked copies that run together: one for each word.")
    ] = 64,
    round_: Annotated[
        int, typer.Option("--round", metavar="N", help="Number of the round, written down.")
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is replaced by what.")] = 0,
    device: o.Device = "auto",
    text_column: o.TextColumn = None,
    label_column: o.LabelColumn = None,
    ignore_columns: o.IgnoreColumns = None,
    limit: o.Limit = None,
    as_json: o.AsJson = False,
) -> None:
    """Make further texts of a corpus by a masked LM.

    Each word is masked by itself, and replaced, with a probability, by one of the likeliest words
    in its place, as in TinyBERT. Labels are kept; columns parent, round and operation say where a
    text comes from. Build a cache of it, and train on both. Started again after it was stopped, it
    goes on.
    """
    from kdcache.augmenting import augment as run
    from kdcache.augmenting.run import PROVENANCE

    made = run(
        o.one_corpus(corpus),
        masked_lm=masked_lm,
        out=out,
        probability=probability,
        candidates=candidates,
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        round_number=round_,
        seed=seed,
        device=device,
        **o.columns(context),
        progress=context.obj,
    )
    if as_json:
        print_json({"file": str(made.file), "documents": made.documents, "parents": made.parents})
        return
    print(f"{made.documents:,} texts of {made.parents:,} documents in {made.file}.")
    build = ("kdcache", "build", str(made.file), "--ignore-columns", ",".join(PROVENANCE))
    print(f"Next: {shlex.join(build)} --teacher TEACHER --task TASK --out {made.file.stem}.cache")
