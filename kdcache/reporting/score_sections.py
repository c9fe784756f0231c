"""What is told of scores: of all models, of every class and slice, and of what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdcache.evaluation.score_tables import (
    EACH,
    called,
    figure,
    score_cell,
    score_table,
    teachers_score,
)
from kdcache.manifest import Json
from kdcache.rendering import Part, Section, Table, Text, both, show, size
from kdcache.reporting.facts import Facts, ShippedFacts, TeacherFacts
from kdcache.reporting.groups import Group, dev_groups, scored_groups, shipped_groups
from kdcache.reporting.pareto import COSTS, weighed
from kdcache.reporting.pictures import cost_picture, dev_picture, score_picture
from kdcache.reporting.slices import slice_parts

NOT_SCORED = (
    "No model has been scored on documents that chose nothing yet: `kdcache report ... --eval "
    "FILE --teacher FOLDER` does, with the teacher beside it."
)
NO_DEV = "No student was chosen on a dev set: all have the weights of their last step."
ONE = "There is one model with a score and a cost, and so nothing to weigh it against."


def scores_section(facts: Facts) -> Section:
    """Teacher and students with intervals, on every set of documents that they were scored on."""
    parts: list[Part] = []
    for number, group in enumerate(scored_groups(facts)):
        parts.append(Text(f"On {group.where}. Intervals are of 95%."))
        picture = score_picture(group, f"scores-{number}")
        parts += [picture] if picture else []
        table = score_table(group.sides, group.task)
        parts.append(table.turned())
        parts.append(_beside(group))
    return Section("Scores", tuple(parts) or (Text(NOT_SCORED),))


def _beside(group: Group) -> Table:
    """What was found of the models of a group beside their scores."""
    head = ("", "parameters", "documents/s", "agrees with the teacher", "KL(teacher ‖ model), nats")
    rows = []
    for name, side in group.sides.items():
        shared = side.get("teacher_rows") or {}
        figures = (
            side.get("parameters"),
            side.get("documents_per_s"),
            shared.get("agreement"),
            shared.get("divergence"),
        )
        rows.append((name, *map(show, figures)))
    return Table(head, tuple(rows), figures=True)


def dev_section(facts: Facts) -> Section:
    """How students were chosen, with their teacher's score on the same documents."""
    students = [one for one in facts.students if one.metrics.get("dev")]
    rows = [(one.name, *_chosen(one.metrics["dev"])) for one in students]
    parts: list[Part] = []
    by_metric: dict[str, list[int]] = {}
    for place, one in enumerate(students):
        by_metric.setdefault(one.metrics["dev"]["metric"], []).append(place)
    for number, (metric, places) in enumerate(by_metric.items()):
        picture = dev_picture([students[place] for place in places], metric, f"dev-{number}")
        parts += [picture] if picture else []
    head = ("", "chosen by", "kept", "teacher", "step", "points", "documents")
    if rows:
        parts.append(Table(head, tuple(rows)))
    parts += _taught(facts.teachers)
    return Section("Chosen on dev sets", tuple(parts) or (Text(NO_DEV),))


def _chosen(dev: Json) -> tuple[str, ...]:
    teacher = dev.get("teacher")
    theirs = "not known" if teacher is None else teachers_score(teacher)
    source = f"{dev['documents']:,}: {dev['source']}"
    best = dev["best"]
    return (
        called(dev["metric"]), f"{best['value']:.4g}", theirs, f"{best['step']:,}",
        str(len(dev["points"])), source,
    )  # fmt: skip


def _taught(teachers: Iterable[TeacherFacts]) -> Iterator[Part]:
    for one in teachers:
        sides = {"dev": one.metrics.get("dev"), "evaluation": one.metrics.get("evaluation")}
        known = {name: side for name, side in sides.items() if side}
        if known:
            yield Text(f"{one.name}, as `kdcache teach` left it. Intervals are of 95%.")
            yield score_table(known, "text-classification", next(iter(known)))


