"""What the figures of shipped models say: what int8 costs, and whether distilling was worth it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdcache.manifest import Json

TIE = 1.05  # times: a latency so near is the same


def notes(models: Mapping[str, Json], score: str, shipped: str) -> list[str]:
    """What a person should know of the models measured, a sentence each.

    `models` are the rows of the table by name ("fp32", "int8", "teacher_fp32", "teacher_int8"),
    `score` names the figure that counts, `shipped` the row that is written.
    """
    return [*_losses(models, score), *_worth(models, score, shipped)]


def unmeasured(shipped: str) -> list[str]:
    """What a person should know of a model that nothing was measured of."""
    if shipped != "int8":
        return []
    return ["what int8 costs was not measured: --measure FILE, labelled documents, tells its score"]


def _losses(models: Mapping[str, Json], score: str) -> Iterator[str]:
    for prefix, who in (("", "the student"), ("teacher_", "the teacher")):
        full, small = models.get(f"{prefix}fp32"), models.get(f"{prefix}int8")
        if full is None or small is None:
            continue
        yield (
            f"int8 takes {who} to {small['bytes'] / full['bytes']:.2f} of its bytes and its "
            f"{score} from {_figure(full[score])} to {_figure(small[score])}{_agreement(small)}"
        )


def _agreement(row: Json) -> str:
    if "agreement" not in row:
        return ""
    return f"; it names another class than torch for {1 - row['agreement']:.1%} of the texts"


def _worth(models: Mapping[str, Json], score: str, shipped: str) -> Iterator[str]:
    teacher = models.get("teacher_int8")
    if teacher is None:
        yield "whether distilling was worth it shows beside the teacher in int8: --teacher FOLDER"
        return
    beaten = [name for name in ("fp32", "int8") if beats(teacher, models[name], score)]
    if shipped in beaten and len(beaten) == 2:
        yield (
            "distilling was not worth it here: the teacher in int8 is no larger and no slower than "
            "this student and scores as well or better; ship the teacher"
        )
    elif shipped in beaten:
        yield (
            f"the teacher in int8 is no larger and no slower than this student in {shipped} and "
            "scores as well or better: ship the student with --int8, or the teacher"
        )
    elif beaten:
        yield f"the teacher in int8 would beat this student in {beaten[0]} on all three axes"


def beats(one: Json, other: Json, score: str) -> bool:
    """Whether a model is as small, as fast and as good as another, or better."""
    mine, theirs = one[score], other[score]
    return (
        one["bytes"] <= other["bytes"]
        and one["p50_ms"] <= TIE * other["p50_ms"]
        and mine is not None
        and (theirs is None or mine >= theirs)
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
