"""kdcache: run the teacher once, train any number of students from what it said.

`plan` tokenises a corpus, `build` runs the teacher over it and writes a cache, `open_cache` reads
one, `train` distils a student from it, `evaluate` measures a model and `ship` makes one that runs
without torch; `teach` makes the teacher, where there are labels and none; `copy`, `merge` and
`export` move caches, and `CachedDocuments` is a torch data set for training loops of your own.
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.builder import build
    from kdcache.documents import CachedDocuments
    from kdcache.errors import KdcacheError
    from kdcache.evaluator import evaluate
    from kdcache.exporting import export
    from kdcache.planner import plan
    from kdcache.shipping import ship
    from kdcache.store import copy, merge, open_cache, open_plan, verify
    from kdcache.teaching import teach
    from kdcache.trainer import train

__all__ = [
    "CachedDocuments",
    "KdcacheError",
    "build",
    "copy",
    "evaluate",
    "export",
    "merge",
    "open_cache",
    "open_plan",
    "plan",
    "ship",
    "teach",
    "train",
    "verify",
]

_HOME = {
    "CachedDocuments": "documents",
    "KdcacheError": "errors",
    "build": "builder",
    "copy": "store",
    "evaluate": "evaluator",
    "export": "exporting",
    "merge": "store",
    "open_cache": "store",
    "open_plan": "store",
    "plan": "planner",
    "ship": "shipping",
    "teach": "teaching",
    "train": "trainer",
    "verify": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    return getattr(import_module(f"kdcache.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
