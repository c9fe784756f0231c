"""A cache without a part: its manifest, its files, and whether what is there is the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from kdcache.building.artifacts import artifact_sources
from kdcache.errors import MismatchError
from kdcache.manifest import NAMED, Json
from kdcache.models import Teacher, Tokenizer
from kdcache.plans import Plan
from kdcache.plans.identity import has_configuration, say_unvouched
from kdcache.progress import Progress
from kdcache.signals import Signal, artifacts
from kdcache.store import Cache, Root, cache_record, create, signal_layouts
from kdcache.store.format.manifest_schema import OF_TASK


def create_cache(
    out: Root,
    plan: Plan,
    teacher: Teacher,
    signals: dict[str, Signal],
    tokenizer: Tokenizer,
    keep_weights: bool,
) -> None:
    """Write a cache without a part, or see that what is there is the same; see `store.create`."""
    of_task = {} if plan.read_for is None else {OF_TASK: plan.task.name}
    identity = {**teacher.identity, **of_task}
    record = cache_record(
        plan, teacher=identity, shape=teacher.shape, signals=signals, software=software()
    )
    files = cache_files(plan, teacher, signals, tokenizer, weights=keep_weights)
    create(out, record, plan, signal_layouts(plan, signals, teacher.shape), files)


def require_vouched(cache: Cache, same_teacher: bool, progress: Progress) -> None:
    """MismatchError for an unfinished cache without its teacher's configuration, unless told."""
    if cache.complete or has_configuration(cache.manifest["teacher"]):
        return
    if not same_teacher:
        raise MismatchError(
            f"{cache.path} is unfinished and does not tell the configuration of its teacher, as "
            f"caches before format {NAMED}: if that has not changed since, go on with "
            "--same-teacher; else choose another output folder"
        )
    say_unvouched(progress, [(cache.path, cache.manifest["teacher"])])


def cache_files(
    plan: Plan,
    teacher: Teacher,
    signals: Mapping[str, Signal],
    tokenizer: Tokenizer,
    *,
    weights: bool,
) -> dict[str, bytes | Path]:
    """Files a cache keeps, by name: tokenizer, configuration or weights, artifacts of signals."""
    files: dict[str, bytes | Path] = {f"tokenizer/{n}": b for n, b in tokenizer.files().items()}
    teacher_files = teacher.files(weights=weights)
    files.update({f"teacher/{name}": content for name, content in teacher_files.items()})
    files |= artifacts(signals.values(), plan.task, teacher.shape, artifact_sources(plan, teacher))
    return files


def software() -> Json:
    """Versions that can change what a teacher says."""
    names = ("kdcache", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
