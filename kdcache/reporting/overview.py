"""The first section: every student in a row, with what it is worth and what it takes."""

from __future__ import annotations

from kdcache.evaluation.score_tables import called, headline, names_of, score_cell, teachers_score
from kdcache.rendering import Section, Table, Text, show, size
from kdcache.reporting.facts import Facts, StudentFacts

NO_STUDENT = "No student is among the folders: name those that `kdcache train` wrote."


def overview_section(facts: Facts) -> Section:
    """Every student in a row."""
    if not facts.students:
        return Section("In short", (Text(NO_STUDENT),))
    rows = tuple(map(_row, facts.students))
    head = ("", "task", "recipe", "parameters", "weights", "score", "student", "teacher")
    return Section("In short", (Table(head, rows),))


def _row(student: StudentFacts) -> tuple[str, ...]:
    scores = student.evaluation or {}
    metric = headline(scores, student.task)
    known = (
        student.name,
        student.task or "not known",
        student.recipe_name,
        show(student.parameters),
        size(sum(one["bytes"] for one in student.weights.values())) if student.weights else "-",
    )
    if metric:
        label = names_of(student.task).get(metric, called(metric))
        theirs = score_cell(scores.get("teacher") or {}, metric) or "-"
        return (*known, label, score_cell(scores, metric), theirs)
    dev = student.metrics.get("dev")
    if not dev:
        return (*known, "not scored", "-", "-")
    teacher = dev.get("teacher")
    theirs = "-" if teacher is None else teachers_score(teacher)
    return (*known, f"{called(dev['metric'])}, on dev", f"{dev['best']['value']:.4g}", theirs)
