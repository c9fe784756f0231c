"""Options that several commands share, and what they say of themselves in --help."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from kdcache.errors import ConfigError, one_of
from kdcache.tasks import TASKS

DTYPES = ("fp32", "bf16", "fp16")
LABEL_TYPES = ("auto", "class", "float", "multi-label", "vector")
UNITS = ("line", "file")


def known(what: str, names: Iterable[str]) -> Callable[[str | None], str | None]:
    """A check that a value, where given, is one of `names`, made before anything is loaded."""

    def check(value: str | None) -> str | None:
        return value if value is None else one_of(what, value, names)

    return check


def layers(text: str | None) -> tuple[int, ...] | None:
    """Layers written as 2-4-6; ConfigError if they are not."""
    if text is None:
        return None
    try:
        return tuple(int(layer) for layer in text.split("-"))
    except ValueError as error:
        raise ConfigError(f"--init-from-teacher takes layers as in 2-4-6; got {text!r}") from error


def names(values: list[str] | None) -> list[str] | None:
    """Names written as A,B, the option given once or more often."""
    found = [name.strip() for value in values or () for name in value.split(",")]
    return [name for name in found if name] or None


def one_or_several(values: list[str] | None) -> str | list[str] | None:
    """A name that is given once by itself, others as a list."""
    return values[0] if values and len(values) == 1 else values or None


def named(values: list[str] | None, what: str) -> Any:
    """NAME=VALUE, given once or more often, as a mapping; values without names as a list.

    A path that is there is no name. Raises ConfigError where some have names, or two have one.
    """
    pairs = [_name_and_value(value, what) for value in values or ()]
    heads = [name for name, _ in pairs if name]
    if not heads:
        return [value for _, value in pairs]
    if len(heads) < len(pairs):
        raise ConfigError(
            f"{what} is given a name each, as in one=A two=B, or none; got {' '.join(values or ())}"
        )
    if twice := [name for name in heads if heads.count(name) > 1]:
        raise ConfigError(f"{what} names {twice[0]!r} twice: give each its own, as in one=A two=B")
    return dict(pairs)


def _name_and_value(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or os.path.exists(text):
        return "", text
    if not (name and value):
        where = "behind" if name else "before"
        raise ConfigError(f"nothing stands {where} the = of {what} {text}: write it as in one=A")
    return (name, value) if re.fullmatch(r"[\w-]+", name) else ("", text)


def one_named(values: list[str] | None, flag: str) -> Any:
    """The same for an option that names one thing, or one for each head of a student."""
    found = named(values, flag)
    if isinstance(found, list) and len(found) > 1:
        raise ConfigError(f"{flag} is given once, or once for each head as NAME=...; got {found}")
    return found[0] if isinstance(found, list) and found else found or None


def of_heads(values: list[str] | None, caches: Any, flag: str) -> dict[str, Any]:
    """What an option says of each named cache, by its name; of caches without names, under ""."""
    found = one_named(values, flag)
    names = [*caches] if isinstance(caches, dict) else []
    if not isinstance(found, dict):
        return dict.fromkeys(names or [""], found)
    if not names:
        raise ConfigError(
            f"{flag} {next(iter(found))}=... is for a cache of that name, and none has one: leave "
            f"the name out, or give each cache one ({next(iter(found))}=CACHE)"
        )
    for name in found:
        one_of(f"name of a cache in {flag}", name, names)
    return found


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
    values = {field: context.params[name] for name, field in PLAN_OPTIONS.items()}
    values["label_column"] = one_or_several(values["label_column"])
    return {field: value for field, value in values.items() if value not in (None, [], ())}


COLUMNS = ("text_column", "label_column", "ignore_columns", "limit")


def columns(context: typer.Context) -> Any:
    """Which columns of a file are read, and how many documents, as functions take them."""
    text, label, ignored, limit = (context.params[name] for name in COLUMNS)
    return {
        "text_columns": tuple(text or ()),
        "label_column": one_or_several(label),
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
        callback=known("task", TASKS),
    ),
]
TaughtTask = Annotated[
    str,
    typer.Option(
        metavar="TASK",
        help="text-classification: of one class, several, or values a document.",
        callback=known("task", TASKS),
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
        callback=names,
    ),
]
LabelType = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="class, float (regression), multi-label (several classes a document), vector (several "
        "values) or auto, which looks at the teacher and at them (auto).",
        callback=known("label type", LABEL_TYPES),
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
        callback=known("unit", UNITS),
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
    typer.Option(metavar="P", help="Share of tokens masked, for masked-lm (0.15)."),
]
Views = Annotated[
    int | None,
    typer.Option(metavar="N", help="How often masked-lm masks each document anew (1)."),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="RECIPES",
        help="Keep what these recipes need, as in tinybert,minilmv2, in the fewest bytes; in the "
        "place of --signal.",
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
        "like. fraction=0.2 keeps a fifth of the tokens or selected positions. "
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
