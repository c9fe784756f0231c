"""A student that a run has saved on its way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdcache.errors import ModelError
from kdcache.models.auto import require_weights, unreadable
from kdcache.models.module_student import WEIGHTS, ModuleStudent, load_weights
from kdcache.models.student import StudentSpec, load_student
from kdcache.models.together import homes

if TYPE_CHECKING:
    from kdcache.store import Cache


def student_again(cache: Cache, spec: StudentSpec, folder: Path, *, seed: int) -> Any:
    """A student that was made of `spec` and trained, as it was saved in `folder`.

    Raises ModelError where what is there is not all of its weights, or more.
    """
    if spec.module is None and not spec.together:
        saved = StudentSpec(
            checkpoint=str(folder),
            whole=True,
            shared=spec.shared,
            trust_remote_code=spec.trust_remote_code,
        )
        return load_student(cache, saved, seed=seed)
    student = load_student(cache, spec, seed=seed)
    take_weights(student, folder)
    return student


def take_weights(student: Any, folder: Path) -> None:
    """Give every student that is trained as one the weights that were saved in its folder."""
    for home, one in homes(folder, student):
        _load(one, home)


def _load(student: Any, home: Path) -> None:
    if isinstance(student, ModuleStudent):
        load_weights(student.student, home / WEIGHTS)
        return
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:  # transformers has its own names for what it stores
        saved, info = type(student).from_pretrained(home, ignore_mismatched_sizes=True, **options)
    except Exception as error:  # weights fail to load in as many ways as there are file formats
        raise ModelError(unreadable("student", home, error)) from error
    require_weights(info, home)
    student.load_state_dict(saved.state_dict())
