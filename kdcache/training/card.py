"""The model card of a student: what it was distilled from, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from kdcache.losses.schedules import is_on, weight_text
from kdcache.manifest import Json
from kdcache.models.student_config import is_student
from kdcache.store import Cache
from kdcache.tasks import TASKS, Task
from kdcache.training.recipe import Recipe

CARD = "README.md"
LICENCE = (
    "These weights come from the teacher above and from the corpus that it was run over: the "
    "licences of both apply. State here the licence that you release the student under."
)
SCORES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "micro_f1": "F1, all decisions (micro)",
    "macro_f1": "F1, mean of the classes (macro)",
    "exact_match": "documents with all classes right",
    "hamming_loss": "wrong decisions (Hamming loss)",
    "average_precision": "average precision, mean of the classes",
    "roc_auc": "area under the ROC curve, mean of the classes",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "mean squared error",
    "cross_entropy": "cross-entropy, nats",
    "perplexity": "perplexity",
    "calibration_error": "expected calibration error",
}


MODULE_USAGE = """```python
import kdcache

student = kdcache.open_student("path/to/this/folder")  # a torch module
```

It maps `input_ids` and `attention_mask` to logits. `kdcache evaluate` scores this folder, and
`kdcache ship` makes an ONNX model of it."""
"""How a student is called that is a module."""


def write_card(folder: Path, cache: Cache, recipe: Recipe, metrics: Json) -> None:
    """Write the model card of the student that is saved in `folder`, in Markdown.

    `metrics` are those of its training; where they hold an evaluation, the card states its scores
    with 95% intervals, and the teacher's in the next column.
    """
    task = cache.plan.task
    sections = [
        front_matter(task, ["knowledge-distillation", "kdcache"], library_of(folder)),
        f"# {folder.resolve().name}",
        _summary(cache, recipe),
        table(("", ""), list(_origin(cache, recipe, metrics))),
        "## Scores",
        _scores(metrics.get("evaluation")),
        "## How to use it",
        MODULE_USAGE if is_student(folder) else usage(task),
        "## Licence",
        LICENCE,
    ]
    (folder / CARD).write_text("\n\n".join(sections) + "\n", "utf-8")


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


def _summary(cache: Cache, recipe: Recipe) -> str:
    teacher = cache.manifest["teacher"]
    return (
        f"A student of `{teacher['name']}` ({teacher['class']}), distilled by kdcache with the "
        f"recipe `{recipe.name}` from cached outputs of its teacher. `recipe.toml`, `cache.json` "
        "and `metrics.json` beside this file tell all settings, hashes and figures."
    )


def _origin(cache: Cache, recipe: Recipe, metrics: Json) -> Iterator[tuple[str, str]]:
    teacher, plan = cache.manifest["teacher"], cache.plan
    corpus, software = plan.config.corpus, cache.manifest["software"]
    yield "task", plan.task.name
    yield "parameters", f"{metrics['parameters']:,}; the teacher has {teacher['parameters']:,}"
    if heads := metrics.get("heads"):
        yield "trained with", f"a head for each of {', '.join(heads)}, on one encoder"
    yield "initialised from", _start(recipe.student)
    yield "losses", _losses(recipe)
    for stage, one in metrics.get("stages", {"": metrics}).items():
        if balance := one.get("balance"):
            weights = ", ".join(f"{name} × {w:.3g}" for name, w in balance["weights"].items())
            yield f"weights set{stage and f' in stage {stage}'}", f"{weights} ({balance['way']})"
    if told := _of_stages(recipe, lambda one: one.inputs):
        yield "in place of word embeddings", told
    if told := _of_stages(recipe, lambda one: one.data.weighting):
        yield "documents weighed by", told
    if told := "; ".join(_teachers(cache, recipe)):
        yield "teachers", told
    yield "steps", f"{metrics['steps']:,} ({metrics['epochs']:.3g} epochs)"
    if chosen := metrics.get("dev"):
        yield "weights chosen", _choice(chosen)
    for one in metrics.get("caches", ()):
        told = f"{one['share']:.0%} of the steps' documents, teacher {one['teacher']}, contents "
        yield f"cache {one['cache']}", f"{told}`{one['contents']}`"
    yield "corpus", f"{corpus['documents']:,} documents, {plan.tokens:,} tokens"
    if part := metrics.get("partial"):
        yield "trained on", f"{part['documents']:,} of {part['of']:,} planned documents"
    yield "longest input", f"{plan.config.max_length} tokens"
    yield "teacher's outputs kept", ", ".join(cache.manifest["signals"])
    version = software.get("transformers", "of a version not recorded")
    yield "teacher run in", f"{teacher['dtype']}, transformers {version}"
    yield "SHA-256 of the teacher's weights", f"`{teacher['weights_sha256']}`"
    yield "SHA-256 of the corpus", f"`{corpus['sha256']}`"
    yield "SHA-256 of the plan", f"`{cache.manifest['plan']['sha256']}`"


def _of_stages(recipe: Recipe, told: Callable[[Recipe], object]) -> str:
    """What is told of every stage of which there is something to tell."""
    names = [f"{stage.name}: " for stage in recipe.stages] or [""]
    each = zip(names, map(told, recipe.in_stages()), strict=True)
    return "; ".join(f"{name}{one}" for name, one in each if one)


def _teachers(cache: Cache, recipe: Recipe) -> Iterator[str]:
    """Who teaches the losses that name their teachers, and how these count."""
    known = (cache.teacher,) if cache.teacher else (cache.first, *cache.teachers)
    for stage in recipe.in_stages():
        for name, teaching in stage.teaching.items():
            yield f"{name}: {', '.join(teaching.of(name, known))} ({teaching.choose})"


def _choice(dev: Json) -> str:
    """How the weights were chosen, with the teacher's score on the same documents."""
    best, metric = dev["best"], _called(dev["metric"])
    teacher = dev["teacher"]
    about = "about " if teacher is not None and teacher.get("estimate") else ""
    theirs = "" if teacher is None else f"; the teacher's is {about}{teacher['value']:.4g}"
    stage = f" of stage {dev['stage']}" if "stage" in dev else ""
    return (
        f"those of step {best['step']:,} (epoch {best['epoch']:.3g}{stage}), the best of "
        f"{len(dev['points'])} by {metric} ({best['value']:.4g}{theirs}) on {dev['documents']:,} "
        f"dev documents that were not trained on: {dev['source']}"
    )