def outputs_section(facts: Facts) -> Section:
    """Scores of every class or value, and of every slice."""
    parts = [part for group in scored_groups(facts) for part in _each(group)]
    return Section("Classes and slices", tuple(parts) or (Text(NOT_SCORED),))


def _each(group: Group) -> Iterator[Part]:
    found = {name: side for name, side in group.sides.items() if side}
    for what, called_ in EACH.items():
        sides = {name: side[what] for name, side in found.items() if side.get(what)}
        if sides:
            yield Text(f"Of every {called_}, on {group.where}.")
            yield from _output_tables(sides, called_)
    yield from slice_parts(group)
    if not any(side.get(what) for side in found.values() for what in (*EACH, "slices")):
        yield Text(
            f"Nothing is known of the classes and slices of {group.where}: `kdcache report ... "
            "--eval FILE --by COLUMN` tells those of a column, that of the labels for the classes."
        )


def _output_tables(sides: dict[str, Json], what: str) -> Iterator[Part]:
    """A table for every score of an output, with a column for each model."""
    first = next(iter(sides.values()))
    heads = [key for key in next(iter(first.values())) if not key.endswith("_interval")]
    for key in heads:
        if key == "documents":
            continue
        rows = [
            (name, *(score_cell(side.get(name, {}), key) for side in sides.values()))
            for name in first
        ]
        counts = [figure(one.get("documents")) for one in first.values()]
        if any(counts):
            rows = [(*row, count) for row, count in zip(rows, counts, strict=True)]
        head = (f"{what}: {called(key)}", *sides, *(["documents"] if any(counts) else []))
        yield Table(head, tuple(rows), figures=True)


def cost_section(facts: Facts) -> Section:
    """Scores against sizes and times, and which models no other beats in both."""
    parts: list[Part] = []
    groups = [*shipped_groups(facts), *scored_groups(facts), *dev_groups(facts)]
    for number, group in enumerate(groups):
        for cost in COSTS:
            models = weighed(group, cost)
            picture = cost_picture(group, cost, models, f"{cost.name}-{number}")
            if picture:
                best = ", ".join(one.name for one in models if one.front)
                parts += [Text(f"On {group.where}; nothing beats {best} in both."), picture]
    return Section("Scores against costs", tuple(parts) or (Text(ONE),))


def shipped_section(facts: Facts) -> Section:
    """Size and latency of shipped models."""
    parts: list[Part] = []
    for group in shipped_groups(facts):
        parts.append(Text(f"Measured on {group.where}, one at a time."))
        parts.append(_measured(group))
    rows = [_sizes(one) for one in facts.shipped]
    if rows:
        parts.append(Table(("", "weights", "files that run", "longest text"), tuple(rows)))
    parts += [Text(_about(one.report)) for one in facts.shipped[:1] if one.report]
    nothing = "No shipped model was named: `kdcache ship STUDENT FOLDER --measure FILE` makes one."
    return Section("Size and latency", tuple(parts) or (Text(nothing),))


def _about(report: Json) -> str:
    if "timed" not in report:
        return "Latency was not measured."
    return (
        f"Latency is that of {report['calls']} calls with one text each on one thread, "
        f"{report['timed']}; memory is that of a process of its own."
    )


def _measured(group: Group) -> Table:
    rows = [
        (
            name,
            size(side["bytes"]),
            f"{side['p50_ms']:.2f}",
            f"{side['p95_ms']:.2f}",
            size(side["peak_bytes"]),
            score_cell(side, group.metric),
            figure(side.get("agreement")),
        )
        for name, side in group.sides.items()
    ]
    head = ("", "size", "p50, ms", "p95, ms", "peak", group.label, "says what torch says")
    return Table(head, tuple(rows), figures=True)


def _sizes(one: ShippedFacts) -> tuple[str, ...]:
    report = one.report or {}
    weights = {True: "int8", False: "float32"}.get(report.get("int8", ""), "not known")
    return one.name, weights, both(one.bytes), f"{one.settings.get('max_length', '-')} tokens"
