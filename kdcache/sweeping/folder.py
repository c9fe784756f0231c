"""The folder of a sweep: what it is of, and what has been trained and shipped in it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from kdcache.errors import ConfigError
from kdcache.evaluation.scoring import metric_of
from kdcache.manifest import Json, require_same
from kdcache.plans import Plan
from kdcache.shipping.run import KINDS
from kdcache.store.io.durable_writes import occupied, replace_synced, require_writable, writing
from kdcache.sweeping.asked import Asked
from kdcache.sweeping.record import TRAINED, Student
from kdcache.sweeping.shipped import SHIPPED, TEACHER, read_report
from kdcache.training.evaluation import content_digest, data_files
from kdcache.training.lock import one_run
from kdcache.training.run_folder import METRICS, cache_identity, read_json

OF, LOGS, CONFIGS = "sweep_of.json", "logs", "configs"
WEIGHTS = "model.safetensors"
COMPARED = ("plan", "contents", "teacher")


def identity(asked: Asked) -> Json:
    """What students of one folder have in common: the cache, what they are chosen and scored on."""
    cache = cache_identity(asked.cache, None)
    train = dict(asked.train)
    for name in ("dev", "eval_file"):
        if train[name] is not None:
            train[name] = [content_digest(path) for path in data_files(train[name])]
    return {"kind": "sweep", "cache": {name: cache[name] for name in COMPARED}, **train}


@contextmanager
def held(folder: Path, asked: Asked) -> Iterator[None]:
    """Hold the folder of a sweep, made where it is not there.

    Raises ConfigError if it holds something else, or another process sweeps into it; MismatchError
    if it holds a sweep of another cache or dev set.
    """
    require_writable(folder)
    own = json.loads(json.dumps(identity(asked)))
    note = folder / OF
    if note.is_file():
        require_same(read_json(note), own, str(folder))
    elif occupied(folder):
        raise ConfigError(f"{folder} exists and is not an empty folder; choose another")
    with writing(folder), one_run(folder, folder):
        if not note.is_file():
            replace_synced(note, (json.dumps(own, indent=1) + "\n").encode())
        (folder / LOGS).mkdir(exist_ok=True)
        yield


def found(folder: Path, student: Student, metric: str) -> Student:
    """A student with what its folder tells: whether it is trained, its scores, what was shipped.

    `metric` names the score of one that was not chosen on a dev set.
    """
    place = folder / student.folder
    if not (place / METRICS).is_file():
        return student
    metrics = read_json(place / METRICS)
    dev, evaluation = metrics.get("dev"), metrics.get("evaluation", {})
    report = read_report(shipped_folder(folder, student.name))
    return dataclasses.replace(
        student,
        state=TRAINED,
        error=None,
        seconds=metrics["seconds"],
        parameters=_parameters(place / WEIGHTS),
        dev=dev["best"]["value"] if dev else None,
        eval=evaluation.get(dev["metric"] if dev else metric),
        shipped={} if report is None else {kind: report["kinds"][kind] for kind in KINDS},
    )


def _parameters(weights: Path) -> int | None:
    """How many numbers a file of weights holds; None: there is no such file."""
    if not weights.is_file():
        return None
    with safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in list(file.keys())]
    return sum(int(math.prod(shape)) for shape in shapes)


def shipped_folder(folder: Path, name: str) -> Path:
    """Where a student, or the teacher, is shipped to."""
    return folder / SHIPPED / name


def teacher_report(folder: Path) -> Json | None:
    """What was measured of the teacher; None: it was not shipped."""
    return read_report(shipped_folder(folder, TEACHER))


def dev_of(folder: Path, students: Iterable[Student]) -> Json | None:
    """What the first run tells of its dev set and of the teacher there; None: there is none."""
    first = next((one for one in students if one.state == TRAINED), None)
    return None if first is None else read_json(folder / first.folder / METRICS).get("dev")


def metric_without_dev(plan: Plan) -> str:
    """The score of students that are chosen on no dev set."""
    if plan.labelled or not plan.task.labelled:
        return metric_of(plan, plan.labelled_docs)
    return plan.label_kind.headline
