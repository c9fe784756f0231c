"""The model card of a student: what it was distilled from, how good it is, how to use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from kdcache.building.training_note import CACHE
from kdcache.evaluation.score_tables import called, each_output, score_table, teachers_score
from kdcache.losses.schedules import is_on, weight_text
from kdcache.losses.teachers import POINTS
from kdcache.manifest import Json
from kdcache.models.student_config import is_student
from kdcache.rendering.parts import fields
from kdcache.tasks import TASKS, Task
from kdcache.training.recipe import Recipe

CARD = "README.md"
LICENCE = (
    "These weights come from the teacher above and from the corpus that it was run over: the "
    "licences of both apply. State here the licence that you release the student under."
)


MODULE_USAGE = """```python
import kdcache

student = kdcache.open_student("path/to/this/folder")  # a torch module
```

It maps `input_ids` and `attention_mask` to logits. `kdcache evaluate` scores this folder, and
`kdcache ship` makes an ONNX model of it."""
"""How a student is called that is a module."""


def write_card(folder: Path, recipe: Recipe, metrics: Json) -> None:
    """Write the model card of the student that is saved in `folder`, in Markdown.

    It tells what the folder notes of its cache. `metrics` are those of its training; where they
    hold an evaluation, the card states its scores with 95% intervals, and the teacher's in the next
    column.
    """
    record: Json = json.loads((folder / CACHE).read_bytes())
    task = TASKS[task_of(record)]
    sections = [
        front_matter(task, ["knowledge-distillation", "kdcache"], library_of(folder)),
        f"# {folder.resolve().name}",
        _summary(record, recipe),
        fields([*origin(record, recipe, metrics), *hashes(record)]).markdown(),
        "## Scores",
        _scores(metrics.get("evaluation")),
        "## How to use it",
        MODULE_USAGE if is_student(folder) else usage(task),
        "## Licence",
        LICENCE,
    ]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", "utf-8")


def task_of(record: Json) -> str:
    """The task of a student, from the note of its cache; "" where that does not tell."""
    teacher, plan = record.get("teacher") or {}, record.get("plan_config") or {}
    return str(teacher.get("task") or plan.get("task") or "")


def library_of(folder: Path) -> str:
    """What loads the student in a folder."""
    return "kdcache" if is_student(folder) else "transformers"


def front_matter(task: Task, tags: list[str], library: str = "transformers") -> str:
    """What the hub reads of a card."""
    data = ModelCardData(
        library_name=library,
        pipeline_tag=task.pipeline,
        tags=tags,
    )
    return f"---\n{data.to_yaml()}\n---"


def _summary(record: Json, recipe: Recipe) -> str:
    teacher = record["teacher"]
    return (
        f"A student of `{teacher['name']}` ({teacher['class']}), distilled by kdcache with the "
        f"recipe `{recipe.name}` from cached outputs of its teacher. `recipe.toml`, `cache.json` "
        "and `metrics.json` beside this file tell all settings, hashes and figures."
    )


def origin(record: Json, recipe: Recipe | None, metrics: Json) -> Iterator[tuple[str, str]]:
    """Where a student comes from and how it was trained, a name and a text each.

    `record` is the note of its cache. What an earlier version did not note is not told, nor is a
    recipe of None.
    """
    yield "task", task_of(record)
    theirs = record.get("teacher", {}).get("parameters")
    teachers = "" if theirs is None else f"; the teacher has {theirs:,}"
    if "parameters" in metrics:
        yield "parameters", f"{metrics['parameters']:,}{teachers}"
    if heads := metrics.get("heads"):
        yield "trained with", f"a head for each of {', '.join(heads)}, on one encoder"
    if recipe is not None:
        yield "initialised from", _start(recipe.student)
        yield "losses", _losses(recipe)
    for stage, one in metrics.get("stages", {"": metrics}).items():
        if balance := one.get("balance"):
            weights = ", ".join(f"{name} × {w:.3g}" for name, w in balance["weights"].items())
            yield f"weights set{stage and f' in stage {stage}'}", f"{weights} ({balance['way']})"
    if recipe is not None:
        yield from _beside(record, recipe)
    if "steps" in metrics:
        yield "steps", f"{metrics['steps']:,} ({metrics['epochs']:.3g} epochs)"
    if chosen := metrics.get("dev"):
        yield "weights chosen", _choice(chosen)
    for one in metrics.get("caches", ()):
        told = f"{one['share']:.0%} of the steps' documents, teacher {one['teacher']}, contents "
        yield f"cache {one['cache']}", f"{told}`{one['contents']}`"
    if part := metrics.get("partial"):
        yield "trained on", f"{part['documents']:,} of {part['of']:,} planned documents"
    yield from _source(record)


def _beside(record: Json, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a recipe has beside losses."""
    if told := _of_stages(recipe, lambda one: one.inputs):
        yield "in place of word embeddings", told
    if told := _of_stages(recipe, lambda one: one.data.weighting):
        yield "documents weighed by", told
    if told := "; ".join(_teachers(tuple(record.get("teachers", ())), recipe)):
        yield "teachers", told


