"""The teacher of a cache, of which students take layers and embeddings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdcache.errors import ModelError
from kdcache.models.auto import auto_class, load_config
from kdcache.models.module_student import ModuleStudent
from kdcache.models.teacher import load_teacher
from kdcache.models.teacher_again import require_same_teacher

if TYPE_CHECKING:
    from kdcache.store import Cache


def teacher_config(cache: Cache) -> Any:
    """The configuration of a cache's teacher.

    Raises:
        ModelError: the teacher is a module, of which students take no layers and no embeddings.
    """
    _require_transformers(cache)
    with tempfile.TemporaryDirectory() as folder:
        cache.extract(Path(folder), ["teacher/config.json"])
        return load_config(folder)


def teacher_model(cache: Cache) -> Any:
    """The teacher's model, float32 on the CPU.

    Raises:
        ModelError: it is a module, of which students take no layers and no embeddings.
    """
    _require_transformers(cache)
    with tempfile.TemporaryDirectory() as folder:
        return auto_class(cache.plan.task).from_pretrained(
            teacher_folder(cache, Path(folder)), dtype=torch.float32, use_safetensors=True
        )


def _require_transformers(cache: Cache) -> None:
    if cache.manifest["teacher"]["class"] == ModuleStudent.__name__:
        raise ModelError(
            f"the teacher of {cache.path} is a module, of which students take no layers and no "
            "embeddings: choose a checkpoint or a student with new weights (--student)"
        )


def teacher_folder(cache: Cache, scratch: Path) -> str:
    """A folder with the teacher's weights: those kept in the cache, or where it was read from."""
    names = [name for name in cache.files if name.startswith("teacher/")]
    if any(name.endswith(".safetensors") for name in names):
        cache.extract(scratch, names)
        return str(scratch)
    source = cache.manifest["teacher"]["source"]
    _require_same_weights(cache, source)
    return str(source)


def _require_same_weights(cache: Cache, source: str) -> None:
    identity = cache.manifest["teacher"]
    way = "build the cache with --keep-teacher-weights, or choose another student"
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(f"the teacher's folder {source} is gone: {way}")
    task = cache.plan.task
    found = load_teacher(source, task=task, device="cpu", dtype=identity["dtype"])
    if found.identity["weights_sha256"] != identity["weights_sha256"]:
        raise ModelError(f"the weights in {source} are no longer the cache's teacher: {way}")
    require_same_teacher(identity, found, source, way)


def teacher_embeddings(cache: Cache) -> torch.Tensor:
    """The word embeddings of the teacher, [V, E]."""
    weight: torch.Tensor = teacher_model(cache).get_input_embeddings().weight.detach()
    return weight
