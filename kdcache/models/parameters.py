"""Which parameters of a student are trained, by globs over their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from kdcache.errors import ConfigError, did_you_mean, near
from kdcache.models.auto import auto_class, silent_transformers
from kdcache.models.declared import adapted
from kdcache.models.heads import HeadsModel, drawn_heads
from kdcache.models.module_student import INSIDE, ModuleStudent
from kdcache.models.student import StudentSpec
from kdcache.models.student_config import StudentConfig

if TYPE_CHECKING:
    from kdcache.store import Cache

SHOWN = 3  # names in a message


def named(student: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of a student; a module's own by its own names, those of heads by each head's."""
    if isinstance(student, HeadsModel):
        yield from chain.from_iterable(map(named, student.task_heads))
        return
    prefix = INSIDE if isinstance(student, ModuleStudent) else ""
    for name, parameter in student.named_parameters():
        yield name.removeprefix(prefix), parameter


def require_parameters(
    globs: Sequence[str], spec: StudentSpec, config: Any, caches: Sequence[Cache]
) -> None:
    """Raise ConfigError for a glob that no parameter of such a student has; no weight is made."""
    if not globs:
        return
    names = _names(spec, config, caches)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            within = [name for name in names if fnmatchcase(name, f"*.{glob}")]
            like = (within or near(glob, names) or names)[:SHOWN]
            whole = names[-1].rpartition(".")[0] or names[-1]
            raise ConfigError(
                f"trainable: no parameter of the student is called {glob!r}{did_you_mean(like)} "
                f"(globs such as '{whole}.*' are over their whole names)"
            )


def _names(spec: StudentSpec, config: Any, caches: Sequence[Cache]) -> list[str]:
    """Names of the parameters of a student; of several trained together as their model has them."""
    if config.heads if isinstance(config, StudentConfig) else ():
        return [name for name, _ in named(drawn_heads(config, caches))]
    if not spec.together:
        return [name for name, _ in named(_model(spec, config, caches[0]))]
    each = zip(spec.each, config.members, strict=True)
    models = (_model(one, own, caches[0]) for one, own in each)
    return [
        f"members.{i}.{n}" for i, model in enumerate(models) for n, _ in model.named_parameters()
    ]


def _model(spec: StudentSpec, config: Any, cache: Cache) -> torch.nn.Module:
    """A student without weights."""
    if spec.module is not None:
        module: torch.nn.Module = adapted(spec.module, config)
        return module
    with torch.device("meta"), torch.random.fork_rng(devices=[]), silent_transformers():
        made: torch.nn.Module = auto_class(cache.plan.task).from_config(config)
        return made


@contextmanager
def only_trained(student: Any, globs: Sequence[str]) -> Iterator[None]:
    """Leave the parameters that no glob names as they are meanwhile; without globs, train all."""
    frozen = [
        parameter
        for name, parameter in named(student)
        if parameter.requires_grad and globs and not any(fnmatchcase(name, g) for g in globs)
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
