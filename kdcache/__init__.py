"""kdcache: run the teacher once, train any number of students from its outputs.

`plan` tokenises a corpus, `build` runs the teacher over it and writes a cache, `open_cache` reads
one, `train` distils a student from it and `sweep` many, `evaluate` measures a model, `compare` puts
it beside its teacher, `ship` makes one that runs without torch and `report` tells all of it on a
page; `profile` tells where the time of a step goes; `teach` makes the teacher, where there are
labels and none; `copy`, `merge` and `export` move caches. For training loops of your own there are
`CachedDocuments`, a torch data set,
`make_student`, `make_objective`, `run` and `DistillationTrainer` (docs/python.md).
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.augmenting import augment
    from kdcache.building.ascending import ascend
    from kdcache.building.builder import build
    from kdcache.building.planner import plan
    from kdcache.errors import KdcacheError
    from kdcache.evaluation.comparing import compare
    from kdcache.evaluation.evaluator import evaluate
    from kdcache.maintenance.copying import copy
    from kdcache.maintenance.exporting import export
    from kdcache.maintenance.merging import merge
    from kdcache.maintenance.verifying import verify
    from kdcache.models import run
    from kdcache.models.opened import open_student
    from kdcache.profiling.building import profile_build
    from kdcache.profiling.run import profile
    from kdcache.reporting.run import report
    from kdcache.shipping import ship
    from kdcache.signals import Tap
    from kdcache.store import open_cache, open_plan
    from kdcache.sweeping.run import sweep
    from kdcache.teaching import teach
    from kdcache.training.documents import CachedDocuments
    from kdcache.training.objective import Objective
    from kdcache.training.own_loop import make_objective, make_student
    from kdcache.training.train import train
    from kdcache.training.trainer import DistillationTrainer

    __version__: str

__all__ = [
    "CachedDocuments",
    "DistillationTrainer",
    "KdcacheError",
    "Objective",
    "Tap",
    "ascend",
    "augment",
    "build",
    "compare",
    "copy",
    "evaluate",
    "export",
    "make_objective",
    "make_student",
    "merge",
    "open_cache",
    "open_plan",
    "open_student",
    "plan",
    "profile",
    "profile_build",
    "report",
    "run",
    "ship",
    "sweep",
    "teach",
    "train",
    "verify",
]

_HOME = {
    "CachedDocuments": "training.documents",
    "DistillationTrainer": "training.trainer",
    "KdcacheError": "errors",
    "Objective": "training.objective",
    "Tap": "signals",
    "ascend": "building.ascending",
    "augment": "augmenting",
    "build": "building.builder",
    "compare": "evaluation.comparing",
    "copy": "maintenance.copying",
    "evaluate": "evaluation.evaluator",
    "export": "maintenance.exporting",
    "make_objective": "training.own_loop",
    "make_student": "training.own_loop",
    "merge": "maintenance.merging",
    "open_cache": "store",
    "open_plan": "store",
    "open_student": "models.opened",
    "plan": "building.planner",
    "profile": "profiling.run",
    "profile_build": "profiling.building",
    "report": "reporting.run",
    "run": "models",
    "ship": "shipping",
    "sweep": "sweeping.run",
    "teach": "teaching",
    "train": "training.train",
    "verify": "maintenance.verifying",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name not in _HOME:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(import_module(f"kdcache.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
