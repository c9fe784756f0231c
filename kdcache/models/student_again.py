"""A student that a run has saved on its way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_model

from kdcache.models.module_student import WEIGHTS
from kdcache.models.student import StudentSpec, load_student
from kdcache.models.together import homes

if TYPE_CHECKING:
    from kdcache.store import Cache


def student_again(cache: Cache, spec: StudentSpec, folder: Path, *, seed: int) -> Any:
    """A student that was made of `spec` and trained, as it was saved in `folder`."""
    if spec.module is None and not spec.together:
        trust = spec.trust_remote_code
        saved = StudentSpec(checkpoint=str(folder), shared=spec.shared, trust_remote_code=trust)
        return load_student(cache, saved, seed=seed)
    student = load_student(cache, spec, seed=seed)
    take_weights(student, folder)
    return student


def take_weights(student: Any, folder: Path) -> None:
    """Give every student that is trained as one the weights that were saved in its folder."""
    for home, one in homes(folder, student):
        load_model(one, home / WEIGHTS, strict=False)  # tied weights are stored once
