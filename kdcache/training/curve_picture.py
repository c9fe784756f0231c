"""Curves of a run for a page or a notebook: the dev set with its teacher, and the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from kdcache.evaluation.score_tables import called, teachers_score
from kdcache.manifest import Json
from kdcache.rendering import Picture
from kdcache.rendering.drawing import BLUE, COLOURS, GREY, ORANGE, picture

PANEL = 2.3  # inches
TERMS = len(COLOURS)  # of a loss, that are told apart


def curve_picture(log: Sequence[Json], dev: Json | None, *, name: str, of: str) -> Picture | None:
    """Draw the student's score on its dev set, if it has one, above its loss and the terms of it.

    `log` is the log history of a run and `dev` what its metrics tell of its choice. `name` is that
    of the picture and `of` the student's. None where there is nothing to draw.
    """
    entries = [entry for entry in log if entry.get("loss") is not None and "step" in entry]
    scored = dev if dev and dev.get("points") else None
    panels = [*([_dev(scored)] if scored else []), *([_loss(entries)] if entries else [])]
    if not panels:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            panel(axis)
        axes[-1].set_xlabel("step")

    told = [*(_dev_text(scored) if scored else []), *_loss_text(entries)]
    return picture(name, f"{of}: {'; '.join(told)}", draw, height=PANEL * len(panels))


def _dev(dev: Json) -> Any:
    def draw(axis: Any) -> None:
        best, teacher = dev["best"], dev.get("teacher")
        points = [(one["step"], one["value"]) for one in dev["points"] if one["value"] is not None]
        axis.plot(*zip(*points, strict=True), "o-", color=BLUE, ms=4)
        kept = f"kept: {best['value']:.4g}"
        axis.plot(best["step"], best["value"], "*", color=BLUE, ms=13, label=kept)
        if teacher is not None:
            line = f"teacher: {teachers_score(teacher)}"
            axis.axhline(teacher["value"], color=ORANGE, ls="--", lw=1.4, label=line)
        axis.margins(y=0.15)
        axis.set_title(f"dev: {called(dev['metric'])}", pad=22)
        axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 0.98))

    return draw


def _dev_text(dev: Json) -> Iterator[str]:
    best, teacher = dev["best"], dev.get("teacher")
    yield (
        f"{called(dev['metric'])} on the dev set at {len(dev['points'])} points, the best "
        f"{best['value']:.4g} at step {best['step']:,}"
    )
    if teacher is not None:
        yield f"the teacher's {teachers_score(teacher)}"


def _terms(entries: Sequence[Json]) -> list[str]:
    names = dict.fromkeys(n for entry in entries for n in entry if n.startswith("loss_"))
    return list(names)[:TERMS] if len(names) > 1 else []


def _loss(entries: Sequence[Json]) -> Any:
    def draw(axis: Any) -> None:
        for name, colour in zip(["loss", *_terms(entries)], (GREY, *COLOURS), strict=False):
            points = [
                (entry["step"], entry[name]) for entry in entries if entry.get(name) is not None
            ]
            label = "sum" if name == "loss" else name.removeprefix("loss_").replace("_", " ")
            width = 2.0 if name == "loss" else 1.4
            axis.plot(*zip(*points, strict=True), color=colour, lw=width, label=label)
        for before, after in pairwise(entries):
            if before.get("stage") != after.get("stage"):
                axis.axvline(before["step"], color=GREY, ls=":", lw=1.2)
        several = len(axis.lines) > 1
        axis.set_title("loss" if not several else "loss: weighted sum and terms", pad=6)
        if several:
            axis.legend()
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))

    return draw


def _loss_text(entries: Sequence[Json]) -> Iterator[str]:
    if entries:
        first, last = entries[0], entries[-1]
        yield f"loss from {first['loss']:.4g} to {last['loss']:.4g} in {last['step']:,} steps"