def _called(metric: str) -> str:
    """What a metric is called."""
    return SCORES.get(metric, metric.replace("_", " "))


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
    head = ("", "student") if teacher is None else ("", "student", "teacher")
    sides = [evaluation] if teacher is None else [evaluation, teacher]
    own = dict(TASKS[evaluation["task"]].told)
    rows = [
        (label, *(score_cell(side, name) for side in sides))
        for name, label in (own | SCORES).items()
        if evaluation.get(name) is not None
    ]
    file = f"`{evaluation['file']}`, " if "file" in evaluation else ""
    text = f"On {file}{evaluation['documents']:,} documents; intervals are of 95%."
    text += f" Scored are {evaluation['scored']}.\n\n" if "scored" in evaluation else "\n\n"
    note = "" if teacher else "\n\nThe teacher was not scored on this file (`--eval-teacher`)."
    return text + table(head, rows) + note + each_output(evaluation)


def each_output(scores: Json) -> str:
    """A table of the scores of every class, or every value, where a document has several."""
    for what, name in (("classes", "class"), ("values", "value")):
        found = scores.get(what)
        if isinstance(found, dict):
            heads = [key for key in next(iter(found.values())) if not key.endswith("_interval")]
            rows = [(one, *(_figure(side[key]) for key in heads)) for one, side in found.items()]
            return "\n\n" + table((name, *(key.replace("_", " ") for key in heads)), rows)
    return ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def score_cell(side: Json, name: str) -> str:
    """A score with its 95% interval; nothing where there is none."""
    if side.get(name) is None:
        return ""
    interval = side.get(f"{name}_interval")
    bounds = "" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})"
    return f"{side[name]:.4g}{bounds}"


def usage(task: Task) -> str:
    """How a model of the task is called."""
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'pipe = pipeline("{task.pipeline}", model="path/to/this/folder")\n{task.call}\n```'
    )


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *([_cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text that stays in its cell whatever a model, a file or a loss is called."""
    return " ".join(text.split()).replace("|", "\\|")
