"""A student's folder, as `train` leaves it, and a teacher's, as `teach` does."""

from __future__ import annotations

from pathlib import Path

from kdcache.building.training_note import TAUGHT
from kdcache.errors import KdcacheError
from kdcache.reporting.facts import EVALUATION, StudentFacts, TeacherFacts
from kdcache.reporting.files import Reader, weights_of
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.run_folder import CACHE, CHECKPOINTS, LOG, METRICS, RECIPE, last_checkpoint


def is_student(folder: Path) -> bool:
    """Whether a run of `train` wrote, or began, the folder."""
    return (folder / CACHE).is_file() and (folder / RECIPE).is_file()


def is_taught(folder: Path) -> bool:
    """Whether `teach` wrote the folder."""
    return (folder / TAUGHT).is_file()


def homes_of(folder: Path) -> list[Path]:
    """The folders of the students in a run's: several where they were trained together."""
    metrics = Reader(folder).json(METRICS, "")
    several = metrics.get("heads") or metrics.get("students") or {}
    found = [folder / str(name) for name in several if (folder / str(name)).is_dir()]
    return found or [folder]


def read_student(folder: Path, name: str) -> StudentFacts:
    """What the folder of a student tells."""
    files = Reader(folder)
    table = files.toml(RECIPE, f"{RECIPE} is not there: how it was trained is not known")
    record = files.json(CACHE, f"{CACHE} is not there: what it was trained from is not known")
    metrics = files.json(METRICS, _unfinished(folder))
    log = files.entries(LOG, f"{LOG} is not there: it has no curves" if metrics else "")
    evaluation = files.json(EVALUATION, "") or metrics.get("evaluation") or None
    return StudentFacts(
        name=name,
        folder=folder,
        record=record,
        recipe=_recipe(folder / RECIPE, files) if table else None,
        recipe_name=str(table.get("name") or "not known"),
        metrics=metrics,
        log=log,
        evaluation=evaluation,
        weights=weights_of(folder),
        notes=tuple(files.notes),
    )


def _unfinished(folder: Path) -> str:
    last = last_checkpoint(folder / CHECKPOINTS)
    where = f"it stands at {last.name.replace('-', ' ')}" if last else "no checkpoint is written"
    return f"training has not ended: {where}; `kdcache train ... --resume` goes on"


def _recipe(path: Path, files: Reader) -> Recipe | None:
    try:
        return load_recipe(path)
    except KdcacheError as error:
        files.notes.append(f"its recipe is another version's: {error}")
        return None


def read_teacher(folder: Path, name: str) -> TeacherFacts:
    """What the folder of a taught teacher tells."""
    files = Reader(folder)
    metrics = files.json(METRICS, f"{METRICS} is not there: teaching has not ended")
    if metrics and "evaluation" not in metrics:
        files.notes.append(
            "not scored on documents that chose nothing (`kdcache teach ... --eval FILE`)"
        )
    return TeacherFacts(name=name, folder=folder, metrics=metrics, notes=tuple(files.notes))
