"""A trained student as a torch module, for code of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kdcache.errors import ModelError
from kdcache.models.auto import load_config, unreadable
from kdcache.models.module_student import ModuleStudent
from kdcache.models.student_config import RECORD, is_student


def open_student(folder: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """The student in a folder that `train` wrote from a module, in evaluation mode, on the CPU.

    Args:
        folder: one with a `kdcache_student.json`; others are loaded by transformers.
        trust_remote_code: import the class of a student that is none of kdcache's.

    Raises:
        ModelError: any other folder, a class that is not trusted or not there, and weights that
            are not its.
    """
    if not is_student(folder):
        raise ModelError(f"{folder} holds no {RECORD}: load it with transformers' Auto classes")
    config = load_config(folder, trust_remote_code=trust_remote_code)
    try:
        model: Any = ModuleStudent.from_pretrained(folder, config=config)
    except ModelError:
        raise
    except Exception as error:  # weights fail to load in as many ways as there are modules
        raise ModelError(unreadable("student", folder, error)) from error
    student: nn.Module = model.student
    return student