def _source(record: Json) -> Iterator[tuple[str, str]]:
    """What is noted of the cache, its teacher and its corpus."""
    teacher, plan = record.get("teacher") or {}, record.get("plan_config") or {}
    corpus = plan.get("corpus") or {}
    if "documents" in corpus:
        tokens = f", {record['tokens']:,} tokens" if "tokens" in record else ""
        yield "corpus", f"{corpus['documents']:,} documents{tokens}"
    if "max_length" in plan:
        yield "longest input", f"{plan['max_length']} tokens"
    if record.get("signals"):
        yield "teacher's outputs kept", ", ".join(record["signals"])
    if "dtype" in teacher:
        version = record.get("software", {}).get("transformers", "of a version not recorded")
        yield "teacher run in", f"{teacher['dtype']}, transformers {version}"


def hashes(record: Json) -> Iterator[tuple[str, str]]:
    """SHA-256 of what a student comes from, where that was noted."""
    known = {
        "the teacher's weights": (record.get("teacher") or {}).get("weights_sha256"),
        "the corpus": ((record.get("plan_config") or {}).get("corpus") or {}).get("sha256"),
        "the plan": record.get("plan"),
    }
    yield from ((f"SHA-256 of {of}", f"`{value}`") for of, value in known.items() if value)


def _of_stages(recipe: Recipe, told: Callable[[Recipe], object]) -> str:
    """What is told of every stage of which there is something to tell."""
    names = [f"{stage.name}: " for stage in recipe.stages] or [""]
    each = zip(names, map(told, recipe.in_stages()), strict=True)
    return "; ".join(f"{name}{one}" for name, one in each if one)


def _teachers(known: tuple[str, ...], recipe: Recipe) -> Iterator[str]:
    """Who of `known` teaches the losses that name their teachers, and how these count."""
    for stage in recipe.in_stages():
        for name, teaching in stage.teaching.items():
            if is_on(name, stage.losses[name], stage.schedules):
                at_points = teaching.teachers == POINTS
                names = ["the one at points"] if at_points else teaching.of(name, known)
                yield f"{name}: {', '.join(names)} ({teaching.choose})"


def _choice(dev: Json) -> str:
    """How the weights were chosen, with the teacher's score on the same documents."""
    best, metric = dev["best"], called(dev["metric"])
    teacher = dev["teacher"]
    theirs = "" if teacher is None else f"; the teacher's is {teachers_score(teacher)}"
    stage = f" of stage {dev['stage']}" if "stage" in dev else ""
    return (
        f"those of step {best['step']:,} (epoch {best['epoch']:.3g}{stage}), the best of "
        f"{len(dev['points'])} by {metric} ({best['value']:.4g}{theirs}) on {dev['documents']:,} "
        f"dev documents that were not trained on: {dev['source']}"
    )


def _losses(recipe: Recipe) -> str:
    """The losses that are on, of every stage."""
    if recipe.stages:
        each = zip(recipe.stages, recipe.in_stages(), strict=True)
        return "; then ".join(f"{stage.name}: {_losses(one)}" for stage, one in each)
    changing = recipe.schedules
    return ", ".join(
        f"{name} × {weight_text(name, loss, changing)}"
        for name, loss in recipe.losses.items()
        if is_on(name, loss, changing)
    )


def _start(student: Mapping[str, Any]) -> str:
    """Where a student's weights come from, without the folders of the machine it was made on."""
    if layers := student.get("init_from_teacher"):
        return f"layers {'-'.join(map(str, layers))} of the teacher"
    if checkpoint := student.get("checkpoint"):
        return f"`{Path(checkpoint).name if Path(checkpoint).exists() else checkpoint}`"
    if built := student.get("built"):
        return f"new weights: `{built}`"
    if several := student.get("together"):
        return f"new weights or checkpoints, trained together: {', '.join(several)}"
    return f"`{student['module']}` as it was given" if student.get("module") else "new weights"


def _scores(evaluation: Json | None) -> str:
    if evaluation is None:
        return (
            "Not measured yet: `kdcache evaluate . FILE --teacher TEACHER` scores it and its "
            "teacher on labelled documents."
        )
    teacher = evaluation.get("teacher")
    sides = {"student": evaluation} | ({} if teacher is None else {"teacher": teacher})
    found = score_table(sides, evaluation["task"], "student").markdown()
    file = f"`{evaluation['file']}`, " if "file" in evaluation else ""
    text = f"On {file}{evaluation['documents']:,} documents; intervals are of 95%."
    text += f" Scored are {evaluation['scored']}.\n\n" if "scored" in evaluation else "\n\n"
    note = "" if teacher else "\n\nThe teacher was not scored on this file (`--eval-teacher`)."
    each = each_output(evaluation)
    return text + found + note + (f"\n\n{each.markdown()}" if each else "")


def usage(task: Task) -> str:
    """How a model of the task is called."""
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'pipe = pipeline("{task.pipeline}", model="path/to/this/folder")\n{task.call}\n```'
    )
