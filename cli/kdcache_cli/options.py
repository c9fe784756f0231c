"""Options that several commands share, and what they say of themselves in --help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kdcache.tasks import TASKS
from kdcache_cli import values as v

DTYPES = ("fp32", "bf16", "fp16")
LABEL_TYPES = ("auto", "class", "float", "multi-label", "vector")
UNITS = ("line", "file")


PLAN_OPTIONS = {
    "text_column": "text_columns",
    **{
        name: name
        for name in (
            "label_column",
            "ignore_columns",
            "label_type",
            "limit",
            "unit",
            "max_length",
            "part_tokens",
            "seed",
            "mask_probability",
            "views",
        )
    },
}
"""Parameters of `plan` and `build`, and the fields of `building.planner.PlanOptions` they fill."""


def plan_options(context: typer.Context) -> Any:
    """The options of a plan that were given: the library has defaults of its own for the rest."""
    given = {field: context.params[name] for name, field in PLAN_OPTIONS.items()}
    given["label_column"] = v.one_or_several(given["label_column"])
    return {field: value for field, value in given.items() if value not in (None, [], ())}


COLUMNS = ("text_column", "label_column", "ignore_columns", "limit")


def columns(context: typer.Context) -> Any:
    """Which columns of a file are read, and how many documents, as functions take them."""
    text, label, ignored, limit = (context.params[name] for name in COLUMNS)
    return {
        "text_columns": tuple(text or ()),
        "label_column": v.one_or_several(label),
        "ignore_columns": tuple(ignored or ()),
        "limit": limit,
    }


def one_corpus(paths: list[str]) -> Any:
    """A path alone may be the folder of a plan; several are files of one corpus."""
    return paths[0] if len(paths) == 1 else paths


Corpus = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS",
        help="Files, folders or globs of one kind (CSV, TSV, JSONL, a JSON list, Parquet or text; "
        "all but Parquet may be .gz, .bz2, .xz or .zst; hidden ones are left out), or a saved "
        "dataset.",
        show_default=False,
    ),
]
CorpusOrPlan = Annotated[
    list[str],
    typer.Argument(
        metavar="CORPUS",
        help="Files, folders or globs as for `plan`, or the folder of a plan.",
        show_default=False,
    ),
]
Cache = Annotated[str, typer.Argument(metavar="CACHE", help="Folder or URL of a cache.")]
OfTeacher = Annotated[
    str | None,
    typer.Option(
        "--teacher", metavar="NAME", help="Of a merged cache: the teacher, if not the first."
    ),
]
Task = Annotated[
    str,
    typer.Option(
        metavar="TASK",
        help=f"{', '.join([*TASKS][:-1])} or {[*TASKS][-1]}.",
        callback=v.known("task", TASKS),
    ),
]
TaughtTask = Annotated[
    str,
    typer.Option(
        metavar="TASK",
        help="text-classification: of one class, several, or values a document.",
        callback=v.known("task", TASKS),
    ),
]
TextColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Column of the text; give it twice for pairs. Guessed from common names.",
    ),
]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Column of the labels, which may hold lists; give it once for each class or value "
        "where these have a column each. Guessed from common names; '' means none.",
    ),
]
IgnoreColumns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B",
        help="Columns to leave unused although they look like text.",
        callback=v.names,
    ),
]
LabelType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="class, float (regression), multi-label (several classes a document), vector (several "
        "values) or auto, which looks at the teacher and at them (auto).",
        callback=v.known("label type", LABEL_TYPES),
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", help="Take the first N documents."),
]
Unit = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT",
        help="A document of a text file is a line or the whole file (line).",
        callback=v.known("unit", UNITS),
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS",
        help="Tokens of a document (128): longer ones are cut off, or into windows for "
        "language models.",
    ),
]
PartTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS", help="Tokens of a part, the most a killed build loses (262,144)."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Seed of the order and the masks (0)."),
]
MaskProbability = Annotated[
    float | None,
    typer.Option(metavar="P", help="Share of tokens masked, by tasks that mask (0.15)."),
]
Views = Annotated[
    int | None,
    typer.Option(metavar="N", help="How often a task that masks masks each document anew (1)."),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="RECIPES",
        help="Keep what these recipes need, as in tinybert,minilmv2, in the fewest bytes a token; "
        "in the place of --signal.",
    ),
]
ForwardBatch = Annotated[int, typer.Option(metavar="N", min=1, help="Documents of a forward.")]
ModelMaxLength = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Tokens of a document (as in its training, or 128)."),
]
StudentLayers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Layers of the student that --for and --cache reckon with; half of the teacher's if "
        "not given.",
    ),
]
Signal = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SIGNAL",
        help="What to keep of the teacher, such as logits:topk,k=64 or "
        "hidden:layers=2-4-6,positions=cls,dtype=int8; repeat it for more. Logits come as dense, "
        "topk, topk-small (compressed; draws=16 adds ids drawn from the rest), sampled (n=50 "
        "draws) or hidden-head (all of a vocabulary); hidden states, and likewise query, key and "
        "value of layers, embeddings, and pooled (what a classifier reads), as int8, int4, fp8, "
        "bf16, fp16 or fp32; attention:layers=2-4 is what all three are made of in BERT and its "
        "like; attribution:views=one and jacobian are gradients. fraction=0.2 keeps a fifth of the "
        "tokens or selected positions. "
        "early=hidden:layers=1 gives a signal a name. Logits alone if not given: all of them for "
        "classification, the 64 likeliest for language models.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model."),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the report as JSON, alone on stdout."),
]
