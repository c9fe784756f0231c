"""Pictures of a report: scores with intervals, scores against costs, dev sets of all students."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kdcache.evaluation.score_tables import called, score_cell, with_bounds
from kdcache.rendering import Picture
from kdcache.rendering.drawing import BLUE, COLOURS, ORANGE, picture
from kdcache.reporting.facts import StudentFacts
from kdcache.reporting.groups import Group
from kdcache.reporting.pareto import Cost, Model

LONGEST = 24  # letters of a name in a picture
MOST = 30  # models of one


def short(name: str) -> str:
    """A name that fits into a picture."""
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"


def plain(name: str) -> str:
    """A name that matplotlib reads as it stands."""
    return short(name).replace("$", r"\$")


def _error(value: float, interval: Sequence[float] | None) -> list[list[float]] | None:
    """How far an interval goes below and above a value, as matplotlib takes it."""
    if interval is None:
        return None
    return [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]


def score_picture(group: Group, name: str) -> Picture | None:
    """The headline score of every model of a group with its interval; None where none has one."""
    known = [(n, side) for n, side in group.sides.items() if side.get(group.metric) is not None]
    if not group.metric or len(known) < 2:
        return None
    known = known[:MOST]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for place, (one, side) in enumerate(known):
            value, interval = side[group.metric], side.get(f"{group.metric}_interval")
            error = _error(value, interval)
            colour = ORANGE if one in group.teachers else BLUE
            axis.errorbar(value, place, xerr=error, fmt="o", color=colour, ms=6, capsize=3)
        axis.set_yticks(range(len(known)), [plain(one) for one, _ in known])
        axis.set_ylim(len(known) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(f"{group.label} (95% interval)")

    alt = "; ".join(f"{one} {score_cell(side, group.metric)}" for one, side in known)
    return picture(name, f"{group.label}: {alt}", draw, height=0.9 + 0.3 * len(known))


def cost_picture(group: Group, cost: Cost, models: Sequence[Model], name: str) -> Picture | None:
    """Scores of models against what they cost, and the line of those that nothing beats.

    None where there are fewer than two.
    """
    if len(models) < 2:
        return None
    shown = models[:MOST]
    front = sorted((one.cost, one.score) for one in shown if one.front)

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        axis.step(*zip(*front, strict=True), where="post", color=BLUE, lw=1.2, alpha=0.6)
        for one in shown:
            colour = ORANGE if one.teacher else BLUE
            error = _error(one.score, one.interval)
            fill = "full" if one.front else "none"
            axis.errorbar(
                one.cost, one.score, yerr=error, fmt="o", color=colour, ms=6, fillstyle=fill,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        _name(axis, shown)
        _scale(axis, [one.cost for one in shown])
        axis.margins(x=0.15, y=0.12)
        axis.set_xlabel(cost.label)
        axis.set_ylabel(group.label)

    alt = "; ".join(_weighed(one) for one in shown)
    return picture(name, f"{group.label} against {cost.label}: {alt}", draw, height=3.0)


def _scale(axis: Any, costs: Sequence[float]) -> None:
    """An axis of costs with figures that do not run into each other."""
    least, most = min(costs), max(costs)
    if most > 4 * least:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.locator_params(axis="x", nbins=4)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if least == most:
        axis.set_xlim(0, 2 * most)


def _name(axis: Any, models: Sequence[Model]) -> None:
    """Numbers at the marks, and what they stand for above: names at the marks cover each other."""
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, one in enumerate(models, 1):
        numbers.setdefault((one.cost, one.score), []).append(str(number))
    for place, found in numbers.items():
        text = ", ".join(found)
        axis.annotate(text, place, xytext=(5, 5), textcoords="offset points", fontsize=8.5)
    lines = (f"{number} {plain(one.name)}" for number, one in enumerate(models, 1))
    axis.set_title("\n".join(lines), fontsize=8.5, fontweight="normal", loc="left")


def _weighed(one: Model) -> str:
    best = ", which no other beats in both" if one.front else ""
    return f"{one.name} {with_bounds(one.score, one.interval)} for {one.cost:.4g}{best}"


def dev_picture(students: Sequence[StudentFacts], metric: str, name: str) -> Picture | None:
    """The scores of students on their dev sets while they trained, with their teachers' lines.

    None where there are fewer than two.
    """
    if len(students) < 2:
        return None
    shown = students[: len(COLOURS)]

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for student, colour in zip(shown, COLOURS, strict=False):
            told = student.metrics["dev"]["points"]
            points = [(p["epoch"], p["value"]) for p in told if p["value"] is not None]
            label = plain(student.name)
            axis.plot(*zip(*points, strict=True), "o-", color=colour, ms=3.5, label=label)
        for value in _teachers(shown):
            axis.axhline(value, color=ORANGE, ls="--", lw=1.4, label=f"teacher: {value:.4g}")
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"dev: {called(metric)}")
        figure.legend(loc="outside upper left", ncols=2)

    alt = "; ".join(
        f"{one.name} at best {one.metrics['dev']['best']['value']:.4g}" for one in shown
    )
    theirs = "".join(f"; teacher {value:.4g}" for value in _teachers(shown))
    return picture(name, f"{called(metric)} on dev over epochs: {alt}{theirs}", draw, height=3.0)


def _teachers(students: Sequence[StudentFacts]) -> Iterator[float]:
    found = [student.metrics["dev"].get("teacher") for student in students]
    yield from dict.fromkeys(one["value"] for one in found if one)
